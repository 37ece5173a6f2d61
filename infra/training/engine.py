"""The DeepSpeed engine around one module: ZeRO 0-3, autocast, clipping, schedule, EMA, export of full weights.

Data flow of a step: `loss, logs = engine(...)`; `engine.backward(loss)`; `engine.step(step)`. Works on GPU (NCCL) and
on CPU (gloo). The process group must exist (Ray Train or torchrun makes it).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from omniloom.infra.training import compiled
from omniloom.infra.training.accelerated import import_deepspeed
from omniloom.infra.training.average import MovingAverage
from omniloom.infra.training.config import BlocksOptimizerConfig, EngineConfig, MuonConfig, OptimizerConfig
from omniloom.infra.training.dividing import divide
from omniloom.infra.training.gradients import FlatGradients, clear, complete
from omniloom.infra.training.memory import BUCKET
from omniloom.infra.training.muon import Muon
from omniloom.infra.training.optimizers import AdamW
from omniloom.infra.training.shards import parts, ranks
from omniloom.infra.training.weights import EngineWeights

_COMMUNICATION = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


class Engine(EngineWeights):
    """One module under DeepSpeed. `micro_batch` and `accumulate` are rows per forward pass and passes per step.

    Weights and gradients are fp32; `precision="bf16"` runs the forward pass under autocast, so that positions, times
    and losses keep fp32. It is entered inside the module's forward: DeepSpeed switches one around its engine off where
    that is CUDA's. EMA is kept beside each rank's own part of the weights.

    `lr_scale` maps a parameter's name to its learning rate as a multiple of the schedule's; 0 freezes the parameter,
    which then has neither gradient nor optimizer state. ValueError where it leaves nothing to train.

    `rate_factor` maps a parameter's name to a further factor of its learning rate, which its weight decay does not
    follow, as muP has it: a step takes the same share of all weights away.

    `is_in_block` says of a parameter's name whether it is a block's, whose matrices `optimizer.muon` is for.

    `frozen_from` is a digest of what the frozen parameters were read from: checkpoints then hold it in their place, and
    an engine that goes on has read them itself. Without it checkpoints hold them.

    Under ZeRO-3 rank 0's weights are divided: the module of another may be without memory (torch's meta device).

    All ranks must use the same parameters in a pass: DeepSpeed exchanges gradients as they come.

    `part_of` maps a parameter's name to a part of the module, whose gradient's norm `step` gives on request.
    `compile_parts` compiles what repeats in the module, where `config.compile` asks for it; without it all is compiled.

    `accepts`, where it is set, is asked before each update, with the step's loss and the norm of its gradient, means
    over all ranks: an update that it does not accept leaves weights, optimizer states and EMA as they are.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: OptimizerConfig,
        config: EngineConfig,
        steps: int,
        micro_batch: int,
        accumulate: int = 1,
        lr_scale: Callable[[str], float] | None = None,
        rate_factor: Callable[[str], float] = lambda name: 1.0,
        part_of: Callable[[str], str] = lambda name: "all",
        is_in_block: Callable[[str], bool] = lambda name: False,
        compile_parts: Callable[[], None] | None = None,
        frozen_from: str | None = None,
    ):
        deepspeed = import_deepspeed()
        scale_of = lr_scale or (lambda name: 1.0)
        # DeepSpeed allocates a bucket of gradients whole, by default for 500 million numbers. Counted while undivided.
        bucket = min(BUCKET, sum(p.numel() for name, p in module.named_parameters() if scale_of(name)))
        self.optimizer_config, self.config, self.steps, self.accumulate = optimizer, config, steps, accumulate
        self.frozen_from = frozen_from
        self.device = device()
        if config.precision == "bf16":
            _enter_inside(module, self.autocast)
        if config.zero_stage == 3 and ranks()[1] > 1:
            divide(module, self.device)
        muon = optimizer.muon if isinstance(optimizer, BlocksOptimizerConfig) else None
        groups = _groups(module, optimizer.weight_decay, scale_of, muon, is_in_block, rate_factor)
        self._lr_scales = [group.pop("lr_scale") for group in groups]
        trained = [p for p in module.parameters() if p.requires_grad]
        self._parts = [part_of(name) for name, p in module.named_parameters() if p.requires_grad]
        kind = Muon if muon else AdamW
        stepping = kind(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, fused=True)
        zero: dict = {"stage": config.zero_stage, "reduce_bucket_size": bucket}
        self._offload = offload = config.offload and config.zero_stage > 0
        if offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        flat = config.zero_stage == 1 and not offload
        if flat:
            zero |= {"contiguous_gradients": False, "overlap_comm": False, "compute_grad_norm": False}
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=stepping,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulate,
                "zero_optimization": zero,
                # Without ZeRO, DeepSpeed clips but tells no norm: `step` does both then.
                "gradient_clipping": optimizer.grad_clip if config.zero_stage and not flat else 0.0,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 1 << 62,
                "wall_clock_breakdown": False,
                # Its throughput, which nobody reads, is measured with the device drained before and after each step.
                "timers": {"throughput": {"enabled": False}},
            },
        )
        if config.compile:
            compiled.keep()
            # ZeRO-3's hooks are DeepSpeed's to compile around.
            (compile_parts if compile_parts and config.zero_stage < 3 else self.engine.compile)()
        self._gradients: FlatGradients | None = None
        if flat:
            self.engine.enable_backward_allreduce = False
            self._gradients = FlatGradients(self.engine.optimizer, _COMMUNICATION[config.communication])
        flats = [part.flat for part in parts(self)]
        self.average = MovingAverage(flats, config.ema_decay) if config.ema_decay else None
        self._trained = trained
        self.accepts: Callable[[float, float], bool] | None = None
        self._losses: list[torch.Tensor] = []  # of the passes of a step, where somebody is asked

    def autocast(self):
        """The precision of training, for a part of the module that is used without its forward."""
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def __call__(self, *args, **kwargs):
        return self.engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        if self.accepts:
            self._losses.append(loss.detach())
        if self._gradients:
            self._gradients.begin()
        elif self.config.zero_stage and self.engine.micro_steps % self.accumulate == 0:
            clear(self.engine.optimizer)
        self.engine.backward(loss)

    def step(self, step: int, part_norms: bool = False) -> dict[str, float | torch.Tensor]:
        """One micro step; at the end of an accumulation the optimizer's. Gives `lr` and `grad_norm` then, and with
        `part_norms` a `grad_norm_PART` of each part. Norms are of the gradient before it is clipped, and on the device:
        under ZeRO 0 and 1 nothing here waits for it."""
        lr = self.optimizer_config.lr_at(step, self.steps)
        for group, scale in zip(self.engine.optimizer.param_groups, self._lr_scales, strict=True):
            group["lr"] = lr * scale
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()
            return {}
        norm = self._gradients.reduce() if self._gradients else None
        if self.accumulate > 1 and self._offload:
            complete(self.engine.optimizer)
        parts = self._part_norms() if part_norms or (self.accepts and norm is None) else {}
        clip = self.optimizer_config.grad_clip
        if not self.config.zero_stage:
            norm = torch.nn.utils.clip_grad_norm_(self._trained, clip or math.inf)
        accepted = self._is_accepted(norm, parts)
        if self._gradients:
            self._gradients.clip(clip)
        self.released()
        with contextlib.nullcontext() if accepted else self._optimizer_stands_still():
            self.engine.step()
        if self.average is not None and accepted:
            self.average.update(step)
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        return {"lr": lr, **(parts if part_norms else {}), **({} if norm is None else {"grad_norm": norm})}

    def _is_accepted(self, norm: torch.Tensor | None, parts: Mapping[str, torch.Tensor]) -> bool:
        """What `accepts` says of the step; waits for the device. Every rank must call it."""
        if self.accepts is None:
            return True
        loss = sum(map(float, self._losses)) / len(self._losses)
        self._losses = []
        whole = math.sqrt(sum(float(part) ** 2 for part in parts.values())) if norm is None else float(norm)
        means = reduce_mean({"loss": loss, "grad_norm": whole})
        return self.accepts(means["loss"], means["grad_norm"])

    @contextlib.contextmanager
    def _optimizer_stands_still(self):
        """DeepSpeed's step inside drops the gradient and counts on, and changes nothing else."""
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)  # that of ZeRO wraps ours
        optimizer.step = lambda *arguments, **named: None
        try:
            yield
        finally:
            del optimizer.step

    def _part_norms(self) -> dict[str, torch.Tensor]:
        """Norms by part of the averaged gradient, of which each rank reads its own share. Every rank must call it."""
        names = sorted(set(self._parts))
        squares = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        for parameter, part in zip(self._trained, self._parts, strict=True):
            if (gradient := self._local_gradient(parameter)) is not None:
                squares[names.index(part)] += gradient.float().square().sum()
        if self.config.zero_stage and ranks()[1] > 1:
            dist.all_reduce(squares)
        return {f"grad_norm_{name}": value for name, value in zip(names, squares.sqrt(), strict=True)}

    def _local_gradient(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """This rank's share of a parameter's gradient, between the last backward pass of a step and the step; all of
        it without ZeRO."""
        if not self.config.zero_stage:
            return parameter.grad
        if self._gradients:
            return self._gradients.share(parameter)
        if self.config.zero_stage == 3:
            from deepspeed.utils import safe_get_local_grad

            return safe_get_local_grad(parameter)
        # DeepSpeed has no public call for the shares of stage 2: only one that gathers whole gradients.
        share = getattr(parameter, "_hp_mapping")  # noqa: B009  # DeepSpeed's own
        return share and share.get_lp_grad_fragment(getattr(parameter, "_index_in_param_group"))  # noqa: B009


def _enter_inside(module: torch.nn.Module, context: Callable[[], contextlib.AbstractContextManager]) -> None:
    """Run the module's forward in the context, whoever calls it: hooks and `compile` keep working around it."""
    forward = module.forward

    @functools.wraps(forward)
    def inside(*args, **kwargs):
        with context():
            return forward(*args, **kwargs)

    module.forward = inside


def _groups(
    module: torch.nn.Module,
    weight_decay: float,
    lr_scale: Callable[[str], float],
    muon: MuonConfig | None,
    is_in_block: Callable[[str], bool],
    rate_factor: Callable[[str], float],
) -> list[dict]:
    """Optimizer groups by optimizer, learning rate and weight decay; parameters of scale 0 lose `requires_grad`.

    Weight decay is for matrices; norms, biases, and embeddings of one axis go without (as in GPT-2's recipe).
    """
    groups: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        scale = float(lr_scale(name))
        if not parameter.requires_grad:
            continue
        if scale:
            # ZeRO-3 leaves of a divided parameter one axis without length.
            axes = len(getattr(parameter, "ds_shape", parameter.shape))
            is_for_muon = muon is not None and axes == 2 and is_in_block(name)
            factor = rate_factor(name)
            decay = weight_decay / factor if axes >= 2 else 0.0
            groups.setdefault((is_for_muon, scale * factor, decay), []).append(parameter)
        else:
            parameter.requires_grad_(False)
    if not groups:
        raise ValueError("lr_scale: every parameter has 0, which leaves nothing to train")
    if muon and not any(is_for_muon for is_for_muon, _, _ in groups):
        raise ValueError("optimizer.muon: no matrix of a block is trained")
    return [
        {
            "params": groups[is_for_muon, scale, decay],
            "weight_decay": decay,
            "lr_scale": scale,
            **({"momentum": muon.momentum} if muon and is_for_muon else {}),
        }
        for is_for_muon, scale, decay in sorted(groups, key=lambda key: (key[0], key[1], -key[2]))
    ]


def reduce_mean(values: dict[str, float]) -> dict[str, float]:
    """Mean of each value over the ranks; the keys must be the same on all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    names = sorted(values)
    sums = reduce_sum(*(values[name] for name in names))
    return {name: total / dist.get_world_size() for name, total in zip(names, sums, strict=True)}


def reduce_sum(*values: float) -> list[float]:
    """Sum of each value over the ranks, between hosts: no GPU is waited for."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [float(v) for v in values]
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, group=_host_group())
    return tensor.tolist()


def _host_group() -> dist.ProcessGroup | None:
    """The group for what is on hosts: None, the default one, where that is gloo's."""
    if dist.get_backend() == "gloo":
        return None
    return _made_host_group(dist.group.WORLD)


@functools.cache
def _made_host_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")
