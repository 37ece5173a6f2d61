"""A corpus that grows: what is read, what is taken over, and that it comes out as if all had been read at once."""

from __future__ import annotations

import io
import itertools
import json
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.stages.data import changes, records
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.ingest import stage as ingest
from omniloom.stages.ingest.increments import growth
from omniloom.stages.ingest.increments.in_order import Group, Order, in_order
from omniloom.stages.ingest.splitting import keys
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.shard import ShardTokenizer

COLUMNS = ("id", "kind", "split", "label", "source", "path", "part", "caption", "captions", "license", "meta")
_numbers = itertools.count()


def photo(seed: int, size: int = 40) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).filter(ImageFilter.BLUR)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


class Corpus:
    """Sources in memory, and the ingests of them; a file's `identity` changes with each writing."""

    def __init__(self, **fields):
        self.root = f"memory://living-{time.monotonic_ns()}"
        self.store = ArtifactStore(f"{self.root}/store")
        self.fields = fields

    def put(self, path: str, content: bytes | str) -> None:
        storage.write_bytes(f"{self.root}/in/{path}", content if isinstance(content, bytes) else content.encode())

    def lines(self, path: str, rows: list[dict]) -> None:
        self.put(path, "".join(json.dumps(row) + "\n" for row in rows))

    def remove(self, path: str) -> None:
        storage.remove(f"{self.root}/in/{path}")

    @property
    def config(self) -> ingest.Config:
        given = json.loads(json.dumps(self.fields).replace("ROOT", f"{self.root}/in"))
        return ingest.Config.model_validate({"shard_items": 4, **given})

    def ingest(self, earlier: Artifact | None = None, dies=lambda done: None) -> Artifact:
        name = f"{next(_numbers):064x}"
        context = SimpleNamespace(
            config=self.config,
            output=f"{self.store.work_uri('ingest', name)}/output",
            state=f"{self.store.work_uri('ingest', name)}/state",
            predecessor=earlier,
            progress=lambda done, *a: dies(done),
        )
        for _ in range(99):
            try:
                metrics = ingest.run(context)
                break
            except KeyboardInterrupt:
                continue
        facts = {"stage": "ingest", "fingerprint": name, "metrics": metrics, "pipeline": ""}
        facts["times"] = {"ended_unix": 1.0}
        return self.store.publish("ingest", name, self.store.work_uri("ingest", name), facts)


def rows(artifact: Artifact) -> list[dict]:
    found = list(records.iterate(artifact.uri, columns=COLUMNS))
    return sorted(found, key=lambda row: (row["source"], row["path"], row["part"]))


def lines_of(artifact: Artifact, name: str) -> list[dict]:
    return [json.loads(line) for line in storage.read_bytes(artifact.file(name)).split(b"\n") if line]


def same(one: Artifact, other: Artifact) -> None:
    assert rows(one) == rows(other)
    assert lines_of(one, "rejects/rejects.jsonl") == lines_of(other, "rejects/rejects.jsonl")
    for name in ("duplicates", "captions"):
        told = [
            [
                {key: value for key, value in row.items() if key != "shard"}
                for row in lines_of(a, f"duplicates/{name}.jsonl")
            ]
            for a in (one, other)
        ]
        assert told[0] == told[1], name
    read = ("files_read", "bytes_read")
    assert [{k: v for k, v in a.metrics.items() if k not in read} for a in (one, other)][0] == {
        k: v for k, v in other.metrics.items() if k not in read
    }
    for name, value in records.counts(one.uri).items():
        assert one.metrics[name] == value, name


IMAGES = {"kind": "image_folder", "uri": "ROOT/img", "name": "img", "captions": {"manifest": "m.jsonl"}}
SOURCES = [
    IMAGES,
    {"kind": "jsonl", "uri": "ROOT/rows", "name": "rows", "image_field": "image", "caption_field": "text"},
    {"kind": "text", "uri": "ROOT/txt", "name": "txt"},
    {"kind": "interleaved", "uri": "ROOT/docs", "name": "docs"},
]


