"""What an engine holds, seen whole: EMA weights in place of the trained ones, whole parameters, a module to evaluate,
the weights to export; and what a checkpoint keeps of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from omniloom.infra.training.config import EngineConfig


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


class EngineWeights:
    """The part of `Engine` that reads and writes what it holds. `engine` is DeepSpeed's, `_trained` are the trained
    parameters in the module's order, `_ema` the moving average of this rank's part of each, `_copy` the module that
    rank 0 evaluates under ZeRO-3."""

    engine: Any
    config: EngineConfig
    device: torch.device
    _trained: list[torch.nn.Parameter]
    _ema: list[torch.Tensor] | None
    _copy: torch.nn.Module | None

    @property
    def module(self) -> torch.nn.Module:
        return self.engine.module

    @staticmethod
    def _local(parameter: torch.Tensor) -> torch.Tensor:
        """This rank's part of a parameter: ZeRO-3 leaves a partition in `ds_tensor`, else all of it."""
        return getattr(parameter, "ds_tensor", parameter).data

    @contextlib.contextmanager
    def averaged(self):
        """The EMA weights in place of the trained ones inside the block (no change where none is kept)."""
        if self._ema is None:
            yield
            return
        kept = [self._local(p).clone() for p in self._trained]
        self._put(self._ema)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        """Set this rank's parts of the weights."""
        for parameter in self._trained:
            if hasattr(parameter, "ds_tensor"):  # ZeRO-3 keeps small parameters whole, which would hide the new part
                getattr(parameter, "partition")(has_been_updated=False)  # noqa: B009
        torch._foreach_copy_([self._local(p) for p in self._trained], values)

    @contextlib.contextmanager
    def full_weights(self):
        """The module with whole parameters on every rank (ZeRO-3 gathers them), to be read; to run it, `evaluated`."""
        if self.config.zero_stage == 3:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
                yield self.module
        else:
            yield self.module

    @contextlib.contextmanager
    def evaluated(self):
        """The module with whole weights (EMA where kept) for rank 0 to use alone; None on the other ranks. Every rank
        must enter, and none may train inside. Nothing compiled runs: what is evaluated has other shapes each time."""
        if self.config.zero_stage < 3:
            eager = torch.compiler.set_stance("force_eager") if self.config.compile else contextlib.nullcontext()
            with self.averaged(), eager:
                yield None if _rank() else self.module
            return
        weights = self.state_dict()
        if self._copy is None:
            yield None
            return
        self._copy.load_state_dict(weights)
        try:
            yield self._copy.to(self.device)
        finally:
            self._copy.to("cpu")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Full weights (EMA where kept) and buffers on the CPU. Every rank must call it."""
        with self.averaged(), self.full_weights() as module:
            return {
                name: value.detach().float().cpu().clone()
                if value.is_floating_point()
                else value.detach().cpu().clone()
                for name, value in module.state_dict().items()
            }

    def save(self, folder: str, tag: str) -> None:
        """Each rank's part of model, optimizer and EMA into the local `folder`/`tag`. Every rank must call it."""
        self.engine.save_checkpoint(folder, tag=tag, client_state={"ema": self._ema}, save_latest=False)

    def load(self, folder: str, tag: str) -> None:
        if not Path(folder, tag).is_dir():
            raise FileNotFoundError(f"{folder}: holds no checkpoint of {tag!r}")
        _, client_state = self.engine.load_checkpoint(folder, tag=tag)
        if self._ema is not None:
            torch._foreach_copy_(self._ema, [e.to(self.device) for e in client_state["ema"]])
