"""Encode and decode at the published size: this package's tokenizers against a transcription of the published one.

    python tests/benchmarks/tokenizer.py [--frames 17] [--size 256] [--repeats 5] [--threads 2] [--compile] [--schemes]
    python tests/benchmarks/tokenizer.py --device cuda --compile

In: nothing but random weights and pixels. Out: a table, for one image and for one clip: images or clips a second,
the ratio to the transcription in fp32, and the peak memory of one call with the weights. All ways take turns within
one run and the fastest of their turns counts, so that a busy machine disturbs them alike. Memory on a CPU is the
peak resident size of a process of its own, the interpreter and torch (about 250 MB) included; on a GPU it is what
was allocated. `--schemes` adds the memory of the published position schemes and attention paths; `--cpu-time` counts
seconds of the processor, which with `--threads 1` gives honest ratios on a machine that others use at the same time.
On a bare machine: copy `models/` and `tests/benchmarks/`, install torch alone, and run the line above.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from omniloom.models.tokenizer import load_official  # noqa: E402
from omniloom.models.tokenizer.config import TokenizerConfig  # noqa: E402
from omniloom.models.tokenizer.omni import OmniTokenizer  # noqa: E402
from tests.benchmarks.published import PublishedTokenizer, published_args  # noqa: E402

BASELINE = "transcription fp32"
WAYS = (BASELINE, "official fp32", "official bf16", "corrected fp32", "corrected bf16")
COMPILED = ("official fp32 compiled", "official bf16 compiled", "corrected fp32 compiled", "corrected bf16 compiled")
SCHEMES = ("rope", "rel sdpa", "rel einsum")
WARMUP = 2


def build(way: str, scheme: str, device: str) -> nn.Module:
    """The model of a row, in eval mode on the device; weights are random."""
    kind, dtype, *compiled = way.split()
    positions, path = (*scheme.split(), "sdpa")[:2]
    torch.manual_seed(0)
    if kind == "transcription":
        model: nn.Module = PublishedTokenizer(published_args(spatial_pos=positions), path)
    elif kind == "official":
        model = OmniTokenizer(TokenizerConfig(compat="official", patch_norm=True, positions=positions, rel_bias=path))
    else:
        model = OmniTokenizer(TokenizerConfig())
    model = model.to(device, torch.bfloat16 if dtype == "bf16" else torch.float32).eval()
    if compiled:
        model.encoder, model.decoder = torch.compile(model.encoder), torch.compile(model.decoder)
    return model


def task(model: nn.Module, name: str, frames: int, size: int, device: str) -> Callable[[], object]:
    """The call that is measured: `encode` pixels to codes, or `decode` codes to pixels, of one image or clip."""
    generator = torch.Generator().manual_seed(0)
    if name == "encode":
        shape = (1, 3, size, size) if frames == 1 else (1, 3, frames, size, size)
        pixels = torch.rand(shape, generator=generator).to(device) - 0.5
        pixels = pixels.to(next(model.parameters()).dtype)
        return lambda: model.encode(pixels)
    grid = (1, 1 + (frames - 1) // 4, size // 8, size // 8)
    codes = torch.randint(8192, grid, generator=generator).to(device)
    return lambda: model.decode(codes)


def seconds(call: Callable[[], object], options: argparse.Namespace) -> float:
    clock = time.process_time if options.cpu_time else time.perf_counter
    start = clock()
    call()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def timings(models: dict[str, nn.Module], name: str, frames: int, options: argparse.Namespace) -> dict[str, float]:
    """The fastest call of each way, in seconds."""
    calls = {way: task(model, name, frames, options.size, options.device) for way, model in models.items()}
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(WARMUP + options.repeats):
        for way, call in calls.items():
            taken = seconds(call, options)
            if turn >= WARMUP:
                best[way] = min(best[way], taken)
    return best


def peak_here(way: str, scheme: str, name: str, frames: int, options: argparse.Namespace) -> float:
    """Peak memory of one call in MB: of this process, or allocated on the GPU."""
    model = build(way, scheme, options.device)
    call = task(model, name, frames, options.size, options.device)
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    call()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def peak(way: str, scheme: str, name: str, frames: int, options: argparse.Namespace) -> float:
    """`peak_here` in a process of its own."""
    case = f"{way}|{scheme}|{name}|{frames}"
    command = [sys.executable, __file__, "--case", case, "--size", options.size, "--threads", options.threads]
    done = subprocess.run([*map(str, command), "--device", options.device], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def same_weights(models: dict[str, nn.Module]) -> None:
    """Give the official models the transcription's weights, by way of a checkpoint, and check that they agree."""
    source = models[BASELINE]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "published.ckpt"
        args = argparse.Namespace(**vars(published_args()))
        torch.save({"state_dict": source.state_dict(), "hyper_parameters": {"args": args}}, path)
        state = load_official(path).state_dict()
    for way, model in models.items():
        if way.startswith("official"):
            getattr(model, "_orig_mod", model).load_state_dict(
                {name if "compiled" not in way else _compiled_name(name): value for name, value in state.items()}
            )