class Grown(Corpus):
    """Pictures with captions, lines that name pictures, texts and documents, which change at random."""

    def __init__(self, seed: int):
        super().__init__(sources=SOURCES, splits={"train": 0.6, "validation": 0.2, "test": 0.2})
        self.random = random.Random(seed)
        self.pictures: dict[str, dict] = {}
        self.lines_of: dict[str, list[dict]] = {}
        self.texts: set[str] = set()
        self.documents: set[str] = set()
        for name in ("a", "b", "c"):
            self.lines_of[name] = []
        for _ in range(14):
            self.add()
        for name in ("rows/p1.png", "rows/p2.png", "docs/p.png"):
            self.put(name, saved(photo(hash(name) % 1000)))
        self.change()

    def add(self) -> None:
        rng = self.random
        name, seed = f"{rng.randrange(10**6):06d}", rng.randrange(30)  # few pictures: copies and twins come again
        image = photo(seed)
        data = rng.choice(
            [saved(image), saved(image, "JPEG", quality=60), saved(image.resize((35, 35))), b"no picture"]
        )
        self.put(f"img/{name}.png", data)
        self.pictures[f"{name}.png"] = {"file": f"{name}.png", "caption": f"caption {rng.randrange(5)}"}
        self.put(f"txt/{name}.txt", f"Text {seed}. " + "It says the same for a while, and goes on like that. " * 9)
        self.texts.add(f"txt/{name}.txt")
        self.put(
            f"docs/{name}.md", f"Document {rng.randrange(20)}\n\n![p](p.png)\n" + ("![q](q.png)" * rng.randrange(2))
        )
        self.documents.add(f"docs/{name}.md")
        rows = self.lines_of[rng.choice("abc")]
        rows.insert(rng.randrange(len(rows) + 1), {"image": rng.choice(["p1.png", "p2.png", "no.png"]), "text": name})

    def change(self) -> None:
        """Some of everything."""
        rng = self.random
        for _ in range(rng.randrange(1, 4)):
            self.add()
        for held in (self.texts, self.documents):
            for path in rng.sample(sorted(held), 2):
                held.remove(path)
                self.remove(path)
        for path in rng.sample(sorted(self.pictures), 3):
            if rng.random() < 0.5:
                del self.pictures[path]
                self.remove(f"img/{path}")
            else:
                self.pictures[path]["caption"] = f"caption {rng.randrange(5)}"
        told = list(self.pictures.values())
        rng.shuffle(told)
        self.lines("img/m.jsonl", told)
        name = rng.choice("abc")
        self.lines(f"rows/{name}.jsonl", self.lines_of[name])
        if rng.random() < 0.5:  # what lines and documents name
            self.put(f"rows/p{rng.choice('12')}.png", saved(photo(rng.randrange(30))))
        if rng.random() < 0.5:
            self.put("docs/q.png", saved(photo(rng.randrange(30))))


@pytest.mark.parametrize("seed", range(2))
def test_what_grew_is_what_would_have_been_read_at_once(seed):
    corpus = Grown(seed)
    earlier, read = corpus.ingest(), []
    for _ in range(3):
        corpus.change()
        grown, anew = corpus.ingest(earlier), corpus.ingest()
        same(grown, anew)
        read.append((grown.metrics["files_read"], anew.metrics["files_read"]))
        earlier = grown
    assert all(few < all_ for few, all_ in read)


def folder(count: int = 12, **fields) -> Corpus:
    corpus = Corpus(sources=[{"kind": "image_folder", "uri": "ROOT/img", "name": "img"}], **fields)
    for n in range(count):
        corpus.put(f"img/{n:02d}.png", saved(photo(n)))
    return corpus


def test_only_what_is_new_is_read_and_shards_are_shared():
    corpus = folder()
    first = corpus.ingest()
    corpus.put("img/05b.png", saved(photo(50)))
    second = corpus.ingest(first)
    assert second.metrics["files_read"] == 1 and second.metrics["bytes_read"] == len(saved(photo(50)))
    hashes = [{f["path"]: f["sha256"] for f in a.manifest["files"] if "records/" in f["path"]} for a in (first, second)]
    new = "records/shard-000003-0000.parquet"
    assert hashes[1].pop(new) and hashes[0] == hashes[1] and len(hashes[0]) == 3
    third = corpus.ingest(second)
    assert third.metrics["files_read"] == 0 and rows(third) == rows(second)


