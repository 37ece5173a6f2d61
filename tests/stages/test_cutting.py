"""Large items are read in pieces, and shards close by what they hold: the same records, whatever the pieces."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from blake3 import blake3

from omniloom.infra import storage
from omniloom.stages.data import records
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.ingest import cutting, groups, readers, sources, texts
from omniloom.stages.ingest import stage as ingest
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.kinds.table import open_source

RNG = np.random.default_rng(3)
WHOLE = 1 << 40


@pytest.fixture
def memory():
    root = f"memory://cutting-{time.monotonic_ns()}"
    yield root
    storage.remove(root)


def picture(side: int = 8) -> bytes:
    return encode_png(RNG.integers(0, 256, (side, side, 3), np.uint8))


def config(root, kind: str = "jsonl", *, shard_bytes: int = WHOLE, shard_items: int = 8192, chunk_chars=40, **fields):
    fields = {"text_field": "text"} | fields if kind == "jsonl" and "image_field" not in fields else fields
    return ingest.Config.model_validate(
        {
            "sources": [{"kind": kind, "uri": str(root), **fields}],
            "shard_bytes": shard_bytes,
            "shard_items": shard_items,
            "chunk_chars": chunk_chars,
        }
    )


def take(cfg, work) -> SimpleNamespace:
    context = SimpleNamespace(
        config=cfg, output=f"{work}/out", state=f"{work}/state", predecessor=None, progress=lambda *a, **k: None
    )
    metrics = ingest.run(context)
    rows = sorted(records.iterate(context.output), key=records.key_of)
    rejects = [json.loads(line) for line in storage.read_bytes(f"{work}/out/rejects/rejects.jsonl").splitlines()]
    return SimpleNamespace(
        metrics=metrics, rows=rows, context=context, rejects=sorted(rejects, key=lambda r: (r["path"], r["part"]))
    )


LINES = [
    b'{"text": "one"}',
    b'{"text": "t\xc3\xb6t"}\r',
    b"",
    b'{"text": "' + b"long " * 60 + b'"}',
    b"no json",
    b"  ",
    *(b'{"text": "number %d"}' % n for n in range(15)),
    b'{"text": 3.5}',
]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_pieces_of_json_lines_give_the_records_of_the_whole_file(memory, mark, end):
    storage.write_bytes(f"{memory}/in/a.jsonl", mark + b"\n".join(LINES) + end)
    storage.write_bytes(f"{memory}/in/b.jsonl", b'{"text": "last"}')
    whole = take(config(f"{memory}/in"), f"{memory}/whole")
    assert [row["part"] for row in whole.rows if row["path"] == "a.jsonl"] == [1, 2, 4, *range(7, 22)]
    assert [(reject["part"], reject["code"]) for reject in whole.rejects] == [
        (5, "invalid_json"),
        (22, "missing_field"),
    ]
    for size in (1, 100, 200):
        cfg = config(f"{memory}/in", shard_bytes=size)
        pieces = [item for item in sources.pieces(cfg) if item["path"] == "a.jsonl"]
        assert len(pieces) > 1
        assert pieces[0]["from"] == 0 and all(a["to"] == b["from"] for a, b in zip(pieces, pieces[1:], strict=False))
        cut = take(cfg, f"{memory}/{size}")
        assert cut.rows == whole.rows and cut.rejects == whole.rejects
        assert cut.metrics == whole.metrics


@pytest.mark.parametrize("name", ["utf-16", "gb18030", "latin-1"])
def test_pieces_of_other_encodings(memory, name):
    text = "".join(json.dumps({"text": f"é{n}" + "\r"}, ensure_ascii=False) + "\n" for n in range(30))
    storage.write_bytes(f"{memory}/in/a.jsonl", text.encode(name))
    fields = {"encoding": name}
    whole = take(config(f"{memory}/in", **fields), f"{memory}/whole")
    cfg = config(f"{memory}/in", shard_bytes=50, **fields)
    assert (len(list(sources.pieces(cfg))) == 1) == (name == "utf-16")
    assert take(cfg, f"{memory}/cut").rows == whole.rows and len(whole.rows) == 30


def test_ranges_of_lines_are_closed_by_bytes_or_by_count():
    data = b"".join(b"%d\n" % n * (n % 7) for n in range(60))
    for block, end in ((1, b""), (5, b"end"), (1000, b"")):
        data = data.removesuffix(b"end") + end
        blocks = [data[at : at + block] for at in range(0, len(data), block)]
        for size, count in ((1, 9), (10, 3), (40, 1000), (10**9, 2)):
            ranges = list(encoding.line_ranges(iter(blocks), size, count))
            parts = [data[start:stop] for start, stop, *_ in ranges]
            assert b"".join(parts) == data
            for part, (_, _, lines, digest) in zip(parts, ranges, strict=True):
                assert lines == len(part.splitlines()) and digest == blake3(part).hexdigest(16)
            for part in parts[:-1]:
                whole = part.splitlines(keepends=True)
                assert part.endswith(b"\n") and (len(part) >= size or len(whole) == count)
                assert len(whole) <= count and len(part) - len(whole[-1]) < size


def test_a_small_file_of_lines_that_name_pictures_is_read_in_pieces(memory):
    storage.write_bytes(f"{memory}/in/a.png", picture())
    names = [f"{n:03d}.png" for n in range(60)]
    for name in names:
        storage.write_bytes(f"{memory}/in/{name}", picture())
    lines = "".join(json.dumps({"image": name, "caption": f"a picture, {name}"}) + "\n" for name in names)
    storage.write_bytes(f"{memory}/in/all.jsonl", lines.encode())
    fields = {"image_field": "image", "caption_field": "caption"}
    whole = take(config(f"{memory}/in", **fields), f"{memory}/whole")
    cfg = config(f"{memory}/in", shard_items=7, **fields)
    assert [item["rows"] for item in sources.pieces(cfg)] == [7] * 8 + [4]
    cut = take(cfg, f"{memory}/cut")
    assert cut.rows == whole.rows and len(whole.rows) == 60 and cut.metrics["files"] == 1


TEXT = "".join(
    "".join(RNG.choice(list("ab c\n"), size=int(n))) + ("\n\n" if n % 3 else "\r\n") for n in RNG.integers(1, 90, 40)
)


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "gb18030"])
def test_pieces_of_a_text_give_the_chunks_of_the_whole_file(memory, monkeypatch, name):
    monkeypatch.setattr(texts, "SECTION", 256)
    text = TEXT + "é" * 400 + "\n" + TEXT
    storage.write_bytes(f"{memory}/in/a.txt", text.encode(name))
    fields = {"encoding": "gb18030"} if name == "gb18030" else {}
    whole = take(config(f"{memory}/in", "text", **fields), f"{memory}/whole")
    if not whole.metrics["duplicates"]:
        assert "".join(row["text"] for row in whole.rows) == text.replace("\r\n", "\n")
    for size in (1, 1500):
        cfg = config(f"{memory}/in", "text", shard_bytes=size, **fields)
        assert len([item for item in sources.pieces(cfg) if "from" in item]) > 3
        cut = take(cfg, f"{memory}/{size}")
        assert cut.rows == whole.rows and cut.metrics["files"] == 1 and cut.metrics["files_rejected"] == 0


def test_joined_chunks_of_sections_are_the_text(memory, monkeypatch):
    monkeypatch.setattr(texts, "SECTION", 128)
    text = "".join(f"paragraph {n} of this text\n{'' if n % 4 else chr(10)}" for n in range(100))
    storage.write_bytes(f"{memory}/in/a.txt", text.encode())
    found = take(config(f"{memory}/in", "text", shard_bytes=300), f"{memory}/out")
    assert "".join(row["text"] for row in found.rows) == text
    parts = [row["part"] for row in found.rows]
    assert parts == sorted(set(parts))


def test_a_section_that_cannot_be_read_is_a_reject_and_the_others_stay(memory, monkeypatch):
    monkeypatch.setattr(texts, "SECTION", 64)
    lines = [b"line %02d of the text, which is well\n" % n for n in range(20)]
    lines[9] = b"a byte that is none: \xff\n"
    lines[13] = b"x" * 300 + b"\n"
    storage.write_bytes(f"{memory}/in/a.txt", b"".join(lines))
    found = []
    for size in (1, WHOLE):
        cfg = config(f"{memory}/in", "text", shard_bytes=size)
        cfg.limits = type(cfg.limits)(max_bytes=200)
        found.append(take(cfg, f"{memory}/{size}"))
        assert [reject["code"] for reject in found[-1].rejects] == ["invalid_utf8", "too_large"]
        assert "in the bytes from" in found[-1].rejects[0]["message"]
    assert found[0].rows == found[1].rows
    text = "".join(row["text"] for row in found[0].rows)
    assert "line 00" in text and "line 11" in text and "line 19" in text


def test_shards_close_by_what_they_hold(memory):
    for n in range(30):
        storage.write_bytes(f"{memory}/in/{n:02d}.png", picture(20))
    lines = "".join(json.dumps({"image": f"{n:02d}.png"}) + "\n" for n in range(30))
    storage.write_bytes(f"{memory}/in/all.jsonl", lines.encode())
    cfg = config(f"{memory}/in", image_field="image", shard_bytes=5000)
    (group,) = groups.grouped(sources.items(cfg), cfg)  # in one piece
    list(groups.ingest_group(group, cfg, f"{memory}/out", f"{memory}/state"))
    sizes = [[records.row_bytes(row) for row in records.iterate_shard(uri)] for uri in records.shards(f"{memory}/out")]
    assert sum(map(len, sizes)) == 30 and all(sum(shard) <= 1.15 * 5000 for shard in sizes)
    assert all(sum(shard) + following[0] > 1.15 * 5000 for shard, following in zip(sizes, sizes[1:], strict=False))


def test_a_group_that_is_killed_between_its_shards_gives_the_same(memory, monkeypatch):
    for n in range(12):
        storage.write_bytes(f"{memory}/in/{n:02d}.txt", f"text number {n}, of its own".encode())
    cfg = config(f"{memory}/in", "text", shard_bytes=WHOLE)
    (group,) = groups.grouped(sources.pieces(cfg), cfg)
    cfg = cfg.model_copy(update={"shard_items": 5})
    whole = list(groups.ingest_group(group, cfg, f"{memory}/1/out", f"{memory}/1/state"))
    assert [report["records"] for report in whole] == [5, 5, 2] and sum(report["files"] for report in whole) == 12
    begun = groups.ingest_group(group, cfg, f"{memory}/2/out", f"{memory}/2/state")
    next(begun), next(begun), begun.close()
    assert groups.done(f"{memory}/2/state", group) is None
    assert list(groups.ingest_group(group, cfg, f"{memory}/2/out", f"{memory}/2/state")) == whole
    for folder in ("out", "state"):
        names = storage.list_files(f"{memory}/1/{folder}")
        assert names == storage.list_files(f"{memory}/2/{folder}")
        assert all(
            storage.read_bytes(f"{memory}/1/{folder}/{n}") == storage.read_bytes(f"{memory}/2/{folder}/{n}")
            for n in names
        )
    assert list(groups.ingest_group(group, cfg, f"{memory}/2/out", f"{memory}/2/state")) == whole


def test_a_file_that_cannot_be_looked_into_is_one_item_and_its_reader_says_why(memory):
    storage.write_bytes(f"{memory}/in/a.jsonl", b'{"text": "x"}\n' * 100)
    cfg = config(f"{memory}/in", shard_bytes=100)
    kind = open_source(cfg.sources[0], 0)
    item = {"source": 0, "path": "gone.jsonl", "size": 1 << 30}
    assert cutting.pieces(kind, item, cfg) == [item]


@pytest.mark.parametrize("waste", [0, 400])
def test_pieces_are_cut_by_what_their_records_hold(memory, waste):
    """Each gives a shard that is full to a fifth, whether lines name pictures or hold much that no record has."""
    for n in range(240):
        storage.write_bytes(f"{memory}/in/{n:03d}.png", picture(14 + n % 3))
    lines = [json.dumps({"image": f"{n:03d}.png", "other": "x" * waste}) for n in range(240)]
    storage.write_bytes(f"{memory}/in/all.jsonl", "\n".join(lines).encode())
    limit = 30_000
    cfg = config(f"{memory}/in", image_field="image", shard_bytes=limit)
    found = take(cfg, f"{memory}/work")
    held = [
        sum(records.row_bytes(row) for row in records.iterate_shard(uri))
        for uri in records.shards(found.context.output)
    ]
    assert len(held) > 5 and all(0.8 * limit <= size <= 1.2 * limit for size in held[:-1]) and len(found.rows) == 240
    texts_of = "".join(json.dumps({"text": f"{n:04d} " * 40, "other": "x" * waste}) + "\n" for n in range(2000))
    storage.write_bytes(f"{memory}/texts/a.jsonl", texts_of.encode())
    found = take(config(f"{memory}/texts", shard_bytes=limit), f"{memory}/work2")
    held = [
        sum(records.row_bytes(row) for row in records.iterate_shard(uri))
        for uri in records.shards(found.context.output)
    ]
    assert len(held) > 5 and all(0.8 * limit <= size <= 1.2 * limit for size in held[:-1])


def test_the_limit_is_that_of_files_however_far_texts_are_compressed(memory):
    """One file of lines of texts that take a third as Parquet: all shards but the last are full to a fifth."""
    rng, limit = np.random.default_rng(2), 400_000
    words = np.array([f"word{n}" for n in range(4000)], object)[rng.zipf(1.5, (3000, 200)) % 4000]
    lines = "".join(json.dumps({"text": " ".join(text)}) + "\n" for text in words.tolist())
    storage.write_bytes(f"{memory}/in/a.jsonl", lines.encode())
    cfg = config(f"{memory}/in", shard_bytes=limit, shard_items=1 << 20)
    found = take(cfg, f"{memory}/work")
    sizes = list(storage.list_files(f"{found.context.output}/records").values())
    assert len(found.rows) == 3000 and len(sizes) > 2 and sum(sizes) < len(lines) / 2
    assert all(0.8 * limit <= size <= 1.2 * limit for size in sizes[:-1])


def test_small_files_of_texts_fill_shards_too(memory, monkeypatch):
    """By what some of them take as Parquet; few are read twice, and none where their number closes a shard."""
    rng, limit = np.random.default_rng(3), 400_000
    words = np.array([f"word{n}" for n in range(4000)], object)[rng.zipf(1.5, (3000, 200)) % 4000]
    for n, text in enumerate(words.tolist()):
        storage.write_bytes(f"{memory}/in/{n:04d}.txt", " ".join(text).encode())
    cfg = config(f"{memory}/in", kind="text", shard_bytes=limit, shard_items=1 << 20, chunk_chars=4000)
    read: list[str] = []
    whole = readers.Reader.read
    monkeypatch.setattr(readers.Reader, "read", lambda self, item: read.append(item["path"]) or whole(self, item))
    found = take(cfg, f"{memory}/work")
    sizes = list(storage.list_files(f"{found.context.output}/records").values())
    assert len(found.rows) == 3000 and len(sizes) > 2
    assert all(0.8 * limit <= size <= 1.2 * limit for size in sizes[:-1])
    assert 0 < len(read) <= 512
    read.clear()
    take(cfg.model_copy(update={"shard_items": 200}), f"{memory}/few")
    assert not read
