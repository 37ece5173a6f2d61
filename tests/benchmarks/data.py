"""Ingest, measured beside bare loops over the same files, in one process and in turns; and how it grows.

    python tests/benchmarks/data.py items [pictures videos jsonl texts]     CPU time of one thread, ratio to the loop
    python tests/benchmarks/data.py listing [COUNT ...]                     seconds and memory of listing and grouping
    python tests/benchmarks/data.py growing [pictures texts tokens]         CPU time of a run with 1% of new files
    python tests/benchmarks/data.py settling [COUNT ...]                    seconds and memory of settling texts
    python tests/benchmarks/data.py large [GIGABYTES] [texts pictures]      one JSONL of texts, one that names pictures,
                                                                            through `omniloom run` on Ray

Two loops stand beside ingest. The bare one reads and decodes what ingest has to, and keeps nothing: pictures are
opened, decoded and brought to RGB (Pillow), videos decoded (PyAV), lines parsed and hashed, texts decoded and hashed.
The one that keeps does the least that gives a data set: what is decoded is hashed, and written to Parquet under its
hash. Neither looks for near twins, splits, rejects or facts. Where `datatrove` is installed its reader of JSON lines is
a further column. Ratios are a loop's time over ours; 1 is as fast.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np

GOALS = {"pictures": 0.85, "videos": 0.9, "jsonl": 0.5, "texts": 0.5}


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


# ---- what is read ----


def picture(rng: np.random.Generator, side: int = 256) -> bytes:
    from PIL import Image

    coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 13, (side, side, 3))
    sink = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=85)
    return sink.getvalue()


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(f"w{n:x}" for n in rng.zipf(1.3, words) % 50_000)


def make(folder: Path, part: str, count: int) -> dict:
    """Files for a part, and the source that reads them."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True)
    if part == "pictures":
        for n in range(count):
            (folder / f"{n:06d}.jpg").write_bytes(picture(rng))
        return {"kind": "image_folder", "uri": str(folder)}
    if part == "videos":
        from omniloom.stages.data.media.decode import encode_mp4

        for n in range(count):
            frames = np.repeat(rng.integers(0, 256, (48, 24, 32, 3), np.uint8), 10, 1).repeat(10, 2)
            (folder / f"{n:04d}.mp4").write_bytes(encode_mp4(frames, 24))
        return {"kind": "video_folder", "uri": str(folder)}
    if part == "jsonl":
        with open(folder / "a.jsonl", "w") as file:
            for n in range(count):
                file.write(json.dumps({"text": sentence(rng, 180), "url": f"https://example.org/{n}"}) + "\n")
        return {"kind": "jsonl", "uri": str(folder), "text_field": "text"}
    for n in range(count):
        (folder / f"{n:06d}.txt").write_text(sentence(rng, 180))
    return {"kind": "text", "uri": str(folder)}


COUNTS = {"pictures": 600, "videos": 12, "jsonl": 8000, "texts": 4000}


# ---- the loops ----


# Each gives pairs of a content's hash, where it is asked for, and what there is to keep.


def loop_pictures(folder: Path, hashed: bool) -> Iterator[tuple[str, bytes]]:
    from blake3 import blake3
    from PIL import Image

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            pixels = image.convert("RGB")
            pixels.load()
        yield blake3(np.asarray(pixels)).hexdigest() if hashed else "", data


def loop_videos(folder: Path, hashed: bool) -> Iterator[tuple[str, bytes]]:
    import av
    from blake3 import blake3

    for path in sorted(folder.iterdir()):
        data, digest = path.read_bytes(), blake3()
        with av.open(io.BytesIO(data)) as container:
            for frame in container.decode(video=0):
                if hashed:
                    digest.update(np.ascontiguousarray(frame.to_ndarray()))
        yield digest.hexdigest(), data


def loop_jsonl(folder: Path, hashed: bool) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            for line in file:
                text = json.loads(line)["text"]
                yield hashlib.sha256(text.encode()).hexdigest(), text


def loop_texts(folder: Path, hashed: bool) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        text = path.read_bytes().decode()
        yield hashlib.sha256(text.encode()).hexdigest(), text


LOOPS = {"pictures": loop_pictures, "videos": loop_videos, "jsonl": loop_jsonl, "texts": loop_texts}


def bare(part: str, folder: Path) -> None:
    for _ in LOOPS[part](folder, hashed=False):
        pass


