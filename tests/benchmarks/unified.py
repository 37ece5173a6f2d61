"""Speed of the unified model: a training step and a generation. Needs nothing but torch (and numpy).

    python tests/benchmarks/unified.py train                  2 cores: ours, a dense transcription, transfusion-pytorch
    python tests/benchmarks/unified.py generate               ours, transfusion-pytorch, transformers; without the cache
    python tests/benchmarks/unified.py train --device cuda --preset 1b   model FLOPs utilisation on one GPU

Ways that are compared take turns within each repeat and run the same documents; the figures are medians, of a training
step also the least of the CPU seconds, which tells more where a machine is shared. A useful token is a text token or a
patch of a document, framing and padding apart.

`train` compares three ways in one run: our step; the dense transcription of our shape (`dense_peer`); and
transfusion-pytorch itself where it is installed (`transfusion_peer`), at its usual size of 256 x 4. Ours is measured at
its number of parameters, as deep as it and as `--width`, `--layers` say, and at its backbone's shape; each in fp32 and
bf16, on documents of one length and on ragged ones. With `--three-ways --repeats 3 --warmup 1` that takes 4 minutes.
These run as a rank on CPUs does, in a process that keeps what it frees (`infra.training.heap`); so does
transfusion-pytorch, which is measured in a process of glibc's defaults too, as whoever starts it has it.
`generate` does so with writing and drawing, `transformers` in place of the transcription.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (2, 1, 0)]

import generation  # noqa: E402
import transfusion_peer  # noqa: E402
from dense_peer import DensePeer  # noqa: E402
from sampling_cases import visual  # noqa: E402

from omniloom.infra.training.heap import KEEPS_FREED  # noqa: E402
from omniloom.models.unified.batch import Batch, Segment, collate, document_length  # noqa: E402
from omniloom.models.unified.config import UnifiedConfig, num_parameters  # noqa: E402
from omniloom.models.unified.diffusion.config import DiffusionConfig  # noqa: E402
from omniloom.models.unified.generation.cache import GenerationState  # noqa: E402
from omniloom.models.unified.generation.draw import draw_visual  # noqa: E402
from omniloom.models.unified.generation.generate import generate_text  # noqa: E402
from omniloom.models.unified.generation.sampling import TextSampling  # noqa: E402
from omniloom.models.unified.layouts import prefix_for_text  # noqa: E402
from omniloom.models.unified.model import UnifiedModel  # noqa: E402
from omniloom.models.unified.objectives.objective import UnifiedObjective  # noqa: E402

PRESETS = {
    "peer": dict(
        width=384,
        layers=6,
        heads=6,
        kv_heads=6,
        hidden=1024,
        vocab=256,
        latent_dim=16,
        text=256,
        side=8,
        documents=4,
        length=0,
        rows=1,
    ),
    "1b": dict(
        width=2048,
        layers=21,
        heads=16,
        kv_heads=4,
        hidden=5632,
        vocab=32000,
        latent_dim=16,
        text=1024,
        side=16,
        documents=0,
        length=8192,
        rows=1,
    ),
}
PEAK = {"NVIDIA H200": 989e12, "NVIDIA H100": 989e12}  # dense bf16 FLOP/s, NVIDIA's data sheets
DEFAULTS = "transfusion-pytorch, its heap"
STEPS = 4  # different batches a repeat
PEER_STEPS = 2  # as many where ours is compared with the peers


def config_of(o: argparse.Namespace) -> UnifiedConfig:
    return UnifiedConfig(
        vocab_size=o.vocab,
        latent_dim=o.latent_dim,
        width=o.width,
        layers=o.layers,
        heads=o.heads,
        kv_heads=o.kv_heads,
        hidden=o.hidden,
        qk_norm=o.qk_norm,
    )


def ragged(rng: np.random.Generator, o: argparse.Namespace) -> list[Segment]:
    """A caption of 25 to 100% of the full length, then a picture."""
    n, patches = int(rng.integers(o.text // 4, o.text + 1)), o.side * o.side
    return [
        Segment("text", ids=rng.integers(6, o.vocab, n)),
        Segment("visual", latents=rng.standard_normal((patches, o.latent_dim), np.float32), grid=(1, o.side, o.side)),
    ]


def useful(documents: list[list[Segment]]) -> int:
    return sum(len(text.ids) + len(picture.latents) for text, picture in documents)


def pack(documents: list[list[Segment]], length: int) -> list[list[list[Segment]]]:
    """Best fit, longest first."""
    rows: list[list] = []
    room: list[int] = []
    for document in sorted(documents, key=document_length, reverse=True):
        size = document_length(document)
        fits = [i for i, free in enumerate(room) if free >= size]
        if not fits:
            rows.append([])
            room.append(length)
            fits = [len(rows) - 1]
        best = min(fits, key=room.__getitem__)
        rows[best].append(document)
        room[best] -= size
    return rows


class Timer:
    def __init__(self, device: str):
        self.device = device

    def __call__(self, run: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def stepper(module: torch.nn.Module, o: argparse.Namespace, bf16: bool) -> Callable[[Callable[[], torch.Tensor]], None]:
    """Forward, backward and AdamW, fp32 weights under autocast."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)

    def step(loss_of: Callable[[], torch.Tensor]) -> None:
        with torch.autocast(o.device, torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def packed_batches(o: argparse.Namespace, length: int, rows: int, seed: int = 0) -> list[tuple[Batch, int]]:
    """STEPS batches of `rows` packed rows, with their useful tokens; what a row leaves over goes to the next."""
    rng, waiting, batches = np.random.default_rng(seed), [], []
    mean = o.text * 5 // 8 + o.side**2
    for _ in range(STEPS):
        waiting += [ragged(rng, o) for _ in range(max(0, 8 * rows * length // mean - len(waiting)))]
        packed = sorted(pack(waiting, length), key=lambda row: -sum(map(document_length, row)))[:rows]
        chosen = [document for row in packed for document in row]
        waiting = [document for document in waiting if not any(document is c for c in chosen)]
        batches.append((collate(packed, length, config_of(o), o.device).to(o.device), useful(chosen)))
    return batches


def ours(o: argparse.Namespace, length: int, rows: int, bf16: bool, compiled: bool) -> tuple[Callable, float, list]:
    """(run STEPS steps, useful tokens of them, the batches)."""
    torch.manual_seed(0)
    objective = UnifiedObjective(UnifiedModel(config_of(o)), DiffusionConfig()).to(o.device)
    if compiled:
        objective.compile_parts()
    step = stepper(objective, o, bf16)
    batches = packed_batches(o, length, rows)

    def run() -> None:
        for number, (batch, _) in enumerate(batches):
            step(lambda: objective(batch, number)[0])  # noqa: B023

    return run, sum(count for _, count in batches), [batch for batch, _ in batches]


def peer(o: argparse.Namespace, bf16: bool, compiled: bool, drawn: list | None = None) -> tuple[Callable, float]:
    torch.manual_seed(0)
    model = DensePeer(o.vocab, o.latent_dim, o.width, o.layers, o.heads, o.hidden).to(o.device)
    if compiled:
        for layer in model.layers:
            layer.compile()
    step, rng = stepper(model, o, bf16), np.random.default_rng(0)
    N, patches = o.text + o.side**2 + 2, o.side**2
    batches, total = [], 0
    for documents in drawn or [[ragged(rng, o) for _ in range(o.documents)] for _ in range(STEPS)]:
        total += useful(documents)
        ids, labels = np.full((2, o.documents, N), -1)
        is_patch, latents = np.zeros((o.documents, N), bool), np.zeros((o.documents, N, o.latent_dim), np.float32)
        mask = np.tril(np.ones((N, N), bool))[None, None].repeat(o.documents, 0)
        for b, (text, picture) in enumerate(documents):
            n = len(text.ids)
            ids[b, :n], ids[b, n], ids[b, n + 1 + patches] = text.ids, 3, 5
            is_patch[b, n + 1 : n + 1 + patches], latents[b, n + 1 : n + 1 + patches] = True, picture.latents
            mask[b, 0, n + 1 : n + 1 + patches, n + 1 : n + 1 + patches] = True
            labels[b] = -100
            labels[b, :n] = ids[b, 1 : n + 1]
        times = np.broadcast_to(rng.random((o.documents, 1), np.float32), is_patch.shape)
        place = np.broadcast_to(np.arange(N, dtype=np.float32), is_patch.shape)
        batches.append(
            [
                torch.from_numpy(np.ascontiguousarray(a)).to(o.device)
                for a in (ids, latents, is_patch, times, labels, mask, place)
            ]
        )

    def run() -> None:
        for batch in batches:
            step(lambda: model(*batch))  # noqa: B023

    return run, total


def measure(ways: dict[str, Callable], o: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each way, which take turns; the first turns warm up and compile."""
    return {name: wall for name, (wall, _) in timed(ways, o).items()}


def timed(ways: dict[str, Callable], o: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """(median seconds, least CPU seconds) of each way."""
    timer, seconds = Timer(o.device), {name: [] for name in ways}
    for repeat in range(o.warmup + o.repeats):
        for name, run in ways.items():
            began = time.process_time()
            took = timer(run)
            if repeat >= o.warmup:
                cpu = run.cpu_seconds if isinstance(run, Apart) else time.process_time() - began
                seconds[name].append((took, cpu))
    return {
        name: (statistics.median(wall for wall, _ in values), min(cpu for _, cpu in values))
        for name, values in seconds.items()
    }


SHAPES = {
    "equal parameters, equal depth": {"width": 512, "layers": 4, "heads": 8, "hidden": 1024},
    "equal parameters": {},
    "equal shape": {"width": 256, "layers": 4, "heads": 4, "hidden": 688},
}


def drawn(o: argparse.Namespace, fixed: bool) -> list[list[list[Segment]]]:
    """PEER_STEPS batches of documents: of one length, or with texts of 25 to 100% of it."""
    rng, batches = np.random.default_rng(0), []
    for _ in range(PEER_STEPS):
        documents = [ragged(rng, o) for _ in range(o.documents)]
        for text, _ in documents if fixed else ():
            text.ids = rng.integers(6, o.vocab, o.text)
        batches.append(documents)
    return batches


def our_way(o: argparse.Namespace, batches: list, bf16: bool) -> Callable[[], None]:
    """A batch's documents in one row, which ends with them."""
    torch.manual_seed(0)
    config = config_of(o)
    objective = UnifiedObjective(UnifiedModel(config), DiffusionConfig())
    step = stepper(objective, o, bf16)
    used = [collate([documents], sum(map(document_length, documents)), config) for documents in batches]

    def run() -> None:
        for number, batch in enumerate(used):
            step(lambda: objective(batch, number)[0])  # noqa: B023

    return run


def their_way(o: argparse.Namespace, batches: list, bf16: bool) -> tuple[Callable[[], None], int]:
    torch.manual_seed(0)
    model = transfusion_peer.build(o.vocab, o.latent_dim, o.side, 256, 4, 4)
    step = stepper(model, o, bf16)
    given = [transfusion_peer.documents(documents, o.side) for documents in batches]

    def run() -> None:
        for documents in given:
            step(lambda: model(documents, return_loss=True))  # noqa: B023

    return run, sum(p.numel() for p in model.parameters())


class Apart:
    """transfusion-pytorch's steps in a process that has glibc's defaults. `cpu_seconds`: of the last run."""

    def __init__(self, o: argparse.Namespace, batches: list, bf16: bool):
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, o, batches, bf16), daemon=True)
        kept = {name: os.environ.pop(name, None) for name in KEEPS_FREED}
        process.start()
        os.environ |= {name: value for name, value in kept.items() if value is not None}
        theirs.close()
        self._pipe.recv()
        self.cpu_seconds = 0.0

    def __call__(self) -> None:
        self._pipe.send(None)
        self.cpu_seconds = self._pipe.recv()

    def end(self) -> None:
        self._pipe.close()


def _serve(pipe, o: argparse.Namespace, batches: list, bf16: bool) -> None:
    torch.set_num_threads(o.threads)
    run, _ = their_way(o, batches, bf16)
    pipe.send(None)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        began = time.process_time()
        run()
        pipe.send(time.process_time() - began)


def three_ways(o: argparse.Namespace) -> None:
    """Our step at three shapes, the transcription and transfusion-pytorch, in fp32 and bf16, fixed and ragged."""
    there = transfusion_peer.installed()
    if not there:
        print("transfusion-pytorch is not installed here: compared with the transcription alone (transfusion_peer.py)")
    for bf16 in (False, True):
        for fixed in (True, False):
            batches, ways, sizes = drawn(o, fixed), {}, {}
            for name, shape in SHAPES.items():
                own = argparse.Namespace(**{**vars(o), **shape, "kv_heads": shape.get("heads", o.kv_heads)})
                ways[f"ours, {name}"], sizes[f"ours, {name}"] = (
                    our_way(own, batches, bf16),
                    num_parameters(config_of(own)),
                )
            ways["transcription"] = peer(o, bf16, False, batches)[0]
            if there:
                ways["transfusion-pytorch"], sizes["transfusion-pytorch"] = their_way(o, batches, bf16)
                ways[DEFAULTS], sizes[DEFAULTS] = Apart(o, batches, bf16), sizes["transfusion-pytorch"]
            sizes["transcription"] = num_parameters(config_of(o))
            measured, tokens = timed(ways, o), sum(map(useful, batches))
            bases = [measured[name] for name in (("transfusion-pytorch", DEFAULTS) if there else ("transcription",))]
            if there:
                ways[DEFAULTS].end()
            print(f"{'bf16' if bf16 else 'fp32'}, {'fixed' if fixed else 'ragged'}:")
            for name, (wall, cpu) in measured.items():
                print(
                    f"  {name:36} {sizes[name] / 1e6:5.1f} M  {1000 * wall / PEER_STEPS:6.0f} ms a step, CPU "
                    f"{1000 * cpu / PEER_STEPS:6.0f} ms  {tokens / wall:6.0f} useful tokens/s  "
                    + "; ".join(f"{base[0] / wall:.2f} x wall, {base[1] / cpu:.2f} x CPU" for base in bases),
                    flush=True,
                )


def train(o: argparse.Namespace) -> None:
    config = config_of(o)
    print(f"{num_parameters(config) / 1e6:.1f} M parameters, {torch.get_num_threads()} threads, {o.device}")
    length = o.length or o.documents * (o.text + o.side**2 + 2)
    if o.device == "cuda":
        return train_gpu(o, config, length)
    three_ways(o)
    if o.three_ways:
        return None
    built = {"peer fp32": peer(o, False, False), "ours fp32": ours(o, length, o.rows, False, False)[:2]}
    if not o.no_compile:
        built |= {
            "peer bf16 compiled": peer(o, True, True),
            "ours bf16": ours(o, length, o.rows, True, False)[:2],
            "ours bf16 compiled": ours(o, length, o.rows, True, True)[:2],
        }
    seconds = measure({name: run for name, (run, _) in built.items()}, o)
    rate = {name: built[name][1] / seconds[name] for name in built}
    for name in built:
        print(
            f"{name:20} {1000 * seconds[name] / STEPS:7.0f} ms a step  {rate[name]:7.0f} useful tokens/s  "
            f"{rate[name] / rate['peer fp32']:.2f} x"
        )
    many = {
        "1x": ours(o, length, o.rows, False, False),
        "4x, more rows": ours(o, length, 4 * o.rows, False, False),
        "4x, one row": ours(o, 4 * length, o.rows, False, False),
    }
    seconds = measure({name: run for name, (run, *_) in many.items()}, o)
    for name, value in seconds.items():
        print(
            f"{name:20} {1000 * value / STEPS:7.0f} ms a step  {value / seconds['1x']:.2f} x the time for "
            f"{many[name][1] / many['1x'][1]:.2f} x the tokens"
        )


def train_gpu(o: argparse.Namespace, config: UnifiedConfig, length: int) -> None:
    from omniloom.models.unified.flops import step_flops

    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name()
    peak = next((value for known, value in PEAK.items() if name.startswith(known)), None)
    run, tokens, batches = ours(o, length, o.rows, True, not o.no_compile)
    seconds = measure({"ours": run}, o)["ours"]
    flops = sum(step_flops(config, batch) for batch in batches)
    padding = sum(batch.tokens["padding"] for batch in batches) / (STEPS * o.rows * length)
    print(
        f"{name}: {1000 * seconds / STEPS:.1f} ms a step of {o.rows} x {length}, {tokens / seconds:.0f} useful "
        f"tokens/s, padding {padding:.2%}, {flops / seconds / 1e12:.0f} TFLOP/s"
        + (f", {flops / seconds / peak:.1%} of {peak / 1e12:.0f}" if peak else "")
        + f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    )


def generate(o: argparse.Namespace) -> None:
    """Against the peers (`generation`); and equal output with the cache and without, where without means every token
    and every step reads all again."""
    shapes = {name: argparse.Namespace(**{**vars(o), **shape}) for name, shape in SHAPES.items()}
    for shape in shapes.values():
        shape.kv_heads = shape.heads
    generation.three_ways(o, {name: config_of(shape) for name, shape in shapes.items()})
    if o.three_ways:
        return
    torch.manual_seed(0)
    config = config_of(o)
    model = UnifiedModel(config).to(o.device).eval()
    torch.nn.init.normal_(model.visual_out.weight, std=0.02)  # at 0 it would draw nothing
    prompt = np.random.default_rng(0).integers(6, o.vocab, 256)
    prefix, grid = prefix_for_text(prompt[:32], config.specials), (1, o.side, o.side)
    long_prefix = prefix_for_text(prompt, config.specials)
    how = visual(diffusion=DiffusionConfig(), num_steps=o.steps)
    made: dict[str, object] = {}
    forbidden = [0, 1, 3, 4, 5]

    @torch.no_grad()
    def text_without() -> None:
        ids: list[int] = []
        for _ in range(o.tokens):
            _, hidden = GenerationState.prefill(model, [prefix + [Segment("text", ids=np.array(ids, np.int64))]])
            logits = model.text_head(hidden)
            logits[:, forbidden + [2]] = -torch.inf
            ids.append(int(logits.argmax()))
        made["text without"] = ids

    @torch.no_grad()
    def text_with() -> None:
        made["text with"] = generate_text(model, [prefix], TextSampling(max_new_tokens=o.tokens), stop_ids=[])[0]

    class Forgetful(GenerationState):
        """Reads the prefix again before every step of a picture."""

        def feed_visual(self, *args, **kwargs):
            begin, hidden = GenerationState.prefill(model, [long_prefix])
            begin.feed_text([config.specials.boi])
            return begin.feed_visual(*args, **kwargs)

    def picture(kind: type, name: str) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            state, _ = kind.prefill(model, [long_prefix])
            made[name] = draw_visual(state, [(0, 0)], grid, how)

        return run

    ways = {
        "text with": text_with,
        "text without": text_without,
        "picture with": picture(GenerationState, "picture with"),
        "picture without": picture(Forgetful, "picture without"),
    }
    seconds = measure(ways, o)
    assert made["text with"] == made["text without"], "the cache changes the text"
    torch.testing.assert_close(made["picture with"], made["picture without"], atol=1e-3, rtol=1e-3)
    for kind, what in (("text", f"{o.tokens} tokens"), ("picture", f"{o.steps} steps after {len(prompt)} tokens")):
        a, b = seconds[f"{kind} with"], seconds[f"{kind} without"]
        print(
            f"{kind:8} {what:28} with the cache {1000 * a:7.0f} ms, without {1000 * b:7.0f} ms: {b / a:.1f} x, "
            "equal output"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "generate"))
    parser.add_argument("--three-ways", action="store_true", help="what is compared with the peers, no more")
    parser.add_argument("--preset", choices=PRESETS, default="peer")
    for name in PRESETS["peer"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--qk-norm", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="leave out bf16 and torch.compile")
    parser.add_argument("--tokens", type=int, default=256, help="generate: text tokens")
    parser.add_argument("--steps", type=int, default=20, help="generate: steps of a picture")
    o = parser.parse_args()
    for name, value in PRESETS[o.preset].items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    if o.what == "train" and o.device == "cpu" and not KEEPS_FREED.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEPS_FREED)  # glibc reads them at a start
    torch.set_num_threads(o.threads)
    {"train": train, "generate": generate}[o.what](o)


if __name__ == "__main__":
    main()
