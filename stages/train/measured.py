"""How long a step of `train` takes a worker on this machine: a few real steps at the stage's shape, of a new model on
documents that are made up. In: the stage's config, the model's, the number of workers. Out: seconds.

To be called in a process of its own, with the variables that ranks have. What workers send each other is left out.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from omniloom.infra.training.launch import single_process
from omniloom.models.unified.batch import Batch, Document, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.layouts import plain_text, text_to_visual
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.train.config import Config
from omniloom.stages.train.memory import DOCUMENT, one_pass
from omniloom.stages.train.worker import engine_of, objective_of

_WARM, _TIMED = 2, 6
_SIDE = 8  # positions of a picture's
_MARKS = 4  # places of a document that are neither words nor a picture's


def step_seconds(
    config: Config, model_config: UnifiedConfig, workers: int, distillation: Distillation | None = None
) -> float:
    """Of one of so many workers; the median of some."""
    torch.set_num_threads(int(config.workers.cpus) or 1)
    torch.manual_seed(config.seed)
    found = []
    with single_process():
        teacher = UnifiedModel(model_config) if distillation else None
        objective = objective_of(UnifiedModel(model_config), config, {}, None, distillation, teacher)
        engine = engine_of(objective, config, workers)
        batch = _batch(config, model_config, workers, objective).to(engine.device)
        for step in range(_WARM + _TIMED):
            began = time.perf_counter()
            for _ in range(engine.accumulate):
                engine.backward(engine(batch, list(range(len(batch.ids))))[0])
                engine.step(step)
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
    return statistics.median(found[_WARM:])


def _batch(config: Config, model: UnifiedConfig, workers: int, objective: UnifiedObjective) -> Batch:
    """A pass's rows, full of documents, with what the objective needs beside them."""
    length, rng = config.packing.length, np.random.default_rng(config.seed)
    places = min(length, DOCUMENT)
    rows = one_pass(config, model, workers).positions // length
    documents = [[_document(config, model, places, rng) for _ in range(length // places)] for _ in range(rows)]
    device = "cuda" if config.workers.gpus else "cpu"
    batch = collate(documents, length, model, device)
    batch.unconditioned = objective.beside(documents, device)
    return batch


def _document(config: Config, model: UnifiedConfig, places: int, rng: np.random.Generator) -> Document:
    """Of so many places: words, and before its end a picture where one is trained and has room."""
    specials, picture = model.specials, _SIDE * _SIDE
    if not config.trained or places < picture + _MARKS:
        return plain_text(rng.integers(0, model.vocab_size, places - 2).tolist(), specials)
    words = rng.integers(0, model.vocab_size, places - _MARKS - picture)
    kind = OBJECTIVES[config.trained[0]].representation
    size = getattr(model, kind.size)
    values = rng.integers(0, size, picture) if kind.discrete else rng.standard_normal((picture, size), np.float32)
    return text_to_visual(words, values, (1, _SIDE, _SIDE), specials, objective=config.trained[0])
