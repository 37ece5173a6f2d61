"""One corpus in six layouts: folders with manifests, WebDataset, Parquet, Hugging Face, JSON arrays, zip.

In: a folder with images/, videos/, text/ and interleaved/, each with files and a manifest.jsonl. Out: for each layout
files below another folder, and the sources of a config that read them.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from omniloom.stages.ingest.texts import chunk_text, decode_text

TEMPLATE = "{question}\n{answer}"


class Corpus:
    """The corpus as its manifests tell it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def rows(self, part: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / part / "manifest.jsonl").read_text().splitlines()]

    def media(self, part: str) -> dict[str, list[str]]:
        """File -> captions, in the order of the paths; rows about one file add up."""
        found: dict[str, list[str]] = {}
        for row in self.rows(part):
            said = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
            found.setdefault(row["file"], []).extend(said)
        return dict(sorted(found.items()))

    def data(self, part: str, file: str) -> bytes:
        return (self.folder / part / file).read_bytes()

    def texts(self) -> list[str]:
        """The chunks of the books."""
        books = [decode_text(path.read_bytes()) for path in sorted((self.folder / "text").glob("*.txt"))]
        return [chunk for book in books for chunk in chunk_text(book, 2000)]

    def lines(self) -> list[dict]:
        (path,) = [path for path in (self.folder / "text").glob("*.jsonl") if path.name != "manifest.jsonl"]
        return [json.loads(line) for line in path.read_text().splitlines()]

    def documents(self) -> list[list[dict]]:
        return [row["segments"] for row in self.rows("interleaved")]


def folders(corpus: Corpus, to: Path, uri: str = "{}") -> list[dict]:
    """The corpus as it lies there."""
    source = corpus.folder if uri == "{}" else to
    place = {part: str(source / uri.format(part)) for part in ("images", "videos", "text", "interleaved")}
    captions = {"captions": {"manifest": "manifest.jsonl"}}
    return [
        {"kind": "image_folder", "uri": place["images"], **captions},
        {"kind": "video_folder", "uri": place["videos"], **captions},
        {"kind": "text", "uri": place["text"], "include": "*.txt"},
        {"kind": "jsonl", "uri": place["text"], "exclude": "manifest.jsonl", "template": TEMPLATE},
        {"kind": "interleaved", "uri": place["interleaved"], "manifest": "manifest.jsonl"},
    ]


def zips(corpus: Corpus, to: Path) -> list[dict]:
    """Each folder is an archive."""
    for part in ("images", "videos", "text", "interleaved"):
        with zipfile.ZipFile(to / f"{part}.zip", "w") as archive:
            for path in sorted((corpus.folder / part).rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(corpus.folder / part))
    return folders(corpus, to, "{}.zip")


def webdataset(corpus: Corpus, to: Path) -> list[dict]:
    """Samples of a tar: a picture and its captions; a text. Documents are a tar of a folder."""
    for part in ("images", "videos"):
        (to / part).mkdir(parents=True)
        samples = (
            {f"{n:05d}{Path(file).suffix}": corpus.data(part, file), f"{n:05d}.json": _bytes({"caption": said})}
            for n, (file, said) in enumerate(corpus.media(part).items())
        )
        _tars(to / part, samples, 700)
    texts = [*corpus.texts(), *(TEMPLATE.format(**line) for line in corpus.lines())]
    (to / "text").mkdir()
    _tars(to / "text", ({f"{n:05d}.txt": text.encode()} for n, text in enumerate(texts)), 1000)
    with tarfile.open(to / "interleaved.tar", "w") as archive:
        archive.add(corpus.folder / "interleaved", ".")
    return [
        {"kind": "webdataset", "uri": str(to / "images"), "image_field": "image", "caption_field": "json.caption"},
        {"kind": "webdataset", "uri": str(to / "videos"), "video_field": "video", "caption_field": "json.caption"},
        {"kind": "webdataset", "uri": str(to / "text"), "text_field": "txt"},
        {"kind": "interleaved", "uri": str(to / "interleaved.tar"), "manifest": "manifest.jsonl"},
    ]


def _tars(folder: Path, samples: Iterator[dict[str, bytes]], each: int) -> None:
    archive = None
    for n, sample in enumerate(samples):
        if n % each == 0:
            if archive:
                archive.close()
            archive = tarfile.open(folder / f"{n // each:05d}.tar", "w")
        assert archive
        for name, data in sample.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    if archive:
        archive.close()


