"""Everything that a machine with one GPU is asked once, in at most ten minutes: the stage `train` as it is shipped at a
billion parameters, and what else runs on GPUs alone. Tokens are generated; nothing is fetched.

    python tests/benchmarks/gpu.py                    all parts, a table as they end
    python tests/benchmarks/gpu.py --parts train-1 flex   some of them
    python tests/benchmarks/gpu.py --small            the same in small, on any machine: a test of this script

Each part is a process with a limit of its own: one that fails, hangs or runs out of memory leaves the others.
Rates are those that the stage logs: useful tokens a second, and model_flops_utilization of the device's peak.

    train-1, train-2   rows of 8,192, text with pictures by two objectives, one and two rows a step; memory against what
                       is predicted; how long a checkpoint holds the training up
    flex               FlexAttention forward and backward against the dense mask
    gau, unet, flow    short trainings of the other blocks, patchifier and head
    generate           tokens and guided pictures of the model of a billion
    precision          tests/benchmarks/precision.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1]), str(HERE.parent)]

import corpora  # noqa: E402
from sampling_cases import visual  # noqa: E402

from omniloom.infra.artifacts import Artifact  # noqa: E402
from omniloom.infra.training.launch import single_process  # noqa: E402
from omniloom.infra.training.memory import state_memory  # noqa: E402
from omniloom.infra.training.saving import Saver  # noqa: E402
from omniloom.infra.training.weights import EngineWeights  # noqa: E402
from omniloom.models.text import TextTokenizer  # noqa: E402
from omniloom.models.unified.attention import DenseAttend, attend_for  # noqa: E402
from omniloom.models.unified.batch import Segment, collate  # noqa: E402
from omniloom.models.unified.config import UnifiedConfig, num_parameters  # noqa: E402
from omniloom.models.unified.diffusion.config import DiffusionConfig  # noqa: E402
from omniloom.models.unified.generation.generate import generate_text, generate_visual  # noqa: E402
from omniloom.models.unified.generation.sampling import TextSampling  # noqa: E402
from omniloom.models.unified.layouts import prefix_for_text  # noqa: E402
from omniloom.models.unified.mask import dense_mask  # noqa: E402
from omniloom.models.unified.memory import Pass, pass_memory, recomputes  # noqa: E402
from omniloom.models.unified.model import UnifiedModel  # noqa: E402
from omniloom.stages.train.config import Config, unified_config, visual_sizes  # noqa: E402
from omniloom.stages.train.job import Job  # noqa: E402
from omniloom.stages.train.worker import train_worker  # noqa: E402

TOTAL = 600.0  # seconds of all parts
BILLION = {"width": 2048, "layers": 21, "heads": 16, "kv_heads": 4, "hidden": 5632, "time_dim": 256}
QUARTER = {"width": 1024, "layers": 8, "heads": 8, "kv_heads": 4, "time_dim": 256}
SMALL = {"width": 64, "layers": 2, "heads": 2, "time_dim": 32}
MIXED = {"latent_diffusion": 2.0, "masked_code": 1.0}


class Told(corpora.Silent):
    """A tracker and a progress display that print the rows as the stage logs them, and when steps end."""

    def __init__(self, profiled: range = range(0)) -> None:
        super().__init__()
        self.ended: list[float] = []
        self.profiled = profiled  # steps
        self.profile = torch.profiler.profile(activities=torch.profiler.supported_activities())

    def __call__(self, done: int, total: int, what: str, **facts: Any) -> None:
        self.ended.append(time.perf_counter())
        if done == self.profiled.start and self.profiled:
            self.profile.start()
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")  # names the lines that wait for the device
        if done == self.profiled.stop and self.profiled:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            self.profile.stop()

    def where_time_went(self) -> str:
        """Kernels of the profiled steps by what they took, per step."""
        rows = [(row.key, row.self_device_time_total, row.count) for row in self.profile.key_averages()]
        on_device = sorted((row for row in rows if row[1]), key=lambda row: -row[1])
        steps = len(self.profiled)
        whole = sum(row[1] for row in on_device) / steps / 1e3
        lines = [f"{us / steps / 1e3:8.2f} ms {n / steps:7.1f} times  {name[:110]}" for name, us, n in on_device]
        return "\n".join([f"  {whole:.1f} ms of the device a step:", *lines[:45]])

    def log_metrics(self, metrics: dict, step: int = 0, seen: int | None = None) -> None:
        super().log_metrics(metrics, step, seen)
        shown = {
            name: metrics[name] for name in ("loss", "tokens_per_second", "model_flops_utilization") if name in metrics
        }
        print(f"  step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()), flush=True)


# ---- generated tokens ----


def generated(folder: Path, small: bool) -> Artifact:
    """A pretokenize artifact: captioned pictures of 32x32 positions, and texts of 200 to 3,000 tokens."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 7)) for _ in range(300 if small else 40_000)]
    text = TextTokenizer.train([" ".join(words)], 400 if small else 32_000)
    side, longest, count = (4, 60, 60) if small else (32, 3000, 400)

    def written(most: int) -> dict:
        ids = rng.integers(text.vocab_size // 2, text.vocab_size, int(rng.integers(most // 15, most)))
        return {"kind": "text", "loss": True, "ids": ids.astype(np.int32)}

    def picture() -> dict:
        positions = side * side
        return {
            "kind": "visual",
            "loss": True,
            "grid": [1, side, side],
            "latents": rng.normal(size=4 * positions).astype(np.float32),
            "codes": rng.integers(0, 64, positions).astype(np.int32),
        }

    def rows(split: str, images: int, texts: int) -> list[dict]:
        kinds = ["image"] * images + ["text"] * texts
        return [
            {
                "id": f"{split}-{number}",
                "kind": kind,
                "label": None,
                "bytes": 100,
                "segments": [written(longest // 20), picture()] if kind == "image" else [written(longest)],
            }
            for number, kind in enumerate(kinds)
        ]

    splits = {"train": [rows("train", count, count)], "validation": [rows("validation", 8, 8)]}
    return corpora.pretokenize(folder / "tokens", splits, text, visual_digest=tokenizer(folder).digest)


def tokenizer(folder: Path) -> Artifact:
    if not (folder / "visual").exists():
        corpora.tokenizer(folder / "visual")
    return corpora.seal(folder / "visual", "tokenizer_joint")


# ---- parts ----


def train(
    small: bool, rows: int = 1, steps: int = 72, model: dict | None = None, length: int = 8192, profile: int = 0
) -> None:
    """The body of stage `train` on one rank, from its config to the saved model. The last steps but one are profiled,
    as many as `profile` says, and are no part of the rates."""
    on_gpu = torch.cuda.is_available() and not small
    with tempfile.TemporaryDirectory() as name, single_process():
        folder = Path(name)
        steps, length = (6, 256) if small else (steps, length)
        every = max(1, steps // 6)
        profiled = range(steps - 1 - profile, steps - 1) if profile else range(0)
        tokens, told = generated(folder, small), Told(profiled)
        config = Config.model_validate(
            {
                "model": {**(SMALL if small else BILLION), **(model or {})},
                "objectives": MIXED,
                "packing": {
                    "length": 256 if small else length,
                    "window_rows": 64,
                    "mixture": {"image": 0.5, "text": 0.5},
                },
                "batch_rows": rows,
                "steps": steps,
                "optimizer": {"lr": 1e-4, "warmup_steps": 4},
                "engine": {
                    "zero_stage": 1,
                    "precision": "bf16" if on_gpu else "fp32",
                    "compile": on_gpu,
                    "ema_decay": 0.999,
                },
                "workers": {
                    "count": 1,
                    "gpus": int(on_gpu),
                    "checkpoint_every": 5 * steps // 6,
                    "keep_checkpoints": 1,
                    "log_every": every,
                },
                "validate_every": steps,
                "validation_rows": 1,
                "samples": {"count": 0},
            }
        )
        facts = json.loads((folder / "tokens" / "tokens.json").read_text())
        built = unified_config(config, facts["vocab_size"], visual_sizes(facts), facts["specials"])
        if on_gpu:
            state = sum(state_memory(num_parameters(built), config.engine, 1).values())
            room = 0.9 * torch.cuda.get_device_properties(0).total_memory - state
            one = Pass(rows * length, rows * length, bf16=True)
            config.engine.activation_checkpointing = recomputes(built, one, room)
            predicted = (state + sum(pass_memory(built, one).values())) / 2**30
            print(
                f"  predicted: {predicted:.1f} GiB, blocks again: {config.engine.activation_checkpointing}", flush=True
            )
        pauses: list[float] = []
        timed(Saver, "start", pauses)
        waits: list[float] = []
        timed(EngineWeights, "released", waits, drained=False)
        job = Job(config, tokens, tokenizer(folder), str(folder / "output"), str(folder / "state"), told, told)
        began = time.perf_counter()
        train_worker(job)
        parameters = num_parameters(built)
        unprofiled = steps - 1 - profile if profile else steps
        rates = [row for step, row in told.metrics if "tokens_per_second" in row and step <= unprofiled]
        settled = rates[len(rates) // 2 :]  # behind compilation
        facts_told = [
            f"{parameters / 1e6:,.1f} M parameters, {rows} x {length}",
            f"{middle(settled, 'tokens_per_second'):,.0f} useful tokens/s",
            f"{middle(settled, 'flops_per_second') / 1e12:.3g} TFLOP/s",
            f"padding {middle(settled, 'padding'):.1%}",
            f"first step after {told.ended[0] - began:.0f} s",
            f"a checkpoint holds up {pauses[0]:.2f} s, and the step behind it {max(waits):.2f} s",
        ]
        if "model_flops_utilization" in settled[0]:
            facts_told.append(f"MFU {middle(settled, 'model_flops_utilization'):.1%}")
        if on_gpu:
            facts_told.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")
        print("  " + ", ".join(facts_told))
        if profile:
            print(told.where_time_went())


def middle(rows: list[dict], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def timed(owner: type, name: str, seconds: list[float], drained: bool = True) -> None:
    """Note how long each call of a method takes; `drained` leaves out what the GPU still had to do before it."""
    method = getattr(owner, name)

    def around(*arguments: Any, **named: Any) -> Any:
        if drained and torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        made = method(*arguments, **named)
        seconds.append(time.perf_counter() - began)
        return made

    setattr(owner, name, around)


def device(small: bool) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not small else "cpu")


def flex(small: bool) -> None:
    """Outputs and gradients of FlexAttention and of the dense mask on one packed row."""
    on, length = device(small), 512 if small else 4096
    config = UnifiedConfig(vocab_size=400, latent_dim=4, width=256, heads=4, kv_heads=2, layers=1)
    rng, row, room = np.random.default_rng(0), [], length
    while room > 40:
        row.append([Segment("text", ids=rng.integers(6, 400, min(int(rng.integers(20, 300)), room - 3)))])
        room -= len(row[-1][0].ids) + 3
    batch = collate([row], length, config, "cuda").to(on)  # a block mask, wherever it is used
    generator = torch.Generator(on).manual_seed(0)
    kind = torch.bfloat16 if on.type == "cuda" else torch.float32
    shapes = [(1, heads, length, 64) for heads in (4, 2, 2)]
    trained = on.type == "cuda"  # FlexAttention has no backward pass on CPUs
    qkv = [torch.randn(shape, generator=generator, device=on, dtype=kind, requires_grad=trained) for shape in shapes]
    useful = (batch.document_index >= 0)[:, None, :, None]
    found = []
    for attend in (attend_for(batch.plan, batch.start, batch.end), DenseAttend(dense_mask(batch.start, batch.end))):
        out = attend(*qkv).where(useful, 0)
        found.append([out, *(torch.autograd.grad(out.float().square().sum(), qkv) if trained else ())])
    errors = [float((a - b).detach().float().norm() / b.detach().float().norm()) for a, b in zip(*found, strict=True)]
    print("  against the dense mask: " + ", ".join(f"{n} {e:.1e}" for n, e in zip(("out", "dq", "dk", "dv"), errors)))
    assert max(errors) < (2e-2 if kind == torch.bfloat16 else 1e-5), errors


def generate(small: bool) -> None:
    """256 tokens with the cache, and pictures under guidance."""
    on = device(small)
    config = UnifiedConfig(vocab_size=400 if small else 32_000, latent_dim=4, **(SMALL if small else BILLION))
    torch.manual_seed(0)
    model = UnifiedModel(config).to(on).eval()
    prompt = prefix_for_text(np.random.default_rng(0).integers(6, config.vocab_size, 64), config.specials)
    tokens, pictures, steps = (16, 2, 2) if small else (256, 16, 20)

    def texts() -> int:
        return sum(map(len, generate_text(model, [prompt], TextSampling(max_new_tokens=tokens), stop_ids=[])))

    def drawn() -> int:
        how = visual(diffusion=DiffusionConfig(), num_steps=steps, guidance_scale=3.0)
        return len(generate_visual(model, [prompt] * pictures, (1, 8, 8), how))

    with torch.no_grad(), torch.autocast(on.type, torch.bfloat16, enabled=on.type == "cuda"):
        for name, run in (("text tokens", texts), ("pictures", drawn)):
            seconds, count = clocked(run)
            print(f"  {count} {name} in {seconds:.2f} s: {count / seconds:.1f} a second")


def clocked(run: Callable[[], int]) -> tuple[float, int]:
    """Seconds of the second call, and what it made."""
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    count = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, count


def precision(small: bool) -> None:
    size = ["--width", "64", "--layers", "2", "--length", "512", "--rows", "1", "--steps", "4"] if small else []
    subprocess.run([sys.executable, str(HERE.parent / "precision.py"), *size], check=True)


def other(model: dict) -> Callable[[bool], None]:
    return lambda small: train(small, steps=24, model={**({} if small else QUARTER), **model}, length=4096)


# A part, and the seconds that it may take.
PARTS: dict[str, tuple[Callable[[bool], None], float]] = {
    "train-1": (lambda small: train(small, 1, profile=2), 200),
    "train-2": (lambda small: train(small, 2), 180),
    "flex": (flex, 60),
    "gau": (other({"block": "gau", "kv_heads": None}), 75),
    "unet": (other({"latent_patchifier": "unet", "unet_width": 64}), 75),
    "flow": (other({"flow_head_layers": 3}), 75),
    "generate": (generate, 60),
    "precision": (precision, 120),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help="this one alone, in this process")
    o = parser.parse_args()
    if o.part:
        PARTS[o.part][0](o.small)
        return
    began, ended = time.monotonic(), {}
    if not o.small:
        print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: --small is for a CPU", flush=True)
    for name in o.parts:
        left = TOTAL - (time.monotonic() - began)
        print(f"{name}:", flush=True)
        ended[name] = alone(name, o.small, min(PARTS[name][1], left)) if left > 10 else "not run: no time left"
        print(f"  {ended[name]}", flush=True)
    print("\n" + "\n".join(f"{name:10} {text}" for name, text in ended.items()))
    sys.exit(any(text.split()[0] != "ok" for text in ended.values()))


def alone(name: str, small: bool, limit: float) -> str:
    """Run a part in a process of its own; how it ended, in words."""
    command = [sys.executable, str(HERE), "--part", name, *(["--small"] if small else [])]
    began = time.monotonic()
    try:
        code = subprocess.run(command, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    except OSError:
        traceback.print_exc()
        return "failed to start"
    return f"{'ok' if code == 0 else f'failed with {code}'} in {time.monotonic() - began:.0f} s"


if __name__ == "__main__":
    main()
