"""What a training takes: memory as torch's allocator saw it, every allocation and release, summed up (a process's own
peak would count imports too, and no page that was never written); and the seconds of a step. Each with what the
formulas say."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.memory import passing_memory, state_memory
from omniloom.infra.training.sequence import SequenceGroup
from omniloom.models.unified.adapter import lora
from omniloom.models.unified.adapter.config import AdapterConfig, trained_parameters
from omniloom.models.unified.batch import Batch, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.layouts import text_to_visual
from omniloom.models.unified.memory import Pass, pass_memory
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.seconds import pass_seconds, update_seconds

STEPS = 3
_MARK = 7_654_321


@dataclass(frozen=True)
class Case:
    config: UnifiedConfig
    engine: EngineConfig
    rows: int = 1
    length: int = 512
    accumulate: int = 1
    caption: int = 160
    ranks: int = 1
    sequence_parallel: int = 1
    adapter: AdapterConfig | None = None

    def batch(self, seed: int = 0) -> Batch:
        rng, c = np.random.default_rng(seed), self.config

        def document() -> list:
            values = rng.normal(size=(64, c.latent_dim or 1)).astype("f4")
            words = rng.integers(6, c.vocab_size, self.caption)
            return text_to_visual(words, values, (1, 8, 8), c.specials, objective="latent_diffusion")

        count = self.length // (self.caption + 64 + 6)
        return collate([[document() for _ in range(count)] for _ in range(self.rows)], self.length, c, "cpu")


@dataclass(frozen=True)
class Taken:
    """Bytes that stay between steps, and the most of a step."""

    state: int
    peak: int


def stepper(case: Case, seed: int = 0) -> Callable[[int], None]:
    """Trains the step of that number; a process group must exist."""
    batch = case.batch(seed)
    model = UnifiedModel(case.config)
    model.checkpoint_activations = case.engine.activation_checkpointing
    group = SequenceGroup(case.sequence_parallel) if case.sequence_parallel > 1 else None
    scale_of = None
    if case.adapter:
        lora.attach(model, case.adapter)
        trains = lora.trains(case.adapter, case.config, case.config)
        scale_of = lambda name: float(trains(name.removeprefix("model.")))  # noqa: E731
    objective = UnifiedObjective(model, DiffusionConfig(), objectives=("latent_diffusion",), sequence=group)
    engine = Engine(
        objective, OptimizerConfig(), case.engine, 100, case.rows, accumulate=case.accumulate, lr_scale=scale_of
    )

    def run(step: int) -> None:
        for _ in range(case.accumulate):
            engine.backward(engine(batch, list(range(case.rows)))[0])
            engine.step(step)

    return run


def seconds(cases: Mapping[str, Case], turns: int) -> dict[str, float]:
    """Of a step, CPU seconds of this thread: the least of some, in which the cases take turns. The first warms up."""
    made, found = {name: stepper(case) for name, case in cases.items()}, dict.fromkeys(cases, float("inf"))
    for turn in range(turns + 1):
        for name, step in made.items():
            began = time.thread_time()
            step(turn)
            if turn:
                found[name] = min(found[name], time.thread_time() - began)
    return found


def predicted_seconds(case: Case) -> float:
    """Of a core that is as the formulas' is."""
    update = update_seconds(num_parameters(case.config))
    return case.accumulate * pass_seconds(case.config, _one_pass(case), case.adapter) + update


def measured(case: Case, seed: int = 0) -> Taken:
    """Of this rank; a process group must exist."""
    return measured_steps(lambda: stepper(case, seed))


def measured_steps(make: Callable[[], Callable[[int], None]]) -> Taken:
    """Of what `make` makes and its steps by number."""
    activity = torch.profiler.ProfilerActivity.CPU
    gc.collect()  # what earlier trainings have left must not be released within this one
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        run = make()
        for step in range(STEPS):
            run(step)
            gc.collect()  # tensors in cycles are of no step, and go when the collector happens to run
            time.sleep(0.05)  # the group's threads let go of what they have reduced when they come to it
            torch.empty(_MARK, dtype=torch.uint8)  # an allocation that stands out: clocks may differ
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    sizes = np.array([size for _, size in events])
    total, marks = np.cumsum(sizes), np.flatnonzero(sizes == _MARK)
    last = slice(marks[-2] + 2, marks[-1])  # behind the release of the mark before
    return Taken(int(total[last.stop - 1]), int(total[last].max()))


def predicted(case: Case) -> Taken:
    parameters, frozen, one = num_parameters(case.config), 0, _one_pass(case)
    if case.adapter:
        added, whole = trained_parameters(case.adapter, case.config, case.config)
        parameters, frozen = added + whole, parameters - whole
    state = sum(state_memory(parameters, case.engine, case.ranks, frozen).values())
    taken = pass_memory(case.config, one)
    passing = passing_memory(
        parameters,
        case.engine,
        case.ranks,
        case.accumulate,
        taken["activations"] + taken["casts"],
        taken["logits"],
    )
    return Taken(state, state + sum(passing.values()))


def _one_pass(case: Case) -> Pass:
    batch = case.batch()
    whole = case.engine.zero_stage == 3
    adapted, dropped, spared = case.adapter.kept(case.config, whole) if case.adapter else (0, 0, 0)
    return Pass(
        positions=batch.ids.numel() // case.sequence_parallel,
        labels=batch.targets["text"] // case.sequence_parallel,
        scores=batch.plan.bias.numel() // case.sequence_parallel,
        bf16=case.engine.precision == "bf16",
        recompute=case.engine.activation_checkpointing,
        sequence_parallel=case.sequence_parallel,
        adapted=adapted,
        dropped=dropped,
        spared=spared,
        pictures=batch.tokens["visual"] // case.sequence_parallel,
        pairs=batch.ids.numel() * batch.ids.shape[1] // case.sequence_parallel,
    )
