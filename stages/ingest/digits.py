"""The demo's corpus: a read-only fsspec filesystem `digits://` made of what the installed packages bring
along.

    digits://images   1797 handwritten digits of scikit-learn, 32x32 PNG, white on black, and manifest.jsonl
    digits://videos   400 mp4 of such digits moving, 32x32, 9 frames at 8 frames a second, and manifest.jsonl
    digits://text     English: Python's language reference and license, descriptions of data sets, packages'
    readmes

Manifest rows are {"file", "caption", "label", "group"}: "a handwritten seven", "a handwritten seven moving left";
"seven"; "scan 0012", the digit that is seen or moves.

The files are made once, in seconds, under $XDG_CACHE_HOME/omniloom (by default ~/.cache/omniloom) in a folder
named by the versions of what they are made from. Their sha256 stand in index.json, so a listing depends on no
clock.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from email.message import Message
from functools import cache
from pathlib import Path
from typing import cast

from fsspec import AbstractFileSystem

from omniloom.infra import disk

VERSION = 3  # raised when other files come out of the same packages
SIDE, GLYPH, NUM_VIDEOS, NUM_FRAMES, FPS = 32, 24, 400, 9, 8
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (row, column)
# (share of the images in per cent, caption); the first is the one that the report asks for
CAPTIONS = (
    (70, "a handwritten {name}"),
    (80, "the digit {name}, written by hand"),
    (90, "the number {name} in handwriting"),
    (100, "handwritten digit: {name}"),
)
LICENSES = ("pyarrow", "matplotlib", "torchmetrics")
READMES = (
    "scikit-learn",
    "torch",
    "deepspeed",
    "mlflow",
    "torchmetrics",
    "matplotlib",
    "rich",
    "typer",
    "tokenizers",
)


class DigitsFileSystem(AbstractFileSystem):
    """Read-only; builds its cache at first use. `info` has the content's `sha256`."""

    protocol = "digits"
    root_marker = ""

    def ls(self, path: str, detail: bool = True, **kwargs) -> list:
        path = self._strip_protocol(path).strip("/")
        index = _index()
        if path in index:
            found = [self.info(path)]
        else:
            prefix = f"{path}/" if path else ""
            heads = {prefix + name[len(prefix) :].split("/")[0] for name in index if name.startswith(prefix)}
            if not heads:
                raise FileNotFoundError(f"digits://{path}; there are images, videos and text")
            found = [self._info(name, index) for name in sorted(heads)]
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **kwargs) -> dict:
        path, index = self._strip_protocol(path).strip("/"), _index()
        if path and path not in index and not any(name.startswith(f"{path}/") for name in index):
            raise FileNotFoundError(f"digits://{path}; there are images, videos and text")
        return self._info(path, index)

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs):
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        path, index = self._strip_protocol(path).strip("/"), _index()
        prefix = f"{path}/" if path else ""
        names = [name for name in index if name == path or name.startswith(prefix)]
        return {name: self._info(name, index) for name in names} if detail else names

    def _info(self, path: str, index: dict) -> dict:
        if path in index:
            return {"name": path, "type": "file", **index[path]}
        return {"name": path, "type": "directory", "size": 0}

    def _open(self, path: str, mode: str = "rb", **kwargs):
        if mode != "rb":
            raise PermissionError("digits:// is read-only")
        self.info(path)
        return open(corpus() / self._strip_protocol(path).strip("/"), "rb")


@cache
def _index() -> dict[str, dict]:
    """path -> {"size", "sha256"}, sorted by path."""
    return json.loads((corpus() / "index.json").read_text(encoding="utf-8"))


@cache
def corpus() -> Path:
    """The local folder that holds the files; made if it is not there. Safe for many processes at once."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omniloom"
    target = home / f"digits-v{VERSION}-{_identity()}"
    if (target / "index.json").exists():
        return target
    home.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=home, prefix=".digits-"))
    try:
        build(staging)
        disk.sync_tree(staging)
        try:
            staging.rename(target)
        except OSError:
            if not (target / "index.json").exists():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _identity() -> str:
    """Names the versions of everything that the files are made from."""
    packages = sorted({"scikit-learn", "pillow", "av", *LICENSES, *READMES})
    versions = [(name, _version(name)) for name in packages]
    return hashlib.sha256(json.dumps([platform.python_version(), versions]).encode()).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def build(folder: Path) -> None:
    """Write the whole corpus and its index.json below an empty folder."""
    index = {}
    for path, data in sorted([*_images(), *_videos(), *_text()]):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        index[path] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


@cache
def _digits() -> tuple:
    """(pixels (1797, 8, 8) float32 in [0, 1], labels as a list of ints), read without importing scikit-
    learn.
    """
    import numpy as np

    package = _package("sklearn")
    with gzip.open(package / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.array([[float(value) for value in row] for row in csv.reader(file)], np.float32)
    return table[:, :64].reshape(-1, 8, 8) / 16, table[:, 64].astype(int).tolist()


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"digits:// is made from the package {name}, which is not installed")
    return Path(spec.submodule_search_locations[0])


def _scaled(pixels, side: int):
    """8x8 in [0, 1] to (side, side) float32 in [0, 1], bicubic."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0.0, 1.0)


