"""The config as a page that explains itself. In: a corpus, sizes. Out: YAML, with what each line is for behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omniloom.infra.secrets import redact_uris
from omniloom.pipelines.starting.corpus import Corpus, Source
from omniloom.pipelines.starting.sizes import Sizes
from omniloom.stages.ingest.look.recognition import line as flow

_WIDTH = 118
_COLUMN = 46  # where comments begin, if what they explain leaves room

Line = tuple[int, str, str]  # depth, text, comment


def page(name: str, corpus: Corpus, sizes: Sizes) -> str:
    lines = [
        *_head(name, corpus, sizes),
        (0, "stages:", "what is made, one after the other; `omniloom plan` shows what is done already"),
        *_ingest(corpus, sizes),
        *_trained(corpus, sizes),
    ]
    return "".join(f"{text}\n" for line in lines for text in _written(line))


def _head(name: str, corpus: Corpus, sizes: Sizes) -> Iterator[Line]:
    counts = ", ".join(f"{corpus.records(kind):,} {kind}s" for kind in corpus.kinds)
    yield 0, "", f"{redact_uris(corpus.uri)}: {counts}" + (f", {corpus.captioned:,} with captions" * bool(corpus.sides))
    yield 0, "", f"sized for a machine of {sizes.machine} (size {sizes.name}); made by `omniloom init`, yours to change"
    yield 0, "", "every key: `omniloom schema`, docs/config.md; change one for one run: omniloom run FILE key=value"
    yield 0, f"name: {name}", "names the pipeline in MLflow and in the storage, and the model in the registry"
    yield 0, f"storage: runs/{name}", "all that runs make; a folder, or s3://bucket/folder"
    yield 0, "seed: 0", "another one gives another model of the same data"


def _ingest(corpus: Corpus, sizes: Sizes) -> Iterator[Line]:
    yield 1, "ingest:", "reads, checks and describes the files; runs again only for what changes"
    yield 2, "sources:", "the folders, each of one kind: docs/sources.md"
    for source in corpus.sources:
        yield 3, f"- {flow(source.options)}", _told(source)
    train, validation, test = sizes.splits
    yield (
        2,
        f"splits: {{train: {train}, validation: {validation}, test: {test}}}",
        "training never sees the last two; copies stay together",
    )


def _told(source: Source) -> str:
    words = f"about {source.records:,} {source.makes} records"
    if source.how:
        return f"{words}; captions from {source.how}"
    return words + (f", {source.captioned:,} with captions" if source.makes in ("image", "video") else "")


def _trained(corpus: Corpus, sizes: Sizes) -> Iterator[Line]:
    kinds = [kind for kind in ("image", "video") if corpus.records(kind)]
    if not kinds and not corpus.records("text"):
        return  # what else there is, no model learns by itself
    if kinds:
        yield from _tokenizers(kinds, sizes)
    yield 1, "pretokenize:", "the corpus as tokens, made once"
    if kinds:
        yield 2, f"image_size: {sizes.side}", f"pixels a side; {sizes.why['side']}"
    if "video" in kinds:
        yield 2, f"video_size: {sizes.side}", "likewise of videos"
        yield 2, f"frames: {sizes.frames}", "of each video, evenly spaced"
    yield 2, f"vocab_size: {sizes.vocab_size}", f"of the text tokenizer that is trained here, {sizes.why['vocab_size']}"
    yield from _train(kinds, sizes)
    yield 1, "evaluate:", "figures and a report from what was held out; registers the model"
    for field, what in (("drawings", "pictures drawn from captions"), ("captions", "pictures described")):
        if kinds:
            yield 2, f"{field}: {sizes.measured}", f"held-out {what}"
    if not kinds:
        yield 2, f"texts: {max(10, sizes.measured)}", "held-out texts for bits per byte"
    yield 2, f"cpus: {min(2, sizes.machine.cpus)}", "of the worker that measures"
    if sizes.machine.gpus:
        yield 2, "gpus: 1", "likewise"


def _tokenizers(kinds: list[str], sizes: Sizes) -> Iterator[Line]:
    rung = sizes.rung
    first = "tokenizer_image" if "image" in kinds else "tokenizer_joint"
    yield 1, f"{first}:", "learns to write a picture as few numbers, and to draw it again from them"
    yield 2, "model:", "its architecture"
    yield 3, f"patch_size: {rung.patch}", f"{sizes.side}x{sizes.side} become {(sizes.side // rung.patch) ** 2} tokens"
    yield 3, "temporal_patch: 4", "frames of a video that are told together"
    yield 3, f"width: {rung.tokenizer_width}", "channels; more draw finer and cost more"
    yield 3, f"heads: {rung.tokenizer_width // 32}", "of attention"
    yield 3, "head_dim: 32", "channels of each"
    yield 3, f"spatial_layers: {rung.tokenizer_layers}", "a letter a layer"
    yield 3, "temporal_layers: 1", "over the frames of a video"
    yield 3, f"decoder_spatial_layers: {rung.tokenizer_layers}", "likewise of what draws"
    yield 3, f"quantizer: {{kind: kl, latent_dim: {rung.channels}}}", "continuous tokens; vq or fsq give codes"
    yield from _loss(sizes.steps(first))
    yield from _clips([kinds[0]], sizes)
    yield from _training(first, sizes, "raise it while the reconstructions in MLflow get sharper")
    if len(kinds) > 1:
        yield 1, "tokenizer_joint:", "goes on from its weights, with videos too"
        yield from _loss(sizes.steps("tokenizer_joint"))
        yield from _clips(kinds, sizes)
        yield from _training("tokenizer_joint", sizes, "of the optimizer")


def _loss(steps: int) -> Iterator[Line]:
    start = steps // 2
    own = {"image_adversarial": 0.005, "video_adversarial": 0.005, "feature_matching": 0.1}
    own |= {"adversarial_start": start, "adversarial_ramp": max(1, steps // 8)}
    yield 2, f"loss: {flow(own)}", "from half of the steps on a critic asks for sharp edges"
    yield 2, "discriminator: {channels: 16, layers: 2}", "that critic"


def _clips(kinds: list[str], sizes: Sizes) -> Iterator[Line]:
    own = {"kinds": kinds, "sizes": [sizes.side]}
    if "image" in kinds:
        own["image_batch"] = sizes.rung.image_batch
    if "video" in kinds:
        own |= {"frames": sizes.frames, "video_batch": max(8, sizes.rung.image_batch // 4)}
    yield 2, f"data: {flow(own)}", "pixels a side, and how many a step; flip: true mirrors half of them"


def _steps(stage: str, sizes: Sizes, why: str) -> Line:
    measured = sizes.step_seconds.get(stage)
    return 2, f"steps: {sizes.steps(stage)}", why + (f"; one takes {measured:.2g} s here" if measured else "")


def _average(most: float, steps: float) -> float:
    """How much of the weights' moving average stays at a step: it reaches back over a part of so many steps."""
    return min(most, round(1 - 1 / steps, 4))