def test_one_percent_more_reads_no_look_and_no_sketch_of_what_was_there(monkeypatch):
    """Counts, not seconds: files read, shards written, looks and sketches taken out of shards."""
    sources = [SOURCES[2], {"kind": "image_folder", "uri": "ROOT/img", "name": "img"}]
    corpus = Corpus(sources=sources, shard_items=20)
    for n in range(100):
        corpus.put(f"txt/{n:03d}.txt", words(n))
        corpus.put(f"img/{n:03d}.png", saved(photo(n)))
    first = corpus.ingest()
    corpus.put("txt/050b.txt", words(500))
    corpus.put("img/050b.png", saved(photo(500)))
    taken: list[str] = []
    values = keys.Corpus.values

    def counted(held, column, shard, rows, places):
        taken.extend([held.names[shard]] * len(rows))
        return values(held, column, shard, rows, places)

    monkeypatch.setattr(keys.Corpus, "values", counted)
    second = corpus.ingest(first)
    old = {entry["path"].rpartition("/")[2] for entry in first.manifest["files"] if "records/" in entry["path"]}
    new = {entry["path"].rpartition("/")[2] for entry in second.manifest["files"] if "records/" in entry["path"]} - old
    assert second.metrics["files_read"] == 2 and len(new) <= 2
    assert set(taken) - new == set() and len(taken) == 2  # each of the new ones, once
    same(second, corpus.ingest())


def test_a_file_of_lines_that_has_grown_is_read_where_it_has_grown():
    corpus = Corpus(sources=[{"kind": "jsonl", "uri": "ROOT/rows", "text_field": "text"}], shard_bytes=4000)
    corpus.fields["shard_items"] = 10**6
    told = [{"text": f"{n:04d} {words(n)}"[:200].ljust(200, ".")} for n in range(120)]
    corpus.lines("rows/a.jsonl", told)
    first = corpus.ingest()
    told += [{"text": f"later {n}"} for n in range(5)]
    corpus.lines("rows/a.jsonl", told)
    second = corpus.ingest(first)
    assert len(rows(second)) == 125 and 0 < second.metrics["bytes_read"] < 5000 < first.metrics["bytes_read"] / 4
    same(second, corpus.ingest())
    told[30] = {"text": "x" * 200}  # as long as it was: the lines behind it lie where they lay
    corpus.lines("rows/a.jsonl", told)
    third = corpus.ingest(second)
    assert 0 < third.metrics["bytes_read"] < 5000
    same(third, corpus.ingest())
    corpus.lines("rows/a.jsonl", told[1:])
    fourth = corpus.ingest(third)
    assert fourth.metrics["bytes_read"] > first.metrics["bytes_read"] / 2
    same(fourth, corpus.ingest())


def test_a_removed_file_is_in_no_shard_as_readers_see_it():
    corpus = folder()
    first = corpus.ingest()
    gone = next(row["id"] for row in rows(first) if row["path"] == "06.png")
    corpus.remove("img/06.png")
    second = corpus.ingest(first)
    shard = "records/shard-000001-0000.parquet"
    for uri in records.shards(second.uri):
        assert gone not in {row["id"] for row in records.iterate_shard(uri)}
    assert changes.of_artifact(second.uri)["shard-000001-0000.parquet"].dropped == {2}
    corpus.remove("img/05.png")  # now half of the shard is gone
    third = corpus.ingest(second)
    assert "shard-000001-0000.parquet" not in changes.of_artifact(third.uri)
    assert storage.read_bytes(third.file(shard)) != storage.read_bytes(second.file(shard))
    assert [row["path"] for row in records.iterate_shard(third.file(shard))] == ["04.png", "07.png"]
    for name in ("04.png", "07.png"):
        corpus.remove(f"img/{name}")
    fourth = corpus.ingest(third)
    assert shard not in {entry["path"] for entry in fourth.manifest["files"]} and len(rows(fourth)) == 8
    same(fourth, corpus.ingest())


def test_the_first_of_equal_ones_may_come_later_and_may_go():
    corpus = Corpus(sources=[IMAGES])
    said = [{"file": f"{n}.png", "caption": f"caption {n}", "label": n} for n in "bcd"]
    for n in "bcd":
        corpus.put(f"img/{n}.png", saved(photo(1)) if n != "c" else saved(photo(2)))
    corpus.lines("img/m.jsonl", said)
    first = corpus.ingest()
    assert [(r["path"], r["captions"]) for r in rows(first)] == [
        ("b.png", ["caption b", "caption d"]),
        ("c.png", ["caption c"]),
    ]
    corpus.put("img/a.png", saved(photo(1)))
    corpus.lines("img/m.jsonl", [{"file": "a.png", "caption": "caption a", "label": "a"}, *said])
    second = corpus.ingest(first)
    assert second.metrics["files_read"] == 1
    assert [(r["path"], r["label"], r["captions"]) for r in rows(second)] == [
        ("a.png", "a", ["caption a", "caption b", "caption d"]),
        ("c.png", "c", ["caption c"]),
    ]
    for n in "ab":
        corpus.remove(f"img/{n}.png")
    corpus.lines("img/m.jsonl", said[1:])
    third = corpus.ingest(second)
    assert third.metrics["files_read"] == 0
    assert [(r["path"], r["captions"]) for r in rows(third)] == [("c.png", ["caption c"]), ("d.png", ["caption d"])]


