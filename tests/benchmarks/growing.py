"""What a grown corpus costs beside the first time: 1% of new files, each stage's body and its publication in this
process, without Ray. Part `growing` of `data.py`."""

from __future__ import annotations

import itertools
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