def _rgb(grey):
    """Floats in [0, 1] to uint8 with three equal channels in a last axis."""
    import numpy as np

    return np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=-1)


def caption_of(index: int, label: int) -> str:
    """The caption of image `index`: the wording is drawn by the index, the same each time."""
    draw = int.from_bytes(hashlib.sha256(f"caption {index}".encode()).digest()[:4], "big") % 100
    return next(text for share, text in CAPTIONS if draw < share).format(name=NAMES[label])


def _scan(index: int) -> str:
    """The group of all that shows one scan: a video is in the split of the digit that moves in it."""
    return f"scan {index:04d}"


def _images() -> Iterator[tuple[str, bytes]]:
    from omniloom.stages.data.media.decode import encode_png

    pixels, labels = _digits()
    rows = []
    for index, label in enumerate(labels):
        name = f"{index:04d}.png"
        rows.append({"file": name, "caption": caption_of(index, label), "label": NAMES[label], "group": _scan(index)})
        yield f"images/{name}", encode_png(_rgb(_scaled(pixels[index], SIDE)))
    yield "images/manifest.jsonl", _jsonl(rows)


def _videos() -> Iterator[tuple[str, bytes]]:
    from omniloom.stages.data.media.decode import encode_mp4

    pixels, labels = _digits()
    rows = []
    for number in range(NUM_VIDEOS):
        index = number * len(labels) // NUM_VIDEOS
        direction = list(DIRECTIONS)[number % len(DIRECTIONS)]
        name = f"{number:04d}.mp4"
        rows.append(
            {
                "file": name,
                "caption": f"a handwritten {NAMES[labels[index]]} moving {direction}",
                "label": NAMES[labels[index]],
                "group": _scan(index),
            }
        )
        yield f"videos/{name}", encode_mp4(_moving(pixels[index], direction), FPS, crf=12)
    yield "videos/manifest.jsonl", _jsonl(rows)


def _moving(pixels, direction: str):
    """uint8 (NUM_FRAMES, SIDE, SIDE, 3): the digit crosses the picture through its middle, from one edge to the other,
    at an even pace.

    Hundreds of clips are enough to learn that from; places and paces drawn at random would take many thousands.
    """
    import numpy as np

    glyph = _scaled(pixels, GLYPH)
    room = SIDE - GLYPH
    frames = np.zeros((NUM_FRAMES, SIDE, SIDE), np.float32)
    d_row, d_column = DIRECTIONS[direction]
    for t in range(NUM_FRAMES):
        along = room * t / (NUM_FRAMES - 1)
        along = along if d_row + d_column > 0 else room - along
        row, column = (along, room / 2) if d_row else (room / 2, along)
        frames[t] = _placed(glyph, row, column)
    return _rgb(frames)


def _placed(glyph, row: float, column: float):
    """The glyph on black with its corner at a fractional place: each pixel is shared among its four
    neighbours.
    """
    import numpy as np

    canvas = np.zeros((SIDE + 1, SIDE + 1), np.float32)
    top, left = int(row), int(column)
    fy, fx = row - top, column - left
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            canvas[top + dy : top + dy + GLYPH, left + dx : left + dx + GLYPH] += wy * wx * glyph
    return canvas[:SIDE, :SIDE]


def _text() -> Iterator[tuple[str, bytes]]:
    """English that the standard library and the packages ship; what a build of Python leaves out is left
    out.
    """
    if importlib.util.find_spec("pydoc_data"):
        from pydoc_data.topics import topics

        for name, text in sorted(topics.items()):
            if len(text) >= 2000:
                yield f"text/python-{name.lower()}.txt", text.encode()
    library_license = Path(os.__file__).parent / "LICENSE.txt"
    if library_license.is_file():
        yield "text/python-license.txt", library_license.read_bytes()
    for page in sorted((_package("sklearn") / "datasets" / "descr").glob("*.rst")):
        yield f"text/dataset-{page.stem}.txt", page.read_bytes()
    for package in LICENSES:
        for file in _license_files(package):
            yield f"text/license-{package}-{posixpath.basename(file)}.txt", _read(package, file)
    for package in READMES:
        if _version(package) and (readme := cast(Message, importlib.metadata.metadata(package)).get_payload()):
            yield f"text/readme-{package}.txt", str(readme).encode()


def _license_files(package: str) -> list[str]:
    """License files at the top of the package's dist-info, not those of code within it."""
    files = importlib.metadata.files(package) or [] if _version(package) else []
    names = [str(file) for file in files if ".dist-info/" in str(file)]
    return sorted(
        name
        for name in names
        if posixpath.basename(name).upper().startswith(("LICENSE", "NOTICE"))
        and name.removesuffix(posixpath.basename(name)).rstrip("/").endswith((".dist-info", "licenses"))
    )


def _read(package: str, file: str) -> bytes:
    return Path(str(importlib.metadata.distribution(package).locate_file(file))).read_bytes()


def _jsonl(rows: list[dict]) -> bytes:
    sink = io.StringIO()
    for row in rows:
        sink.write(json.dumps(row) + "\n")
    return sink.getvalue().encode()
