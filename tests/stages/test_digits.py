"""The demo's corpus: real digits, readable by ingest, the same each time, made once."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from omniloom.stages.data import records  # noqa: F401 (sources registers the protocol)
from omniloom.stages.data.media.decode import decode_image, decode_video
from omniloom.stages.ingest import digits, sources  # noqa: F401 (sources registers the protocol)
from omniloom.stages.ingest import stage as ingest

MANIFEST = {"manifest": "manifest.jsonl", "group_field": "group"}
CONFIG = ingest.Config.model_validate(
    {
        "sources": [
            {"kind": "image_folder", "uri": "digits://images", "captions": MANIFEST},
            {"kind": "video_folder", "uri": "digits://videos", "captions": MANIFEST},
            {"kind": "text", "uri": "digits://text"},
        ]
    }
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The rows that ingest makes of a corpus built for this module, and the seconds that building took."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(home))
        clear()
        started = time.perf_counter()
        ingest.listing(CONFIG)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        listing = ingest.listing(CONFIG)
        root = f"memory://digits-{time.monotonic_ns()}"
        context = SimpleNamespace(
            config=CONFIG,
            output=f"{root}/output",
            state=f"{root}/state",
            predecessor=None,
            progress=lambda *args, **facts: None,
        )
        yield SimpleNamespace(
            home=home,
            build_seconds=seconds,
            list_seconds=time.perf_counter() - started,
            listing=listing,
            metrics=ingest.run(context),
            rows=list(records.iterate(context.output)),
        )
        clear()


def clear():
    digits.corpus.cache_clear()
    digits._index.cache_clear()


def rows_of(corpus, kind: str) -> list[dict]:
    return [row for row in corpus.rows if row["kind"] == kind]


def test_it_is_made_in_seconds_and_listed_at_once(corpus):
    assert corpus.build_seconds < 20  # 3 s on an idle core
    assert corpus.list_seconds < 1
    assert [path.name for path in (corpus.home / "omniloom").iterdir()] == [digits.corpus().name]


def test_everything_in_it_can_be_used(corpus):
    assert corpus.metrics["rejects"] == 0 and corpus.metrics["uncaptioned"] == 0
    assert (corpus.metrics["records_image"], corpus.metrics["records_video"]) == (1797, 400)
    assert corpus.metrics["duplicates"] < 10
    assert 200_000 < sum(len(row["text"]) for row in rows_of(corpus, "text")) < 2_000_000


def test_images_are_scikit_learns_digits(corpus):
    from sklearn.datasets import load_digits

    known = load_digits()
    errors = []
    for row in rows_of(corpus, "image"):
        index = int(row["path"].removesuffix(".png"))
        image = decode_image(row["media"])
        assert image.shape == (32, 32, 3) and (image == image[..., :1]).all()
        assert row["label"] == digits.NAMES[known.target[index]] and row["label"] in row["caption"]
        small = image[..., 0].reshape(8, 4, 8, 4).mean((1, 3)) / 255
        errors.append(np.abs(small - known.images[index] / 16).mean())
    assert max(errors) < 0.08


def test_captions_are_mostly_the_plain_one(corpus):
    wordings = Counter(row["caption"].replace(row["label"], "#") for row in rows_of(corpus, "image"))
    assert len(wordings) == 4 and 0.65 < wordings["a handwritten #"] / 1797 < 0.75


def test_videos_move_as_their_captions_say(corpus):
    seen = Counter()
    for row in rows_of(corpus, "video")[:40]:
        frames = decode_video(row["media"])
        assert frames.shape == (9, 32, 32, 3) and row["fps"] == 8
        weight = frames[..., 0].astype(float)
        rows = (weight * np.arange(32)[:, None]).sum((1, 2)) / weight.sum((1, 2))
        columns = (weight * np.arange(32)).sum((1, 2)) / weight.sum((1, 2))
        direction = row["caption"].split()[-1]
        along, across = (columns, rows) if direction in ("left", "right") else (rows, columns)
        sign = 1 if direction in ("right", "down") else -1
        steps = sign * np.diff(along)
        assert (steps > 0.3).all() and steps.std() < 0.35 and np.abs(np.diff(across)).max() < 0.5
        assert row["label"] in row["caption"]
        seen[direction] += 1
    assert set(seen) == set(digits.DIRECTIONS)


def test_a_listing_tells_content_and_no_time(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clear()
    try:
        assert ingest.listing(CONFIG) == corpus.listing  # built again, elsewhere, later
    finally:
        monkeypatch.undo()
        clear()
    assert all(fact["identity"].startswith("sha256:") for fact in corpus.listing)


def test_fresh_processes_make_equal_videos():
    """Within one process x264's defaults mostly repeat themselves; between processes they did not."""
    code = (
        "import hashlib; from omniloom.stages.ingest import digits; "
        "print(hashlib.sha256(b''.join(data for _, data in digits._videos())).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]


def test_the_filesystem(corpus):
    fs = fsspec.filesystem("digits")
    assert fs.ls("", detail=False) == ["images", "text", "videos"]
    assert fs.isdir("images") and fs.isfile("images/0000.png") and not fs.exists("sounds")
    rows = [json.loads(line) for line in fs.cat_file("videos/manifest.jsonl").splitlines()]
    assert len(rows) == 400 and fs.exists(f"videos/{rows[-1]['file']}")
    with fsspec.open("digits://images/0000.png") as file:
        assert file.read(4) == b"\x89PNG"
    with pytest.raises(FileNotFoundError, match="images, videos and text"):
        fs.ls("sounds")
    with pytest.raises(PermissionError):
        fs.open("images/x.png", "wb")


@pytest.mark.slow
def test_processes_that_build_at_once_end_with_one_corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clear()
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = pool.map(_corpus_name, range(2))
    clear()
    assert len(set(found)) == 1 and [p.name for p in (tmp_path / "omniloom").iterdir()] == found[:1]


def _corpus_name(_: int) -> str:
    return digits.corpus().name


def test_no_held_out_scan_moves_in_a_train_video(corpus):
    """By the manifests' word for all; by what is seen for a sample: the scan that a frame looks most like."""
    splits = {}
    fs = fsspec.filesystem("digits")
    for folder in ("images", "videos"):
        manifest = map(json.loads, fs.cat_file(f"{folder}/manifest.jsonl").splitlines())
        groups = {row["file"]: row["group"] for row in manifest}
        for row in rows_of(corpus, folder[:-1]):
            splits.setdefault(groups[row["path"]], set()).add(row["split"])
    assert len(splits) > 1790 and all(len(found) == 1 for found in splits.values())
    scans = rows_of(corpus, "image")
    known = np.stack([_centred(decode_image(row["media"])[..., 0], 24 / 32) for row in scans])
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    held_out = [row for row in rows_of(corpus, "video") if row["split"] != "train"]
    for row in [*held_out, *[row for row in rows_of(corpus, "video") if row["split"] == "train"][:60]]:
        seen = _centred(decode_video(row["media"])[4, ..., 0], 1)
        likest = np.argsort(known @ seen)[-3:]  # of a few digits another scan comes out as like
        assert row["split"] in {scans[i]["split"] for i in likest}
    assert 0.05 < len(held_out) / 400 < 0.2


def _centred(picture: np.ndarray, scale: float) -> np.ndarray:
    """A digit on black, its centre of mass in the middle, in the size that it has in videos."""
    from scipy.ndimage import affine_transform, center_of_mass

    picture = picture.astype(float)
    offset = np.array(center_of_mass(picture)) - 12 / scale
    return affine_transform(picture, [1 / scale] * 2, offset, (24, 24), order=1).ravel()
