"""How near pretokenize's actor comes to the bare encoder, and to the text tokenizer's `encode_batch`.

    python tests/benchmarks/pretokenize.py [--images FOLDER] [--size 32] [--items 1024] [--threads 1] [--device cpu]
    python tests/benchmarks/pretokenize.py --texts [--items 4096]

Both ways take turns in one process, the fastest of some rounds counts. Pictures are those of the folder, in turn until
there are enough, or noise where none is given; the tokenizer is that of a preset, untrained. Beside the bare encoder,
over pixels that lie in memory, stands the bare loop, which decodes in the same thread that encodes. Texts are of about
300 words each, of the words of installed packages' documentation.

`cpu` is the CPU seconds of the whole process, all threads; `wall` what a clock says. On a machine that is shared the
former is the one to compare, and decoding counts in it though a CPU beside the device does it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def measured(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each way, the least of the rounds."""
    found = {name: {"cpu": float("inf"), "wall": float("inf")} for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            for clock, seconds in (("cpu", time.process_time() - cpu), ("wall", time.perf_counter() - wall)):
                found[name][clock] = min(found[name][clock], seconds)
    return found


def record(kind: str, number: int, **fields) -> dict:
    return {
        "id": hashlib.sha256(f"{kind}{number}".encode()).hexdigest(),
        "kind": kind,
        "split": "train",
        "source": "bench",
        "path": str(number),
        "part": 0,
        "synthetic": False,
        "meta": "{}",
        **fields,
    }


def pictures(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    import corpora
    import numpy as np
    import torch

    from omniloom.models.pixels import half_range
    from omniloom.stages.checkpoints.tokenizer import load_tokenizer
    from omniloom.stages.data import records
    from omniloom.stages.data.clips import decode
    from omniloom.stages.data.media.decode import NO_LIMITS, encode_png, probe_image
    from omniloom.stages.pretokenize.config import Config
    from omniloom.stages.pretokenize.shard import ShardTokenizer

    if args.images:
        endings = (".png", ".jpg", ".jpeg", ".webp")
        files = [path.read_bytes() for path in sorted(Path(args.images).rglob("*")) if path.suffix.lower() in endings]
    else:
        rng = np.random.default_rng(0)
        files = [encode_png(rng.integers(0, 256, (args.size, args.size, 3), np.uint8)) for _ in range(64)]
    held = list(itertools.islice(itertools.cycle(files), args.items))
    known = {id(file): probe_image(file, NO_LIMITS) for file in files}
    sides = [{"width": known[id(file)].width, "height": known[id(file)].height} for file in held]
    rows = [record("image", number, media=file, **sides[number]) for number, file in enumerate(held)]
    each = -(-len(rows) // args.shards)
    shards = []
    for number in range(args.shards):
        shards.append({"index": number, "uri": str(folder / f"{number}.parquet")})
        records.write_shard(shards[-1]["uri"], rows[number * each : (number + 1) * each])
    tokenizer = corpora.preset_tokenizer(folder / "tokenizer", args.preset)
    text = folder / "text.json"
    text.write_text(corpora.text_tokenizer().to_json())
    config = Config(
        image_size=args.size,
        precision=args.precision,
        cpus=args.threads,
        gpus=float(args.device == "cuda"),
        batch_size=args.batch_size,
    )
    actor = ShardTokenizer(config, tokenizer, str(text), str(folder / "out"), str(folder / "state"))
    model, size = load_tokenizer(tokenizer).to(args.device), actor.encoders.batch_size
    shape = (args.size, args.size)
    pixels = torch.from_numpy(np.stack([decode("image", file, shape, 1)[0] for file in held])).permute(0, 3, 1, 2)

    def encoded(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            return model.encode(half_range(batch.to(args.device).float())).latents.cpu()

    def bare() -> None:
        for batch in pixels.split(size):
            encoded(batch)

    def loop() -> None:
        for at in range(0, len(held), size):
            batch = np.stack([decode("image", file, shape, 1)[0] for file in held[at : at + size]])
            encoded(torch.from_numpy(batch).permute(0, 3, 1, 2))

    bare()
    return measured(
        {"bare encoder": bare, "bare loop": loop, "pretokenize": lambda: actor.tokenize(shards)}, args.rounds
    )


def texts(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    import numpy as np

    from omniloom.models.text import TextTokenizer
    from omniloom.stages.data import records
    from omniloom.stages.pretokenize.config import Config
    from omniloom.stages.pretokenize.shard import ShardTokenizer

    words = " ".join(Path(file).read_text(errors="replace") for file in sorted(Path(np.__file__).parent.glob("*/*.py")))
    words = words.split()
    rng = np.random.default_rng(0)
    held = [" ".join(words[at : at + 300]) for at in rng.integers(0, len(words) - 300, args.items)]
    text = TextTokenizer.train(held, 8000)
    (folder / "text.json").write_text(text.to_json())
    uri = str(folder / "0.parquet")
    records.write_shard(uri, [record("text", number, text=value) for number, value in enumerate(held)])
    actor = ShardTokenizer(
        Config(cpus=args.threads), None, str(folder / "text.json"), str(folder / "out"), str(folder / "state")
    )
    bare = actor.text._tokenizer
    ways = {
        "encode_batch": lambda: [e.ids for e in bare.encode_batch(held, add_special_tokens=False)],
        "pretokenize": lambda: actor.tokenize([{"index": 0, "uri": uri}]),
    }
    return measured(ways, args.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images")
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--preset", default="demo", help="whose tokenizer")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--items", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = (texts if args.texts else pictures)(args, Path(folder))
    first = next(iter(found))
    for name, seconds in found.items():
        ratios = {clock: round(found[first][clock] / value, 3) for clock, value in seconds.items()}
        a_second = {clock: round(args.items / value, 1) for clock, value in seconds.items()}
        print(json.dumps({"way": name, "items a second": a_second, f"of {first}": ratios}))


if __name__ == "__main__":
    main()