def _training(stage: str, sizes: Sizes, why: str) -> Iterator[Line]:
    steps = sizes.steps(stage)
    yield _steps(stage, sizes, why)
    yield 2, "seed: ${seed}", "the one above"
    warmup = max(1, min(1000, steps // 12))
    rate = 2.0e-3 if sizes.name == "tiny" else 5.0e-4
    yield (
        2,
        f"optimizer: {{lr: {rate}, betas: [0.9, 0.95], warmup_steps: {warmup}, weight_decay: 0.0}}",
        "the learning rate is the first thing to try otherwise",
    )
    yield from _where(steps, sizes, _average(0.99 if sizes.name == "tiny" else 0.999, steps / 4))


def _where(steps: int, sizes: Sizes, ema: float) -> Iterator[Line]:
    precision = "bf16" if sizes.machine.gpus else "fp32"
    device = "GPUs" if sizes.machine.gpus else "CPUs"
    yield 2, f"engine: {{zero_stage: 1, ema_decay: {ema}, precision: {precision}}}", f"as {device} compute fastest"
    own: dict[str, Any] = {"count": sizes.workers}
    if sizes.machine.gpus:
        own["gpus"] = 1
    elif (cpus := sizes.machine.cpus // sizes.workers) > 1:
        own["cpus"] = cpus
    yield 2, f"workers: {flow(own)}", "processes that share the work out; results do not depend on them"
    yield 2, f"validate_every: {max(1, min(2000, steps // 3))}", "steps between looks at what is held out"


def _train(kinds: list[str], sizes: Sizes) -> Iterator[Line]:
    rung = sizes.rung
    yield 1, "train:", "one transformer that reads and writes text" + (" and pictures" if kinds else "")
    if not kinds:
        yield 2, "objectives: {}", "of text alone: there are no pictures"
    yield (
        2,
        f"model: {{width: {rung.width}, layers: {rung.layers}, heads: {rung.heads}, time_dim: {rung.width}}}",
        "its size",
    )
    if kinds:
        yield 2, "diffusion: {predict: v}", "how pictures are drawn: from noise, by their velocity"
    packing: dict[str, Any] = {"length": sizes.length, "window_rows": 128}
    if sizes.mixture:
        packing["mixture"] = sizes.mixture
    why = sizes.why["length"] if kinds else "tokens of a row"
    yield 2, f"packing: {flow(packing)}", why + ("; mixture: shares of the tokens" if sizes.mixture else "")
    yield 2, f"batch_rows: {sizes.batch_rows}", "rows a step"
    steps = sizes.steps("train")
    yield _steps("train", sizes, "raise it while the validation losses in MLflow fall")
    yield 2, "seed: ${seed}", "the one above"
    warmup, rate = min(2000, steps // 12), 1.5e-3 if sizes.name == "tiny" else 3.0e-4
    yield 2, f"optimizer: {{lr: {rate}, warmup_steps: {warmup}, weight_decay: 0.03}}", "as of the tokenizer"
    yield from _where(steps, sizes, _average(0.998 if sizes.name == "tiny" else 0.9995, 0.625 * steps))


def _written(line: Line) -> Iterator[str]:
    """One line of the file; a comment that finds no room behind it stands before it."""
    depth, text, comment = line
    indented = "  " * depth + text
    if not comment:
        yield indented
    elif not text:
        yield f"# {comment}"
    elif len(behind := f"{indented:<{_COLUMN}}  # {comment}") <= _WIDTH:
        yield behind
    else:
        yield "  " * depth + f"# {comment}"
        yield indented
