"""Stage `train_scorer`: a dual encoder that judges how well pictures and captions go together.

In: records. Out: `scorer/N/`, a folder as `transformers` saves a CLIP, for each fold, `scorer.json`, and in `report/`
the curves and `scorer.html` with the own caption's recall at 1 among others.
It learns the captioned images of the train split, a picture to be near to its own caption and far from the other
captions of the batch of all workers (arXiv 2103.00020), or takes a pretrained CLIP or SigLIP. With `folds` several are
trained, of which each leaves out a part of the records, which it then judges without having learnt them by heart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.infra.training import checkpoint
from omniloom.infra.training.launch import launch
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.checkpoints.clip_folder import check_clip_folder
from omniloom.stages.scorer.config import Config
from omniloom.stages.scorer.job import END, Job

__all__ = ["VERSION", "Config", "check", "check_counts", "needs", "run", "summary"]

VERSION = 2


def needs(config: Config) -> Needs:
    return Needs.of(config.workers)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    kinds = getattr(upstream.get("records"), "kinds", None)
    if kinds is not None and "image" not in kinds:
        raise InputError("no source of stages.ingest.sources gives images, which a scorer learns")
    if config.pretrained and files:
        if not check_clip_folder(config.pretrained, "pretrained").text:
            raise InputError("has no tower of texts", field="pretrained", file=config.pretrained)


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> Iterator[str]:
    """Check that there are images to learn from; a warning where there are fewer than a step takes."""
    number = counts.get("records_train_image")
    if number == 0:
        raise InputError("the corpus holds no image in its train split", field="batch")
    if number is not None and config.steps and number < config.batch:
        yield f"{number:,} images in the train split, fewer than the {config.batch} pairs of one step"


def work(job: Job) -> None:
    """One rank. What it needs is imported there alone: the stage's body, which waits for the ranks, loads no torch."""
    from omniloom.stages.scorer.worker import train_worker

    train_worker(job)


def run(context: StageContext) -> dict:
    config: Config = context.config
    checkpoint.check(context.state)
    words = storage.join(context.state, "tokenizer.json")
    if not storage.exists(words):
        storage.write_bytes(words, _words(config, context.records).encode())
    job = Job(config, context.records, words, context.output, context.state, context.progress, context.tracker)
    launch(work, job, config.workers, f"{context.stage}-{context.fingerprint[:12]}", context.work)
    return storage.load_json(storage.join(context.state, "metrics.json"))


def summary(metrics: dict) -> str:
    if "recall_at_1" not in metrics:
        return f"steps {metrics['steps']:,}; the test split has too few captions to measure retrieval on"
    count, recall = metrics["retrieval_captions"], metrics["recall_at_1"]
    return f"own caption first of {count}: {recall:.1%} (by chance {1 / count:.1%})"


def _words(config: Config, corpus: Artifact) -> str:
    """The text tokenizer as JSON: the pretrained model's, or one that is learnt from the captions of the train split,
    which ends every text with its last token."""
    if config.pretrained:
        return storage.read_bytes(storage.join(config.pretrained, "tokenizer.json")).decode()
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    from omniloom.models.text import TextTokenizer
    from omniloom.stages.data import records

    rows = records.iterate(corpus.uri, kinds=["image"], split="train", columns=("captions",))
    captions = [caption for row in rows for caption in row["captions"] or ()]
    if not captions:
        raise InputError("no image of the train split has a caption, which a scorer learns", field="batch")
    words = Tokenizer.from_str(TextTokenizer.train(captions, config.vocab_size).to_json())
    words.add_special_tokens([END])  # not <eos>: its id is 2, which old configs of CLIP have for another
    ends = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, words.token_to_id(END))])
    words.post_processor = ends
    return json.dumps(json.loads(words.to_str()), sort_keys=True, ensure_ascii=False)
