"""The body of `recaption`: embeds pictures and captions, parts them by their scores, has a model write, and makes the
shards again.

In: the stage's context. Out: the artifact's files and the stage's metrics. Below the state, NNNNN the shard:
    embedded/NNNNN.npz    embeddings of its train images and of their captions (`stages.recaption.scoring`)
    written/NNNNN.json    what the model wrote of these
    rewritten/NNNNN.json  that the shard is there, and the lines of its decisions
Memory: the embeddings of all, 4 * dim bytes a picture and a caption.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.base import StageContext
from omniloom.stages.checkpoints.scorer import Scorer, load_scorer
from omniloom.stages.curate.item import Item
from omniloom.stages.curate.pictures import thumbnail
from omniloom.stages.data import records
from omniloom.stages.data.media import decode as media
from omniloom.stages.recaption import page, threshold
from omniloom.stages.recaption.captioning import Captioner
from omniloom.stages.recaption.config import Config
from omniloom.stages.recaption.deciding import Scored, applied, decide
from omniloom.stages.recaption.scoring import Embedded, Judge, embed, judge_of, of_folds, train_images

_SAMPLES = 3  # of each outcome of a shard that are kept with their pictures


def recaption(context: StageContext) -> dict:
    config: Config = context.config
    torch.set_num_threads(max(1, int(config.cpus)))
    device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
    scorer = load_scorer(context.inputs["scorer"], device)
    captioner = Captioner(config, device) if config.model else None
    shards = records.shards(context.records.uri)
    progress = _Progress(context, len(shards) * (3 if captioner else 2))
    held = [progress.after(_embedded(context, scorer, shard, number)) for number, shard in enumerate(shards)]
    rng = np.random.default_rng((config.seed, 51))
    judge = judge_of(held, scorer.scales, rng)
    others = judge.of_others(held, rng)
    scores = [judge.scores(one.pictures[one.of], one.texts, one.folds[one.of]) for one in held]
    own = np.concatenate([np.zeros(0), *scores])
    parting = threshold.part(own, others, config.threshold) if len(own) and len(others) else None
    lowest = parting.threshold if parting else config.threshold
    if lowest is None:
        raise InputError("too few captions of the train split to tell right from wrong by; set one", field="threshold")
    written: list[list[list[str]]] = [[[] for _ in one.rows] for one in held]
    if captioner:
        written = [progress.after(_written(context, captioner, shard, n)) for n, shard in enumerate(shards)]
    lines: list[dict] = []
    for number, (shard, one) in enumerate(zip(shards, held, strict=True)):
        old = _by_picture(one, one.of, one.words, scores[number])
        new = _scored(scorer, judge, one, written[number])
        lines += progress.after(_rewritten(context, shard, number, old, new, lowest, captioner))
    outcomes = Counter(line["outcome"] for line in lines)
    _show(context, page.render(parting, own, others, outcomes, lines), lines)
    counts = records.counts(context.output)
    if not counts["records"]:
        raise InputError("leaves no record; with keep they stay without captions", field="uncaptioned")
    metrics = {**counts, **{f"recaption_{name}": count for name, count in outcomes.items()}}
    return metrics | ({f"recaption_{name}": value for name, value in vars(parting).items()} if parting else {})


class _Progress:
    """Counts what is done of so many shards."""

    def __init__(self, context: StageContext, total: int):
        self.context, self.total, self.done = context, total, 0

    def after(self, made: Any) -> Any:
        self.done += 1
        self.context.progress(self.done, self.total, "shards")
        return made


def _embedded(context: StageContext, scorer: Scorer, shard: str, number: int) -> Embedded:
    place = storage.join(context.state, "embedded", f"{number:05d}.npz")
    if not storage.exists(place):
        embed(shard, scorer).save(place)
    return Embedded.load(place)


def _written(context: StageContext, captioner: Captioner, shard: str, number: int) -> list[list[str]]:
    """What the model writes of each train image of a shard, in order."""
    place = storage.join(context.state, "written", f"{number:05d}.json")
    if (found := storage.read_json(place)) is not None:
        return found["captions"]
    captions: list[list[str]] = []
    for part in train_images(shard):
        pictures = [media.decode_image(row["media"], media.NO_LIMITS) for _, row in part]
        seeds = [context.config.seed + int(row["id"][:12], 16) for _, row in part]
        captions += captioner.write(pictures, seeds)
    storage.write_json(place, {"captions": captions})
    return captions


def _scored(scorer: Scorer, judge: Judge, one: Embedded, written: Sequence[Sequence[str]]) -> list[Scored]:
    """What a model wrote of each train image of a shard, with its scores."""
    of = np.array([place for place, own in enumerate(written) for _ in own], np.int64)
    words = [caption for own in written for caption in own]
    if not words:
        return [Scored() for _ in written]
    folds = one.folds[of]
    return _by_picture(one, of, words, judge.scores(one.pictures[of], of_folds(scorer.texts(words), folds), folds))


def _by_picture(one: Embedded, of: np.ndarray, words: Sequence[str], scores: np.ndarray) -> list[Scored]:
    held: list[tuple[list[str], list[float]]] = [([], []) for _ in one.rows]
    for place, word, score in zip(of.tolist(), words, scores.tolist(), strict=True):
        held[place][0].append(word)
        held[place][1].append(score)
    return [Scored(*own) for own in held]


def _rewritten(
    context: StageContext,
    shard: str,
    number: int,
    old: Sequence[Scored],
    new: Sequence[Scored],
    lowest: float,
    captioner: Captioner | None,
) -> list[dict]:
    """Writes the shard as it stays; the lines of its decisions, some of each outcome with their pictures."""
    marker = storage.join(context.state, "rewritten", f"{number:05d}.json")
    if (found := storage.read_json(marker)) is not None:
        return found["lines"]
    made_by: Mapping[str, str] = captioner.made_by if captioner else {}
    lines: list[dict] = []
    seen: Counter = Counter()
    pairs = iter(zip(old, new, strict=True))
    with records.shard_writer(storage.join(context.output, "records", shard.rpartition("/")[2])) as writer:
        for row in records.iterate_shard(shard, batch_size=16):
            if row["kind"] != "image" or row["split"] != "train":
                writer.add(row)
                continue
            decision = decide(*next(pairs), lowest, context.config.uncaptioned == "leave_out")
            line = decision.line(row)
            if seen[decision.outcome] < _SAMPLES and (png := thumbnail(Item(row))):
                line["png"] = base64.b64encode(png).decode()
            seen[decision.outcome] += 1
            lines.append(line)
            if (stays := applied(row, decision, made_by)) is not None:
                writer.add(stays)
    storage.write_json(marker, {"lines": lines})
    return lines


def _show(context: StageContext, html: str, lines: Sequence[Mapping[str, Any]]) -> None:
    storage.write_bytes(storage.join(context.output, "recaption.html"), html.encode())
    context.tracker.log_text(html, "recaption.html")
    told = ({name: value for name, value in line.items() if name != "png"} for line in lines)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told)
    storage.write_bytes(storage.join(context.output, "recaption", "decisions.jsonl"), text.encode())