def test_a_picture_that_a_line_names_is_noticed_and_so_is_one_that_was_missing():
    corpus = Corpus(sources=[SOURCES[1]])
    for n in (1, 2):
        corpus.put(f"rows/p{n}.png", saved(photo(n)))
        corpus.lines(
            f"rows/{n}.jsonl", [{"image": f"p{n}.png", "text": f"row {n}"}, {"image": "late.png", "text": "x"}][:n]
        )
    first = corpus.ingest()
    corpus.put("rows/other.png", saved(photo(9)))
    second = corpus.ingest(first)
    assert second.metrics["files_read"] == 0
    corpus.put("rows/p1.png", saved(photo(5)))
    third = corpus.ingest(second)
    assert third.metrics["files_read"] == 1 and rows(third)[0]["id"] != rows(second)[0]["id"]
    corpus.put("rows/late.png", saved(photo(6)))
    fourth = corpus.ingest(third)
    assert fourth.metrics["files_read"] == 1 and len(rows(fourth)) == 3
    same(fourth, corpus.ingest())


def test_a_source_may_be_added_and_put_first():
    corpus = folder()
    first = corpus.ingest()
    for n in range(3):
        corpus.put(f"more/{n}.png", saved(photo(n)))
    corpus.fields["sources"].insert(0, {"kind": "image_folder", "uri": "ROOT/more", "name": "more"})
    second = corpus.ingest(first)
    assert second.metrics["files_read"] == 3 and second.metrics["duplicates"] == 3
    same(second, corpus.ingest())
    corpus.fields["sources"][1]["license"] = "CC0"  # another option of a source: all of it is another
    assert corpus.ingest(second).metrics["files_read"] == 12


def test_a_killed_run_gives_the_same(monkeypatch):
    corpus = Grown(7)
    first = corpus.ingest()
    corpus.change()
    for _ in range(5):
        corpus.add()
    whole = corpus.ingest(first)
    died: set[str] = set()

    def dies_at(module, name):
        real = getattr(module, name)

        def dies(*given, **named):
            for when in ("before", "after"):
                key = f"{name} {when} {len(died) if name == 'share_file' and len(died) < 9 else ''}"
                if when == "after":
                    found = real(*given, **named)
                if key not in died:
                    died.add(key)
                    raise KeyboardInterrupt
            return found

        monkeypatch.setattr(module, name, dies)

    for module, name in ((storage, "share_file"), (changes, "write"), (ingest, "ingest_group")):
        dies_at(module, name)
    killed = corpus.ingest(first)
    assert len(died) > 10
    files = [{e["path"]: e["sha256"] for e in a.manifest["files"]} for a in (whole, killed)]
    lineage = growth.LINEAGE
    assert files[0] == files[1] and lineage in files[0]


def test_how_far_a_corpus_has_grown_counts_from_each_that_it_was_built_on():
    corpus = folder()
    first = corpus.ingest()
    corpus.put("img/20.png", saved(photo(20)))
    corpus.remove("img/00.png")
    second = corpus.ingest(first)
    for n in (21, 22):
        corpus.put(f"img/{n}.png", saved(photo(n)))
    corpus.put("img/21b.png", saved(photo(21)))  # a copy is no new record
    third = corpus.ingest(second)
    assert growth.since(third, third.fingerprint) == growth.Growth(0.0, 0.0)
    found = growth.since(third, first.fingerprint, ["image"])
    assert found.new == pytest.approx(3 / 14) and found.gone == pytest.approx(1 / 12)
    assert growth.since(third, second.fingerprint).new == pytest.approx(2 / 14)
    assert growth.since(third, "0" * 64) is None
    told = growth.compare(growth.known_files(first), growth.known_files(third))
    assert (told.added, told.removed, told.changed, told.files) == (4, 1, 0, 15)


