"""The model card: what a model is, what it was made from, how well it does and how it is used. In: its config.json,
its training, the artifacts that it was made from, figures. Out: Markdown, with the metadata that Hugging Face's pages
read or without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.secrets import redact

_FIGURES = 24


def card(
    title: str,
    config: Mapping[str, Any],
    training: Artifact | None,
    made_of: Sequence[Artifact] = (),
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """`config`: the contents of the model's config.json; `training` None: a model whose artifact is not there tells
    nothing of its making. `made_of`: with the training itself, in the order of the pipeline."""
    drawn = bool(config["objectives"])
    tag = "any-to-any" if drawn else "text-generation"
    front = ("---", "library_name: omniloom", f"pipeline_tag: {tag}", "tags: [omniloom, safetensors]", "---", "")
    lines = [*_repository(config, training), *body(config, training, made_of, metrics)]
    return "\n".join([*front, f"# {title}", "", *lines]) + "\n"


def body(
    config: Mapping[str, Any],
    training: Artifact | None,
    made_of: Sequence[Artifact] = (),
    metrics: Mapping[str, Any] | None = None,
) -> list[str]:
    """The card's lines without its head: of the version's page in a model registry."""
    lines = [*_what(config)]
    if training:
        lines += [*_data(made_of), *_lineage(training, made_of)]
    return [*lines, *_figures(metrics or {})]


def _what(config: Mapping[str, Any]) -> Iterator[str]:
    drawn, unified = config["objectives"], config["unified"]
    size = f"{unified['layers']} layers, {unified['width']} wide, over a vocabulary of {unified['vocab_size']:,}"
    yield f"One transformer of {size}, that reads and writes text" + (" and pictures." if drawn else ".")
    if drawn and config.get("image_size"):
        size = "x".join(map(str, config["image_size"]))
        frames = config.get("num_frames") or 1
        video = f", videos of {frames} frames at {config['fps']:g} a second" if frames > 1 else ""
        yield f"Pictures of {size} pixels{video}; trained by {', '.join(drawn)}."
    yield ""


def example(training: Artifact | None) -> str:
    """A caption that the model was asked for while it was trained."""
    prompts = (storage.read_json(training.file("report", "prompts.json")) if training else None) or {}
    return (prompts.get("captions") or ["a caption"])[0]


def _repository(config: Mapping[str, Any], training: Artifact | None) -> Iterator[str]:
    caption = json.dumps(example(training), ensure_ascii=False)
    yield from ("## Use", "", "Needs torch and safetensors; nothing else, and no code from elsewhere.", "", "```python")
    yield from ("import sys", "", 'sys.path.insert(0, "FOLDER")  # this one')
    yield from ("from modeling_omniloom import OmniLoomForGeneration", "")
    yield 'model = OmniLoomForGeneration.from_pretrained("FOLDER")'
    if config["objectives"]:
        yield f"pictures = model.text_to_image([{caption}], seeds=[0])  # uint8 (B, H, W, 3)"
        yield "captions = model.image_to_text(list(pictures))"
    else:
        yield f"texts = model.text_to_text([{caption}], seeds=[0])"
    yield from ("```", "")


def _data(made_of: Sequence[Artifact]) -> Iterator[str]:
    records = [found for found in made_of if "records" in found.metrics]
    if not records:
        return
    yield from ("## Data", "")
    counts = {
        name.removeprefix("records_"): n for name, n in records[-1].metrics.items() if name.startswith("records_")
    }
    kinds = [f"{counts[kind]:,} {kind}s" for kind in ("image", "video", "text", "document") if counts.get(kind)]
    held = f"{counts.get('validation', 0):,} for validation, {counts.get('test', 0):,} for tests"
    yield f"{', '.join(kinds) or 'records'}, of these held out: {held}."
    for found in records:
        if found.metrics.get("rejects"):
            yield f"{found.metrics['rejects']:,} files or rows were rejected."
        for source in found.manifest["config"].get("sources") or ():
            license_ = f", license {source['license']}" if source.get("license") else ""
            yield f"- source {source.get('name') or source.get('kind')} ({source.get('kind')}{license_})"
    yield ""


def _lineage(training: Artifact, made_of: Sequence[Artifact]) -> Iterator[str]:
    yield from ("## Lineage", "", "| stage | artifact | made | code |", "|---|---|---|---|")
    for found in made_of:
        manifest = found.manifest
        code = str(manifest.get("code") or "unknown")[:12]
        yield f"| {found.stage} | `{found.fingerprint}` | {manifest['times']['ended']} | {code} |"
    yield ""
    steps, packages = training.metrics.get("steps"), training.manifest.get("packages") or {}
    if steps:
        yield f"Trained for {steps:,} steps in {training.manifest['times']['seconds']:.0f} s."
    if packages:
        yield "With " + ", ".join(f"{name} {number}" for name, number in packages.items()) + "."
    yield ""


def _figures(metrics: Mapping[str, Any]) -> Iterator[str]:
    figures = {name: value for name, value in metrics.items() if _is_number(value)}
    if not figures:
        return
    yield from ("## Figures", "", "On records that training did not see.", "", "| figure | value |", "|---|---|")
    yield from (f"| {redact(name)} | {value:.4g} |" for name, value in list(figures.items())[:_FIGURES])
    yield ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
