"""What a grown corpus costs beside the first time: 1% of new files, each stage's body and its publication in this
process, without Ray; and how settling grows. Parts `growing` and `settling` of `data.py`."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore

COUNTS = {"pictures": 3000, "texts": 20000, "tokens": 2000}
_numbers = itertools.count()


class Stages:
    """A storage, and what the stages make in it here, each with the CPU seconds that it took."""

    def __init__(self, folder: Path):
        self.store = ArtifactStore(str(folder))

    def ingest(self, source: dict, earlier: Artifact | None) -> tuple[Artifact, float]:
        from omniloom.stages.ingest import stage

        stage._by_ray = lambda groups, *given: (list(stage.ingest_group(group, *given)) for group in groups)
        config = stage.Config.model_validate({"sources": [source]})
        return self._made("ingest", lambda context: stage.run(context), config=config, predecessor=earlier)

    def pretokenize(self, records: Artifact, earlier: Artifact | None, **fields) -> tuple[Artifact, float]:
        from omniloom.stages.pretokenize import stage
        from omniloom.stages.pretokenize.shard import ShardTokenizer

        def here(context, shards, text_uri, notes):
            done = storage.list_files(storage.join(notes, "shards"))
            todo = [{"index": s.number, "uri": s.uri} for s in shards if f"{s.number:05d}.json" not in done]
            if todo:
                ShardTokenizer(context.config, None, text_uri, context.output, notes).tokenize(todo)

        stage._tokenize = here
        config, tracker = stage.Config(**fields), SimpleNamespace(log_text=lambda *a: None)
        given = {"config": config, "records": records, "tokenizer": None, "tracker": tracker, "predecessor": earlier}
        return self._made("pretokenize", stage.run, **given)

    def _made(self, stage: str, run, **given) -> tuple[Artifact, float]:
        name = f"{next(_numbers):064x}"
        work = self.store.work_uri(stage, name)
        context = SimpleNamespace(output=f"{work}/output", state=f"{work}/state", progress=lambda *a: None, **given)
        start = time.process_time()
        metrics = run(context)
        facts = {"stage": stage, "fingerprint": name, "metrics": metrics, "pipeline": "", "times": {"ended_unix": 1.0}}
        made = self.store.publish(stage, name, work, facts)
        return made, time.process_time() - start


def grow(folder: Path, part: str, count: int, prefix: str, seed: int) -> dict:
    """`count` more files for a part."""
    from data import picture, sentence

    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for n in range(count):
        if part == "pictures":
            (folder / f"{n:06d}{prefix}.jpg").write_bytes(picture(rng))
        else:
            (folder / f"{n:06d}{prefix}.txt").write_text(sentence(rng, 180 if part == "texts" else 1500))
    return {"kind": "image_folder" if part == "pictures" else "text", "uri": str(folder)}


def growing(parts: list[str], repeats: int = 3) -> None:
    for part in parts:
        with tempfile.TemporaryDirectory() as name:
            seconds, more = measured(Path(name), part, repeats)
        print(
            f"{part}: {COUNTS[part]:,} files in {seconds:.2f} s CPU, 1% more in {more:.3f} s: {more / seconds:.1%} "
            "(goal 5%)",
            flush=True,
        )


def measured(folder: Path, part: str, repeats: int) -> tuple[float, float]:
    """CPU seconds of the first time and of 1% more."""
    stages = Stages(folder / "runs")
    source = grow(folder / "in", part, COUNTS[part], "", 7)
    first, seconds = _least(lambda: stages.ingest(source, None), repeats)
    if part != "tokens":
        grow(folder / "in", part, COUNTS[part] // 100, "b", 8)
        return seconds, _least(lambda: stages.ingest(source, first), repeats)[1]
    learnt, _ = stages.pretokenize(first, None, vocab_size=2000)
    told = {"text_tokenizer": learnt.file("text.json")}
    tokens, seconds = _least(lambda: stages.pretokenize(first, None, **told), repeats)
    grow(folder / "in", part, COUNTS[part] // 100, "b", 8)
    grown, _ = stages.ingest(source, first)
    return seconds, _least(lambda: stages.pretokenize(grown, tokens, **told), repeats)[1]


def _least(make, repeats: int) -> tuple[Artifact, float]:
    found = [make() for _ in range(repeats)]
    return min(found, key=lambda pair: pair[1])


# ---- settling ----

SHARD = 8192  # texts


def settle_one(count: int) -> dict:
    """Settling of generated keys of texts in this process, the first time and with 1% more: CPU seconds, and memory at
    its peak."""
    from omniloom.stages.ingest.increments.in_order import Order
    from omniloom.stages.ingest.splitting.keys import Corpus
    from omniloom.stages.ingest.splitting.settling import settle

    splits = {"train": 0.9, "validation": 0.05, "test": 0.05}
    found: dict[str, float] = {"count": count}
    earlier, groups, items = None, [], []
    with tempfile.TemporaryDirectory() as folder:
        for step, more in (("first", count), ("again", count // 100)):
            for at in range(0, more, SHARD):
                size = min(SHARD, more - at)
                keys_of_texts(folder, len(groups), size)
                groups.append(np.full(size, len(groups), np.uint32))
                items.append(np.arange(size, dtype=np.uint32))
            start = time.process_time()
            order = Order(np.stack([np.concatenate(groups), np.concatenate(items)]))
            settled = settle(Corpus(folder, order), sum(map(len, groups)), splits, earlier)
            found[step] = time.process_time() - start
            found[f"{step} MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            found["twins"] = settled.counts["near_twins"]
            earlier = Artifact("ingest", "0" * 64, folder, {})
    return found


def keys_of_texts(output: str, group: int, count: int) -> None:
    """The keys of a shard of texts, of which one in fifty is a near twin of the one before."""
    import pyarrow as pa

    from omniloom.stages.data import records
    from omniloom.stages.data.media.sketches import SKETCH
    from omniloom.stages.ingest.splitting import keys

    rng = np.random.default_rng(group)
    sketches = rng.integers(0, 1 << 32, (count, SKETCH), np.uint32)
    for n in range(1, count, 50):
        sketches[n, SKETCH // 5 :] = sketches[n - 1, SKETCH // 5 :]
    ids = np.frombuffer(rng.bytes(32 * count).hex().encode(), np.uint8)

    def column(values: np.ndarray, kind) -> pa.Array:
        data = values.tobytes()
        offsets = np.arange(count + 1, dtype=np.int32) * (len(data) // count)
        return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)])

    given = {
        "id": column(ids, pa.string()),
        "kind": pa.array(["text"] * count),
        "source": pa.array(["texts"] * count),
        "path": pa.array([f"{group}/{n}.txt" for n in range(count)]),
        "part": np.zeros(count, np.int32),
        "pictures": pa.array([[]] * count, pa.list_(pa.string())),
        "looks": pa.array([[]] * count, pa.list_(pa.binary())),
        "sketch": column(sketches, pa.binary()),
        "sketched": np.ones(count, bool),
        "item": np.arange(count, dtype=np.uint32),
        "captioned": np.zeros(count, np.uint32),
        "synthetic": np.zeros(count, bool),
        "multipage": np.zeros(count, bool),
    }
    columns = [given.get(field.name, pa.nulls(count, field.type)) for field in keys.SCHEMA]
    name = records.shard_name(group).rpartition("/")[2]
    keys.write_table(output, name, pa.table(columns, schema=keys.SCHEMA))


def settling(counts: list[int]) -> None:
    told = []
    for count in counts:
        command = [sys.executable, str(Path(__file__).with_name("data.py")), "settle_one", str(count)]
        told.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        row = told[-1]
        print(
            f"{count:,} texts: {row['first']:.2f} s CPU, {row['first MB']:.0f} MB; 1% more {row['again']:.2f} s, "
            f"{row['again MB']:.0f} MB; {row['twins']:,} near twins",
            flush=True,
        )
    if len(told) > 1:
        for name in ("first", "again"):
            logs = np.log([[row["count"], row[name]] for row in told])
            slope = np.polyfit(logs[:, 0], logs[:, 1], 1)[0]
            print(f"{name}: grows with exponent {slope:.2f} (goal 1.05)")
