"""How long a step of `train_scorer` takes a worker on this machine: real steps at the stage's shape, of new models on
noise and captions of full length. In: the stage's config and the shape of what is trained. Out: seconds.

What workers send each other and what decodes and changes pictures is left out, and the cosines are those of a worker's
own pairs. To be called in a process of its own, with the variables that ranks have.
"""

from __future__ import annotations

import statistics
import time

import torch

from omniloom.infra.training.launch import single_process
from omniloom.models.features.clip_config import ClipConfig
from omniloom.models.features.dual import of_config
from omniloom.models.scorer.objective import ScorerObjective
from omniloom.stages.scorer.config import Config
from omniloom.stages.scorer.trainer import engine_for

_WARM, _TIMED = 2, 5


def step_seconds(config: Config, clip: ClipConfig) -> float:
    """Of all folds, one after the other; the median of some."""
    torch.set_num_threads(int(config.workers.cpus) or 1)
    torch.manual_seed(config.seed)
    mine = -(-config.batch // config.workers.most)
    pixels = torch.randn(mine, 3, clip.image_size, clip.image_size)
    texts = torch.randint(clip.vocab_size, (mine, clip.length)).tolist()
    found = []
    with single_process():
        objectives = [ScorerObjective(of_config(clip), config.loss) for _ in range(config.folds)]
        engines = [engine_for(config, objective, config.workers.most) for objective in objectives]
        for step in range(_WARM + _TIMED):
            began = time.perf_counter()
            for engine in engines:
                engine.backward(engine(pixels.to(engine.device), texts)[0])
                engine.step(step)
            if engines[0].device.type == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
    return statistics.median(found[_WARM:])
