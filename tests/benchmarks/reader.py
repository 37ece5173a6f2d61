"""How training's reader starts, goes on and plans over a corpus of any size, whose lengths are generated.

    python tests/benchmarks/reader.py [--documents 100000000] [--folder DIR] [--only MODE]

Writes the index of the corpus to DIR (in the temporary folder by default, about 30 bytes a document; kept where it is
named, so that another run starts at once), then measures in a fresh process each: the start (index, planner and first
window), a resume at step 100,000, the memory that is the process's own at its peak, and the CPU seconds of a window of
a million tokens, with files that the system has read before or, by `--cold` (as root), has not. Corpora are of texts
of 200 tokens, of captioned pictures of 32 tokens in all, of texts of 25 tokens, and of all kinds mixed. No tokens are
read: that is a memory-mapped read of each document.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

BEGAN = time.perf_counter()

import numpy as np  # noqa: E402

from omniloom.stages.data.books import RowStream  # noqa: E402
from omniloom.stages.data.index import KINDS, Index, Lengths, write  # noqa: E402
from omniloom.stages.data.packing import PackingConfig  # noqa: E402
from omniloom.stages.data.planner import Planner  # noqa: E402

SHARD = 1 << 15
LENGTH = 4096
CORPORA = ("texts", "captioned", "short", "mixed")


def lengths(corpus: str, documents: int) -> Iterator[tuple[int, Lengths]]:
    for number in range(-(-documents // SHARD)):
        rng, count = np.random.default_rng((number, CORPORA.index(corpus))), min(SHARD, documents - number * SHARD)
        kinds = np.full(count, KINDS.index({"captioned": "image"}.get(corpus, "text")), np.uint8)
        if corpus == "mixed":
            kinds = rng.choice(len(KINDS), count, p=[0.4, 0.05, 0.5, 0.05]).astype(np.uint8)
        text = np.maximum(
            1, rng.lognormal(3.2 if corpus == "short" else 4.98, 0.1 if corpus == "short" else 0.8, count)
        )
        counts = np.where(kinds == KINDS.index("text"), 1, np.where(kinds == KINDS.index("document"), 6, 2))
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owner, visual = np.repeat(kinds, counts), place % 2 == 1
        grid = np.where(owner == KINDS.index("video"), 64, 16)
        words = np.where(owner == KINDS.index("text"), np.repeat(text, counts), rng.integers(4, 20, len(place)))
        segments = np.where(visual, -grid, words).astype(np.int32)
        yield (
            number,
            Lengths(kinds, counts.astype(np.int64), segments, segments, rng.integers(0, 1 << 62, count, np.uint64)),
        )


def memory() -> dict[str, int]:
    """MiB of this process that are its own now, and the most that it had with mapped files, which are the system's
    cache: all processes share them, and it takes them back when it needs to."""
    with open("/proc/self/status") as status:
        held = dict(line.split(":", 1) for line in status)
    return {name: int(held[name].split()[0]) >> 10 for name in ("RssAnon", "VmHWM")}


def measure(folder: Path, windows: int, position: dict | None) -> dict:
    """In a fresh process: `BEGAN` is before the imports."""
    imported = time.perf_counter() - BEGAN
    began = time.perf_counter()
    index = Index(folder)
    index.read_ahead()
    planner = Planner(index, PackingConfig(length=LENGTH, window_rows=256), 0)
    stream = RowStream(planner, position)
    stream.take(1)
    start = time.perf_counter() - began
    peak = 0
    seconds, tokens, padding, documents = [], 0, 0, 0
    cursors = planner.start()
    for number in range(windows):
        began = time.process_time()
        window = planner.window(number, cursors)
        seconds.append(time.process_time() - began)
        cursors = window.after
        used = int(window.pieces.length.sum())
        tokens, padding, documents = (
            tokens + used,
            padding + len(window) * LENGTH - used,
            documents + len(window.pieces),
        )
        peak = max(peak, memory()["RssAnon"])
    return {
        "imports_s": round(imported, 2),
        "start_s": round(start, 3),
        "window_ms": [round(1000 * f(seconds), 1) for f in (min, np.median, max)],
        "documents_a_window": documents // windows,
        "tokens_per_cpu_second": round(tokens / sum(seconds)),
        "padding": round(padding / (tokens + padding), 4),
        "own_memory_mib": peak,
        "with_mapped_files_mib": memory()["VmHWM"],
        "streams": cursors,
    }


def forget(files: bool) -> None:
    if files:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1\n")


def apart(folder: Path, windows: int, position: dict | None) -> dict:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--windows", str(windows), "--measure", str(folder), json.dumps(position)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=CORPORA)
    parser.add_argument("--cold", action="store_true", help="the system forgets the files before each measurement")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, position = options.measure
        print(json.dumps(measure(Path(folder), options.windows, json.loads(position))))
        return
    root = options.folder or Path(tempfile.mkdtemp())
    for corpus in [options.only] if options.only else CORPORA:
        folder = root / f"{corpus}-{options.documents}"
        if not folder.exists():
            began = time.perf_counter()
            write(folder, lengths(corpus, options.documents))
            print(
                f"{corpus}: index of {options.documents:,} documents in {time.perf_counter() - began:.0f} s", end=", "
            )
            print(f"{sum(f.stat().st_size for f in folder.iterdir()) / options.documents:.1f} bytes a document")

        forget(options.cold)
        fresh = apart(folder, options.windows, None)
        # Step 100,000 at 32 rows of a step: its window's number, and where the streams stand by what a window takes.
        far = 100_000 * 32 // 256
        streams = {name: [at * far // options.windows, 0.0] for name, (at, _) in fresh["streams"].items()}
        forget(options.cold)
        late = apart(
            folder, options.windows, {"window": far, "row": 17, "rows": 256 * far, "streams": streams, "marks": []}
        )
        del fresh["streams"]
        print(f"{corpus}: {json.dumps(fresh)}")
        print(f"  resume at step 100,000: {late['start_s']} s, own memory {late['own_memory_mib']} MiB")
        if not options.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