def keeping(part: str, folder: Path, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = part in ("jsonl", "texts")
    schema = pa.schema([("id", pa.string()), ("content", pa.string() if texts else pa.binary())])
    found = LOOPS[part](folder, hashed=True)
    with open(target, "wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd" if texts else "none", use_dictionary=False) as writer:
            while some := list(itertools.islice(found, 4096 if texts else 512)):
                ids, contents = zip(*some, strict=True)
                writer.write_table(pa.table([pa.array(ids), pa.array(contents, schema.field(1).type)], schema=schema))
        file.flush()
        os.fsync(file.fileno())


def ours(source: dict, work: Path) -> Callable[[], None]:
    from omniloom.stages.ingest import sources
    from omniloom.stages.ingest.config import Config
    from omniloom.stages.ingest.groups import grouped, ingest_group

    config = Config.model_validate({"sources": [source]})

    def run() -> None:
        shutil.rmtree(work, ignore_errors=True)
        for group in grouped(sources.pieces(config), config):
            for _ in ingest_group(group, config, str(work / "output"), str(work / "state")):
                pass

    return run


def items(parts: list[str], repeats: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            source = make(Path(folder) / part, part, COUNTS[part])
            place = Path(folder)
            ways = {
                "bare loop": partial(bare, part, place / part),
                "loop that keeps": partial(keeping, part, place / part, place / "kept.parquet"),
                "ours": ours(source, place / "w"),
            }
            if part == "jsonl" and (peer := datatrove(Path(folder) / part)):
                ways["datatrove"] = peer
            best = dict.fromkeys(ways, float("inf"))
            for _ in range(repeats):
                for name, way in ways.items():
                    best[name] = min(best[name], cpu(way))
            told = ", ".join(f"{name} {1e6 * t / COUNTS[part]:.0f} us" for name, t in best.items())
            ratios = " and ".join(f"{best[way] / best['ours']:.2f} of the {way}" for way in list(ways)[:2])
            print(f"{part}: {told}; ratio {ratios} (goal {GOALS[part]})", flush=True)


def datatrove(folder: Path) -> Callable[[], None] | None:
    try:
        JsonlReader = importlib.import_module("datatrove.pipeline.readers").JsonlReader
    except ImportError:
        return None

    def run() -> None:
        for _ in JsonlReader(str(folder))(rank=0, world_size=1):
            pass

    return run


# ---- growth ----


def generated() -> type:
    """A filesystem of as many small texts as its path says, a thousand a folder, which are made as they are listed."""
    from fsspec import AbstractFileSystem

    class Generated(AbstractFileSystem):
        protocol = "generated"

        def info(self, path, **_):
            name = self._strip_protocol(path).rsplit("/", 1)[-1]
            if name.endswith(".txt"):
                return {"name": path, "type": "file", "size": 800, "mtime": 1.7e9 + int(name[4:-4]) / 7}
            return {"name": path, "type": "directory", "size": 0}

        def ls(self, path, detail=True, **_):
            path = self._strip_protocol(path).strip("/")
            count, _, folder = path.partition("/")
            if folder:
                names = [f"{path}/text{int(folder) * 1000 + n:09d}.txt" for n in range(1000)]
            else:
                names = [f"{path}/{n:06d}" for n in range(int(count) // 1000)]
            return [self.info(name) for name in names] if detail else names

    return Generated


def list_one(count: int) -> None:
    """What a plan and the stage's body do with a listing, in this process."""
    import fsspec

    fsspec.register_implementation("generated", generated())
    from omniloom.infra.packed import Packed
    from omniloom.pipelines.fingerprint import digest_of_rows
    from omniloom.stages.ingest import sources
    from omniloom.stages.ingest.config import Config
    from omniloom.stages.ingest.groups import grouped
    from omniloom.stages.ingest.increments.known import Files, Items, Known

    config = Config.model_validate({"sources": [{"kind": "text", "uri": f"generated://{count}"}]})
    start = time.process_time()
    facts = sources.listing(config)
    digest_of_rows(facts)
    planned = time.process_time() - start
    del facts
    start = time.process_time()
    files = Files()
    items = Items(Known(None), files, ["text"])
    groups = Packed(map(items.placed, grouped(items.unread(sources.pieces(config, listed=files.add)), config)), 1)
    print(
        json.dumps(
            {
                "count": count,
                "plan": planned,
                "groups": time.process_time() - start,
                "number": len(groups),
                "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def listing(counts: list[int]) -> None:
    told = []
    for count in counts:
        made = subprocess.run(
            [sys.executable, __file__, "list_one", str(count)], capture_output=True, text=True, check=True
        )
        told.append(json.loads(made.stdout))
        print(
            f"{count:,}: plan {told[-1]['plan']:.1f} s, groups {told[-1]['groups']:.1f} s CPU, {told[-1]['MB']:.0f} MB"
        )
    for name in ("plan", "groups"):
        logs = np.log([[row["count"], row[name]] for row in told])
        print(f"{name}: grows with exponent {np.polyfit(logs[:, 0], logs[:, 1], 1)[0]:.2f} (goal 1.05)")


# ---- one large file ----


def large_file(folder: Path, what: str, size: float) -> dict:
    """One JSONL of about `size` bytes of texts, or that names about as many bytes of pictures."""
    folder.mkdir(parents=True)
    with open(folder / "rows.jsonl", "w") as rows:
        (texts_of if what == "texts" else pictures_of)(folder, rows, size)
    field = {"text_field": "text"} if what == "texts" else {"image_field": "image", "caption_field": "caption"}
    return {"kind": "jsonl", "uri": str(folder / "rows.jsonl"), **field}


_WORDS = 180  # of a text


def texts_of(folder: Path, rows: TextIO, size: float) -> None:
    rng, held = np.random.default_rng(3), 0
    known = np.array([f"w{n:x}" for n in rng.zipf(1.3, 1 << 20) % 50_000], object)  # as often as each comes
    while held < size:
        words = known[rng.integers(0, len(known), (4096, _WORDS))].tolist()
        block = "".join(f'{{"text": "{" ".join(text)}"}}\n' for text in words)
        held += len(block)
        rows.write(block)


def pictures_of(folder: Path, rows: TextIO, size: float) -> None:
    """Of 512 x 512 pixels, coarse colours under noise, made by two threads."""
    import simplejpeg
    from PIL import Image

    grain = np.random.default_rng(4).integers(0, 48, (2, 512, 512, 3), np.uint8)

    def make(n: int) -> int:
        rng = np.random.default_rng(n)
        coarse = Image.fromarray(rng.integers(0, 200, (12, 12, 3), np.uint8))
        smooth = np.asarray(coarse.resize((512, 512), Image.Resampling.BILINEAR))
        pixels = smooth + np.roll(grain[n % 2], int(rng.integers(512)), axis=n // 2 % 2)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85)
        (folder / f"{n:07d}.jpg").write_bytes(data)
        return len(data)

    held, first = 0, 0
    with ThreadPoolExecutor(2) as pool:
        while held < size:
            numbers = range(first, first + 256)
            held, first = held + sum(pool.map(make, numbers)), numbers.stop
            rows.write("".join(json.dumps({"image": f"{n:07d}.jpg", "caption": f"number {n}"}) + "\n" for n in numbers))


def large(gigabytes: float, whats: list[str]) -> None:
    """What ingest of one file takes: seconds, cores that were busy, its largest process, how full shards are."""
    import yaml

    limit = 64 << 20
    for what in whats:
        with tempfile.TemporaryDirectory(prefix="omniloom-large-") as name:
            folder, began = Path(name), time.monotonic()
            source = large_file(folder / "in", what, gigabytes * 1e9)
            ingest = {"sources": [source], "shard_bytes": limit, "shard_items": 1 << 30}
            stages = {"ingest": ingest}
            config = {"name": "large", "storage": str(folder / "runs"), "stages": stages}
            (folder / "large.yaml").write_text(yaml.safe_dump(config))
            made, began = time.monotonic() - began, time.monotonic()
            run = subprocess.Popen(
                [sys.executable, "-m", "omniloom.pipelines.cli", "run", str(folder / "large.yaml")],
                stdout=subprocess.DEVNULL,
            )
            largest, busy = watched(run)
            seconds = time.monotonic() - began
            if run.returncode:
                sys.exit(f"{what}: the run ended with {run.returncode}")
            sizes = [path.stat().st_size / limit for path in sorted((folder / "runs").rglob("records/*.parquet"))]
            full = sizes[:-1] or sizes  # the last one has what is left
            print(
                f"{what}: {gigabytes:g} GB (made in {made:.0f} s) in {seconds:.0f} s, "
                f"{busy / seconds:.2f} cores busy, largest process "
                f"{largest[1] / 1e9:.2f} GB ({largest[0]}), {len(sizes)} shards, "
                f"files of {min(full):.2f} to {max(full):.2f} of the limit",
                flush=True,
            )


def watched(run: subprocess.Popen) -> tuple[tuple[str, int], float]:
    """Until it ends: the name and the resident memory of its largest process, what is shared with others left out; and
    the CPU seconds of it and all that it started."""
    import psutil

    seconds: dict[int, float] = {}
    largest = ("", 0)
    while run.poll() is None:
        try:
            family = [parent := psutil.Process(run.pid), *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for process in family:
            try:
                memory, times = process.memory_info(), process.cpu_times()
                seconds[process.pid] = times.user + times.system
                if (own := memory.rss - memory.shared) > largest[1]:
                    largest = (" ".join(process.cmdline())[-40:] or process.name(), own)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        time.sleep(0.5)
    return largest, sum(seconds.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["items", "listing", "list_one", "growing", "settling", "settle_one", "large"])
    parser.add_argument("more", nargs="*")
    given = parser.parse_args()
    if given.what == "items":
        items(given.more or list(COUNTS))
    elif given.what == "listing":
        listing([int(count) for count in given.more] or [100_000, 1_000_000, 10_000_000])
    elif given.what == "growing":
        from growing import COUNTS as GROWING
        from growing import growing

        growing(given.more or list(GROWING))
    elif given.what == "settling":
        from growing import settling

        settling([int(count) for count in given.more] or [100_000, 300_000, 1_000_000])
    elif given.what == "settle_one":
        from growing import settle_one

        print(json.dumps(settle_one(int(given.more[0]))))
    elif given.what == "large":
        large(float((given.more or ["5"])[0]), given.more[1:] or ["texts", "pictures"])
    elif given.what == "list_one":
        list_one(int(given.more[0]))
