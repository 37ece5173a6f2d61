"""Stage `recaption`: captions of the train split that a scorer does not believe go, and a model's take their place.

In: records, a scorer and, where the config names one, a trained model. Out, below the artifact:
    records/shard-*.parquet      the records, in shards of the same names
    recaption/decisions.jsonl    {source, path, part, outcome, before, written, captions} of each train image
    recaption.html               the scores, where captions are parted, and what became of which, with samples

It reads and makes records, so what follows reads what it leaves. Only images of the train split are judged: what models
are judged by keeps its captions, and videos and documents are passed on. Each record is scored by a scorer that has not
learnt it (`stages.checkpoints.scorer`), and the threshold comes from the scores alone (`stages.recaption.threshold`).
What is done of a shard is written down: a killed run goes on behind it.
Source: CapFilt of BLIP, arXiv 2201.12086, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omniloom.infra.errors import InputError
from omniloom.stages.base import Needs
from omniloom.stages.checkpoints import own_model
from omniloom.stages.recaption.config import Config

if TYPE_CHECKING:
    from omniloom.stages.base import StageContext

__all__ = ["VERSION", "Config", "check", "needs", "resolved", "run", "summary"]

VERSION = 1


def needs(config: Config) -> Needs:
    return Needs(cpus=config.cpus, gpus=config.gpus)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """Check that no scorer judges what it has learnt, and that the model is there."""
    scorer = upstream.get("scorer")
    if getattr(scorer, "steps", 0) and getattr(scorer, "folds", 2) < 2:
        raise InputError(
            "the scorer would judge the records that it has learnt by heart; set stages.train_scorer.folds to 2 or more"
        )
    if config.model and files:
        if (folder := own_model.model_folder(config.model)) is None:
            raise InputError(
                "holds no model; expected a train artifact or its model folder", field="model", file=config.model
            )
        if not own_model.own_config(folder).representations:
            raise InputError("was trained on text alone and describes no pictures", field="model", file=config.model)


def resolved(config: Config, upstream: Mapping[str, Any]) -> Any:
    """What later stages' checks see: the config of the stage whose records these are, with their kinds."""
    return upstream.get("records")


def run(context: StageContext) -> dict:
    """The counts of the records that are left, and of what became of the pictures."""
    from omniloom.stages.recaption.recaptioning import recaption

    return recaption(context)


def summary(metrics: dict) -> str:
    """What a person is told when the stage is done."""
    from omniloom.stages.recaption.deciding import OUTCOMES

    told = ", ".join(f"{name} {metrics[key]:,}" for name in OUTCOMES if metrics.get(key := f"recaption_{name}"))
    wrong = metrics.get("recaption_wrong")
    return f"records {metrics['records']:,}; {told}" + (f"; about {wrong:.1%} were wrong" if wrong is not None else "")
