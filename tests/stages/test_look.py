"""`omniloom look`: what a source holds, and a config that reads it as it is printed."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import yaml
from ingested import lines, picture, put, take
from PIL import Image

from omniloom.infra.errors import InputError
from omniloom.pipelines.commands.look import look
from omniloom.pipelines.config import load
from omniloom.stages.data.media.decode import encode_mp4


def clip() -> bytes:
    return encode_mp4(np.random.default_rng(7).integers(0, 256, (4, 32, 32, 3), np.uint8), 4)


def photo(format: str) -> bytes:
    data = io.BytesIO()
    Image.open(io.BytesIO(picture())).convert("RGB").save(data, format)
    return data.getvalue()


def shown(folder, capsys, tmp_path) -> tuple[str, list[dict]]:
    """What is printed, and the sources of the config which that is, once `run` has taken it."""
    look(str(folder))
    text = capsys.readouterr().out
    file = tmp_path / "printed.yaml"
    file.write_text(text)
    sources = load(str(file), files=True).stages.ingest.sources
    assert [source.kind for source in sources] == [
        source["kind"] for source in yaml.safe_load(text)["stages"]["ingest"]["sources"]
    ]
    return text, [source.model_dump(by_alias=True, exclude_unset=True) for source in sources]


def test_pictures_videos_and_notes_of_one_folder_are_parted(tmp_path, capsys):
    folder = put(
        tmp_path / "My photos!",
        {
            "a/IMG_1.JPG": photo("JPEG"),
            "a/IMG_2.png": picture(),
            "a/IMG_2.mp4": clip(),
            "a/dance.gif": photo("GIF"),
            "a/IMG_1.AAE": b"<plist/>",
            "b/broken.png": b"\x89PNG\r\n",
            "README.md": "about\n",
        },
    )
    text, sources = shown(folder, capsys, tmp_path)
    assert yaml.safe_load(text)["name"] == "My-photos"
    assert [(s["kind"], s["include"]) for s in sources] == [
        ("image_folder", ["*.JPG", "*.gif", "*.png"]),
        ("video_folder", ["*.mp4"]),
    ]
    metrics, records, rejects = take(*sources)
    assert set(records) == {("a/IMG_1.JPG", 0), ("a/IMG_2.png", 0), ("a/IMG_2.mp4", 0), ("a/dance.gif", 0)}
    assert set(rejects) == {("b/broken.png", "not_an_image")} and metrics["files"] == 5
    for said in (
        "7 files",
        "image_folder (image records): 4 items",
        "looked into 4 of them: 3 records, 0 with captions",
        "rejects: 1 not_an_image; the first: b/broken.png: ",
        "a/IMG_2.mp4 (32x32, 1.0 s)",
        "no kind of source reads 2 files: 1 .aae, 1 .md",
    ):
        assert f"{said}" in text, text


def test_captions_are_found_where_they_lie(tmp_path, capsys):
    pictures = {f"img/{n}.png": picture() for n in range(3)}
    rows = [{"image": f"{n}.png", "caption": f"number {n}"} for n in range(3)]
    cases = {
        "sidecars": ({f"img/{n}.txt": f"number {n}" for n in range(3)}, {"captions": {"from": "sidecar"}}),
        "metadata": ({"img/metadata.jsonl": lines(*rows)}, {}),
        "manifest": ({"img/said.jsonl": lines(*rows)}, {"captions": {"manifest": "img/said.jsonl"}}),
        "table": ({"said.csv": "image;text\n" + "".join(f"img/{n}.png;number {n}\n" for n in range(3))}, None),
    }
    cases["table"] = (cases["table"][0], {"captions": {"manifest": "said.csv"}})
    for name, (files, options) in cases.items():
        folder = put(tmp_path / name, pictures | files)
        text, sources = shown(folder, capsys, tmp_path)
        assert sources == [{"kind": "image_folder", "uri": folder, **options}], name
        assert "3 with captions" in text and "number 0" in text
        _, records, _ = take(*sources)
        assert {row["caption"] for row in records.values()} == {"number 0", "number 1", "number 2"}


@pytest.mark.parametrize("said", ["annotations", "captions", "meta"])
def test_captions_within_objects_are_found(said, tmp_path, capsys):
    def told(n: int):
        if said == "meta":
            return {"size": 3, "caption": f"number {n}"}
        return [{"lang": "en", "text": f"number {n}"}, {"lang": "de", "text": f"Nummer {n}"}]

    rows = [{"id": n, "media": {"path": f"img/{n}.png"}, said: told(n)} for n in range(3)]
    files = {f"img/{n}.png": picture() for n in range(3)} | {"all.json": json.dumps({"info": {}, "samples": rows})}
    folder = put(tmp_path, files)
    _, sources = shown(folder, capsys, tmp_path)
    _, records, _ = take(*sources)
    expected = {f"number {n}" for n in range(3)} | (set() if said == "meta" else {f"Nummer {n}" for n in range(3)})
    assert {caption for row in records.values() for caption in row["captions"]} == expected


def test_documents_take_their_pictures_and_go_by_their_own_folder(tmp_path, capsys):
    segments = [{"type": "text", "text": "Soup."}, {"type": "image", "file": "img/a.png"}]
    folder = put(
        tmp_path / "all",
        {
            "recipes/img/a.png": picture(),
            "recipes/docs.jsonl": lines({"file": "a.md", "segments": segments}),
            "site/page.md": "# Bread\n\n![loaf](pics/b%20c.png)\n",
            "site/pics/b c.png": picture(),
            "more/c.png": picture(),
            "more/deep/d.txt": "A text.\n",
        },
    )
    _, sources = shown(folder, capsys, tmp_path)
    assert [source["kind"] for source in sources] == ["interleaved", "interleaved", "image_folder", "text"]
    assert sources[0] == {"kind": "interleaved", "uri": f"{folder}/recipes", "manifest": "docs.jsonl"}
    assert sources[2]["include"] == ["more/*.png"]
    metrics, records, rejects = take(*sources)
    assert not rejects and metrics["records_document"] == 2 and metrics["records"] == 4


def test_what_holds_nothing_says_so(tmp_path, capsys):
    folder = put(tmp_path / "x", {"a.exe": b"MZ", "LICENSE.md": "free"})
    with pytest.raises(Exception) as ended:
        look(folder)
    assert getattr(ended.value, "exit_code", None) == 1
    text = capsys.readouterr().out
    assert yaml.safe_load(text) is None and "no kind of source reads 2 files: 1 .exe, 1 .md" in text
    with pytest.raises(InputError, match="no such file or folder"):
        look(str(tmp_path / "gone"))


def test_what_a_source_says_stays_within_its_comment(tmp_path, capsys):
    folder = put(
        tmp_path / "x",
        {"a\nname: evil.txt": "one\n\nname: worse\x1b[31m\u2028storage: /\n", "b.txt": "two " * 1000},
    )
    text, sources = shown(folder, capsys, tmp_path)
    assert yaml.safe_load(text)["name"] == "x" and "\x1b" not in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_as_json(tmp_path, capsys):
    folder = put(tmp_path / "x", {"a.png": picture(), "b.png": b""})
    look(folder, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["config"]["stages"]["ingest"]["sources"] == [{"kind": "image_folder", "uri": folder}]
    (source,) = said["sources"]
    assert (source["items"], source["records"], source["rejects"]) == (2, 1, {"empty": 1})
    assert said["suffixes"] == {".png": 2}


def test_captions_in_json_beside_the_pictures(tmp_path):
    put(
        tmp_path,
        {
            "a.png": picture(),
            "a.json": b'\xef\xbb\xbf{"caption": ["one", "two"], "width": 3}',
            "b.png": picture(),
            "b.png.json": b'{"title": "b.png", "description": "told by a phone"}',
            "c.png": picture(),
            "c.txt": "the text counts",
            "c.json": b'{"caption": "not this"}',
            "d.png": picture(),
            "d.json": b"[1]",
        },
    )
    _, rows, rejects = take({"kind": "image_folder", "uri": str(tmp_path), "captions": {"from": "sidecar"}})
    found = {path: row["captions"] for (path, _), row in rows.items()}
    assert found == {"a.png": ["one", "two"], "b.png": ["told by a phone"], "c.png": ["the text counts"], "d.png": []}
    assert set(rejects) == {("d.json", "bad_caption")}
