"""The model card: what a model is, what it was made from, how well it does and how it is used. In: its config and its
training. Out: Markdown with the metadata that Hugging Face's pages read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.secrets import redact
from omniloom.pipelines.catalog.lineage import ancestors
from omniloom.pipelines.catalog.places import store_of
from omniloom.pipelines.graph import KNOWN_NAMES

if TYPE_CHECKING:
    from omniloom.models.folder import BundleConfig

_FIGURES = 24


def card(title: str, config: BundleConfig, training: Artifact | None) -> str:
    """`training` None: a model whose artifact is not there tells nothing of its making."""
    lines = [*_head(title, config), *_use(config, training)]
    if training:
        known = {(found.stage, found.fingerprint): found for found in store_of(training).all()}
        lines += [*_data(training, known), *_lineage(training, known), *_figures(training, known)]
    return "\n".join(lines) + "\n"


def _head(title: str, config: BundleConfig) -> Iterator[str]:
    drawn = bool(config.objectives)
    tag = "any-to-any" if drawn else "text-generation"
    yield from ("---", "library_name: omniloom", f"pipeline_tag: {tag}", "tags: [omniloom, safetensors]", "---")
    yield from ("", f"# {title}", "")
    unified = config.unified
    size = f"{unified.layers} layers, {unified.width} wide, over a vocabulary of {unified.vocab_size:,}"
    yield f"One transformer of {size}, that reads and writes text" + (" and pictures." if drawn else ".")
    if drawn and config.image_size:
        size = "x".join(map(str, config.image_size))
        video = f", videos of {config.num_frames} frames at {config.fps:g} a second" if config.num_frames > 1 else ""
        yield f"Pictures of {size} pixels{video}; trained by {', '.join(config.objectives)}."
    yield ""


def _use(config: BundleConfig, training: Artifact | None) -> Iterator[str]:
    prompts = (storage.read_json(training.file("report", "prompts.json")) if training else None) or {}
    caption = json.dumps((prompts.get("captions") or ["a caption"])[0], ensure_ascii=False)
    yield from ("## Use", "", "Needs torch and safetensors; nothing else, and no code from elsewhere.", "", "```python")
    yield from ("import sys", "", 'sys.path.insert(0, "FOLDER")  # this one')
    yield from ("from modeling_omniloom import OmniLoomForGeneration", "")
    yield 'model = OmniLoomForGeneration.from_pretrained("FOLDER")'
    if config.objectives:
        yield f"pictures = model.text_to_image([{caption}], seeds=[0])  # uint8 (B, H, W, 3)"
        yield "captions = model.image_to_text(list(pictures))"
    else:
        yield f"texts = model.text_to_text([{caption}], seeds=[0])"
    yield from ("```", "")


def _data(training: Artifact, known: dict[tuple[str, str], Artifact]) -> Iterator[str]:
    records = [found for found in _made_of(training, known) if "records" in found.metrics]
    if not records:
        return
    yield from ("## Data", "")
    for found in records[-1:]:
        counts = {name.removeprefix("records_"): n for name, n in found.metrics.items() if name.startswith("records_")}
        kinds = [f"{counts[kind]:,} {kind}s" for kind in ("image", "video", "text", "document") if counts.get(kind)]
        yield f"{', '.join(kinds) or 'records'}, of these held out: " + (
            f"{counts.get('validation', 0):,} for validation, {counts.get('test', 0):,} for tests."
        )
        if found.metrics.get("rejects"):
            yield f"{found.metrics['rejects']:,} files or rows were rejected."
        for source in found.manifest["config"].get("sources") or ():
            license_ = f", license {source['license']}" if source.get("license") else ""
            yield f"- source {source.get('name') or source.get('kind')} ({source.get('kind')}{license_})"
    yield ""


def _lineage(training: Artifact, known: dict[tuple[str, str], Artifact]) -> Iterator[str]:
    yield from ("## Lineage", "", "| stage | artifact | made | code |", "|---|---|---|---|")
    for found in _made_of(training, known):
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


def _made_of(training: Artifact, known: dict[tuple[str, str], Artifact]) -> list[Artifact]:
    found = [known[key] for key in ancestors([training], known) if key in known]
    return sorted(found, key=lambda a: (KNOWN_NAMES.index(a.stage) if a.stage in KNOWN_NAMES else 99, a.fingerprint))


def _figures(training: Artifact, known: dict[tuple[str, str], Artifact]) -> Iterator[str]:
    """Of the newest evaluation of this model."""
    own = [
        found
        for found in known.values()
        if found.manifest["inputs"].get(training.stage) == training.fingerprint
        and any(entry["path"] == "metrics.json" for entry in found.manifest["files"])
    ]
    newest = max(own, key=lambda found: found.manifest["times"]["ended_unix"], default=None)
    figures = {name: v for name, v in (newest.metrics if newest else {}).items() if _is_number(v)}
    if not figures:
        return
    yield from ("## Figures", "", "On records that training did not see.", "", "| figure | value |", "|---|---|")
    yield from (f"| {redact(name)} | {value:.4g} |" for name, value in list(figures.items())[:_FIGURES])
    yield ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