def _bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def parquet(corpus: Corpus, to: Path) -> list[dict]:
    """Bytes in columns."""
    for part, column in (("images", "image"), ("videos", "video")):
        media = corpus.media(part)
        table = pa.table({column: [corpus.data(part, file) for file in media], "captions": list(media.values())})
        (to / part).mkdir(parents=True)
        pq.write_table(table, to / part / "0.parquet", row_group_size=500)
    (to / "text").mkdir()
    pq.write_table(pa.table({"text": corpus.texts()}), to / "text/0.parquet")
    (to / "lines").mkdir()
    pq.write_table(pa.Table.from_pylist(corpus.lines()), to / "lines/0.parquet")
    (to / "documents").mkdir()
    pq.write_table(_obelics(corpus, bytes_of=True), to / "documents/0.parquet", row_group_size=20)
    return [
        {"kind": "parquet", "uri": str(to / "images"), "image_field": "image"},
        {"kind": "parquet", "uri": str(to / "videos"), "video_field": "video"},
        {"kind": "parquet", "uri": str(to / "text"), "text_field": "text"},
        {"kind": "parquet", "uri": str(to / "lines"), "template": TEMPLATE},
        {"kind": "obelics", "uri": str(to / "documents")},
    ]


def _obelics(corpus: Corpus, bytes_of: bool) -> pa.Table:
    def image(segment: dict) -> bytes | str | None:
        if segment["type"] != "image":
            return None
        return corpus.data("interleaved", segment["file"]) if bytes_of else segment["file"]

    documents = corpus.documents()
    return pa.table(
        {
            "texts": [[s["text"] if s["type"] == "text" else None for s in segments] for segments in documents],
            "images": [[image(s) for s in segments] for segments in documents],
        }
    )


def hugging_face(corpus: Corpus, to: Path) -> list[dict]:
    """Pictures as `imagefolder`, videos as `save_to_disk` leaves them, texts in a repository with a card."""
    shutil.copytree(corpus.folder / "images", to / "images/train", ignore=shutil.ignore_patterns("manifest.jsonl"))
    lines = [_bytes({"file_name": file, "texts": said}) for file, said in corpus.media("images").items()]
    (to / "images/train/metadata.jsonl").write_bytes(b"\n".join(lines))
    media = corpus.media("videos")
    videos = pa.table(
        {
            "video": [{"bytes": corpus.data("videos", file), "path": file} for file in media],
            "caption": list(media.values()),
        }
    )
    (to / "videos").mkdir()
    with pa.ipc.new_stream(to / "videos/data-00000-of-00001.arrow", videos.schema) as writer:
        writer.write_table(videos, max_chunksize=40)
    (to / "videos/state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    for name, table in (("books", pa.table({"text": corpus.texts()})), ("gsm8k", pa.Table.from_pylist(corpus.lines()))):
        (to / "text" / name).mkdir(parents=True)
        half = table.num_rows // 2
        for n, rows in enumerate((table[:half], table[half:])):
            pq.write_table(rows, to / f"text/{name}/test-{n:05d}-of-00002.parquet")
    configs = [{"config_name": name, "data_files": f"{name}/*"} for name in ("books", "gsm8k")]
    (to / "text/README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n# Texts\n")
    (to / "documents").mkdir()
    pq.write_table(_obelics(corpus, bytes_of=True), to / "documents/train-00000-of-00001.parquet")
    return [
        {"kind": "hf_dataset", "uri": str(to / "images"), "image_field": "image", "split": "train"},
        {"kind": "hf_dataset", "uri": str(to / "videos"), "video_field": "video"},
        {"kind": "hf_dataset", "uri": str(to / "text"), "subset": "books", "text_field": "text"},
        {"kind": "hf_dataset", "uri": str(to / "text"), "subset": "gsm8k", "template": TEMPLATE},
        {"kind": "obelics", "uri": str(to / "documents")},
    ]


def json_arrays(corpus: Corpus, to: Path) -> list[dict]:
    """Arrays that name files which lie elsewhere."""
    to.mkdir(parents=True, exist_ok=True)
    sources = []
    for part, column in (("images", "image"), ("videos", "video")):
        rows = [{"id": n, column: file, "caption": said} for n, (file, said) in enumerate(corpus.media(part).items())]
        (to / f"{part}.json").write_text(json.dumps(rows))
        place = {"uri": str(to / f"{part}.json"), "media_root": str(corpus.folder / part)}
        sources.append({"kind": "json", **place, f"{column}_field": column})
    (to / "text.json").write_text(json.dumps({"version": 1, "data": [{"text": text} for text in corpus.texts()]}))
    (to / "lines.json").write_text(json.dumps(corpus.lines(), indent=2, ensure_ascii=False))
    (to / "documents.json").write_text(json.dumps(_obelics(corpus, bytes_of=False).to_pylist()))
    documents = {"uri": str(to / "documents.json"), "media_root": str(corpus.folder / "interleaved")}
    return [
        *sources,
        {"kind": "json", "uri": str(to / "text.json"), "rows_field": "data", "text_field": "text"},
        {"kind": "json", "uri": str(to / "lines.json"), "template": TEMPLATE},
        {"kind": "obelics", **documents},
    ]


LAYOUTS = {
    "folders": folders,
    "webdataset": webdataset,
    "parquet": parquet,
    "hugging_face": hugging_face,
    "json": json_arrays,
    "zip": zips,
}
