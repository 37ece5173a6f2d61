"""A faster sampler for a trained model: AMED's predictor (arXiv 2312.00094; `models.unified.diffusion.amed_model`).

In: a train artifact or its `model` folder, prompts, the number of steps. Out: a safetensors file, which `sampling`
takes with the sampler "amed", and lines that compare samplers at the same number of network evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.stages.inference.options import option_error
from omniloom.stages.inference.requests import Request, read_requests
from omniloom.stages.inference.sampling import load, resolve

_COMPARED = 8  # requests


@dataclass(frozen=True)
class Training:
    """`visual` is what sampling will use; the times that a predictor serves are those of its `num_steps`."""

    visual: VisualSampling
    iterations: int = 150
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.visual.num_steps < 2:
            raise option_error(ValueError(f"num_steps: expected at least 2, got {self.visual.num_steps}"))


def train(model: str, training: Training, out: Path, prompts: Path | None = None) -> Iterator[str]:
    """Writes `out`; gives lines to read. `prompts`: a file of requests; by default those that training drew."""
    from omniloom.models.unified.diffusion.amed_model import distances, train_predictor

    requests = read_requests(prompts) if prompts else _trained_prompts(model)
    pictures = [request.pictures() for request in requests]
    loom = load(model)
    visual = resolve(loom, training.visual)
    if visual.diffusion is None or not visual.row.is_diffusion:
        raise InputError(f"{visual.objective} is no diffusion, which this sampler is for", field="--objective")
    prefixes = loom.prefixes([request.prompt for request in requests], pictures, visual)
    grid = loom.grid(1, *loom.size_of(visual), visual.objective)
    predictor, losses = train_predictor(
        loom.model,
        prefixes,
        grid,
        visual,
        iterations=training.iterations,
        batch_size=training.batch_size,
        seed=training.seed,
    )
    tenth = -(-len(losses) // 10)
    yield (
        f"{len(losses)} iterations on {len(requests)} prompts: distance to the teacher "
        f"{sum(losses[:tenth]) / tenth:.3g} at first, {sum(losses[-tenth:]) / tenth:.3g} at the end"
    )
    yield f"distance to a fine solver, of {2 * visual.num_steps - 1} network evaluations:"
    for name, distance in distances(loom.model, prefixes[:_COMPARED], grid, visual, predictor).items():
        yield f"  {name:<15} {distance:.4f}"
    out.parent.mkdir(parents=True, exist_ok=True)
    predictor.save(out)
    yield str(out)


def _trained_prompts(model: str) -> list[Request]:
    """The captions that a train artifact keeps, of which `model` may be a folder."""
    uri = storage.absolute(model)
    for folder in (uri, uri.rstrip("/").rpartition("/")[0]):
        found = storage.read_json(storage.join(folder, "report", "prompts.json"))
        if found and found["captions"]:
            return [Request(caption) for caption in found["captions"]]
    raise InputError("is missing: the model lies in no train artifact that keeps captions", field="--prompts")