def _compiled_name(name: str) -> str:
    head, _, rest = name.partition(".")
    return f"{head}._orig_mod.{rest}" if head in ("encoder", "decoder") else name


def largest_error(models: dict[str, nn.Module], size: int, device: str) -> float:
    """Between the reconstructions of the transcription and of `official fp32`, of the same codes."""
    pixels: list[Tensor] = [task(models[way], "decode", 1, size, device)() for way in (BASELINE, "official fp32")]
    return float((pixels[0] - pixels[1]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenizer speed and memory at the published size.")
    parser.add_argument("--frames", type=int, default=17, help="of the clip, 1 plus a multiple of 4")
    parser.add_argument("--size", type=int, default=256, help="pixels a side, a multiple of 64")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="add rows with torch.compile")
    parser.add_argument("--schemes", action="store_true", help="add the memory of each position scheme")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure memory")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, not those of the wall")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        if options.case:
            way, scheme, name, frames = options.case.split("|")
            print(peak_here(way, scheme, name, int(frames), options))
            return
        report(options)


def report(options: argparse.Namespace) -> None:
    ways = WAYS + (COMPILED if options.compile else ())
    models = {way: build(way, "rope", options.device) for way in ways}
    same_weights(models)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} threads"
    print(f"torch {torch.__version__}, {where}; best of {options.repeats}, batch 1")
    if options.cpu_time:
        print("seconds of the processor, not of the wall")
    error = largest_error(models, options.size, options.device)
    print(f"official fp32 against the transcription: largest difference of a pixel {error:.1e}\n")
    for frames, unit in ((1, "images/s"), (options.frames, "clips/s")):
        shape = f"{options.size}x{options.size}" if frames == 1 else f"{frames}x{options.size}x{options.size}"
        for name in ("encode", "decode"):
            best = timings(models, name, frames, options)
            print(f"{name} {shape:<12} {'ms':>10} {unit:>10} {'ratio':>7} {'peak MB':>9}")
            for way, taken in best.items():
                memory = f"{peak(way, 'rope', name, frames, options):9.0f}" if not options.no_memory else ""
                print(f"  {way:<24}{taken * 1e3:>10.1f}{1 / taken:>11.2f}{best[BASELINE] / taken:>8.2f} {memory}")
            print(flush=True)
    if options.schemes:
        print(f"peak MB, {options.frames}x{options.size}x{options.size}{'':<10}{'encode':>10}{'decode':>10}")
        for way in (BASELINE, "official fp32"):
            for scheme in SCHEMES:
                peaks = [peak(way, scheme, name, options.frames, options) for name in ("encode", "decode")]
                print(f"  {way + ', ' + scheme:<34}{peaks[0]:>9.0f}{peaks[1]:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