def test_rows_of_shards_come_in_the_order_of_items():
    table = np.array([[0, 1, 0, 2, 0, 1], [0, 0, 2, 0, 1, 1]], np.uint32)  # of group 0 the items 0, 2, 1
    order = Order(table)
    held = {0: [0, 0, 1, 3, 2], 1: [0, 1, 1], 2: [0]}

    def load(group):
        rows = [(group, item) for item in held[group]]
        places = order.places(group, np.array(held[group]))
        return Group(rows, places, lambda rows, chosen: [rows[i] for i in chosen])

    found = [row for run in in_order(order, load) for row in run]
    assert found == [(0, 0), (0, 0), (1, 0), (0, 2), (2, 0), (0, 1), (1, 1), (1, 1)]  # item 3 is none of these


def tokenized(corpus: Corpus, monkeypatch, records_of: Artifact, settings, earlier: Artifact | None = None):
    """Tokens of an ingest's records, and the numbers of the shards that were tokenized for them."""
    read = []

    def here(context, shards, text_uri, notes):
        done = storage.list_files(f"{notes}/shards")
        tokenizer = ShardTokenizer(context.config, None, text_uri, context.output, notes)
        for shard in shards:
            if f"{shard.number:05d}.json" not in done:
                read.append(shard.number)
                tokenizer({"index": shard.number, "uri": shard.uri})

    monkeypatch.setattr(pretokenize, "_tokenize", here)
    name = f"{next(_numbers):064x}"
    work = corpus.store.work_uri("pretokenize", name)
    context = SimpleNamespace(
        config=settings,
        records=records_of,
        tokenizer=None,
        output=f"{work}/output",
        state=f"{work}/state",
        predecessor=earlier,
        progress=lambda *a: None,
        tracker=SimpleNamespace(log_text=lambda *a: None),
    )
    metrics = pretokenize.run(context)
    facts = {"stage": "pretokenize", "fingerprint": name, "metrics": metrics, "pipeline": ""}
    facts["times"] = {"ended_unix": 1.0}
    return corpus.store.publish("pretokenize", name, work, facts), read


def words(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnop", k=rng.randrange(2, 8))) for _ in range(60))


def documents(tokens: Artifact) -> list[tuple]:
    found = []
    for split in records.SPLITS:
        held = TokenSet(tokens, split)
        for n in range(len(held)):
            row = held.row(n)
            found.append((split, row["id"], row["bytes"], [segment.text_ids.tolist() for segment in held.document(n)]))
    return sorted(found)


def test_only_what_is_new_is_tokenized(monkeypatch):
    corpus = Corpus(sources=[{"kind": "text", "uri": "ROOT/txt", "name": "txt"}])
    for n in range(24):
        corpus.put(f"txt/{n:02d}.txt", words(n))
    before = corpus.ingest()
    settings = pretokenize.Config(vocab_size=300)
    first, read = tokenized(corpus, monkeypatch, before, settings)
    assert read == [0, 1, 2, 3, 4, 5]
    corpus.put("txt/05b.txt", "Something new between the others, which nobody has said. ")
    corpus.put("txt/30.txt", words(3))  # a copy
    corpus.remove("txt/09.txt")
    now = corpus.ingest(before)
    kept = settings.model_copy(update={"text_tokenizer": first.file("text.json")})
    second, read = tokenized(corpus, monkeypatch, now, kept, first)
    assert read == [2, 6]  # the shard that a file has left, and the new one
    anew, _ = tokenized(corpus, monkeypatch, corpus.ingest(), kept)
    assert documents(second) == documents(anew) and len(documents(second)) == 24
    facts = [storage.load_json(a.file("tokens.json")) for a in (second, anew)]
    assert facts[0] == facts[1] and anew.metrics.items() <= second.metrics.items()
    told = {name: second.metrics[f"bytes_per_token_{name}"] for name in ("new", "before")}
    assert told["new"] > 0 and told["before"] > 0 and told["new"] != told["before"]
    assert "bytes_per_token_new" not in anew.metrics
    other, read = tokenized(corpus, monkeypatch, now, settings.model_copy(update={"vocab_size": 290}), first)
    assert len(read) == 7 and documents(other) != documents(second)  # by another text tokenizer
