"""Clips: the pixels of a step depend on the seed and the step alone, and every rank gets its slice of them."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import corpora  # noqa: E402

from stages import clips, media, records  # noqa: E402
from stages.clips import ClipBatches, ClipStore  # noqa: E402
from stages.train_tokenizer import DataConfig  # noqa: E402


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return corpora.ingest(tmp_path_factory.mktemp("clips") / "ingest")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def data(**fields) -> DataConfig:
    return DataConfig(**{"kinds": ["image", "video"], "sizes": [24], "frames": 5, "image_batch": 6, "video_batch": 4,
                         **fields})


def test_a_store_holds_the_decoded_records_of_one_kind_and_split(artifact):
    store = ClipStore(artifact, "image", "train", 16, 1, 1 << 20)
    rows = list(records.iterate(artifact.uri, kinds=["image"], split="train"))
    assert len(store) == len(rows) == 16
    for index, row in enumerate(rows):
        expected = media.resize_center_crop(media.decode_image(row["media"]), 16)
        np.testing.assert_array_equal(store[index], expected[None])
        assert store.record(index) == {name: row[name] for name in ("id", "caption", "label")}
    assert len(ClipStore(artifact, "video", "test", 16, 5, 0)) == 1


def test_videos_have_the_asked_frames_and_short_ones_repeat_some(artifact):
    row = next(records.iterate(artifact.uri, kinds=["video"]))
    clip = clips.decode("video", row["media"], 24, 5)
    assert clip.shape == (5, 24, 24, 3) and clip.dtype == np.uint8
    longer = clips.decode("video", row["media"], 24, 9)
    assert longer.shape == (9, 24, 24, 3)
    np.testing.assert_array_equal(longer, clip[[0, 0, 1, 2, 2, 2, 3, 4, 4]])


def test_decoded_clips_are_kept_up_to_the_limit(artifact, monkeypatch):
    calls = []
    original = clips.decode
    monkeypatch.setattr(clips, "decode", lambda *a: calls.append(a) or original(*a))
    store = ClipStore(artifact, "image", "train", 16, 1, cache_bytes=3 * 16 * 16 * 3)
    for _ in range(2):
        for index in range(5):
            store[index]
    assert len(calls) == 5 + 2


def test_shapes_ranges_and_kinds(artifact):
    batches = ClipBatches(artifact, "train", data(sizes=[16, 24], image_ratio=0.25), 3, 0, 1)
    kinds, sizes = [], set()
    for step in range(20):
        pixels = batches.at(step)
        kinds.append("image" if pixels.ndim == 4 else "video")
        sizes.add(pixels.shape[-1])
        assert pixels.dtype == torch.float32 and -0.5 <= pixels.min() < pixels.max() <= 0.5
        assert pixels.shape[:2] == ((6, 3) if pixels.ndim == 4 else (4, 3))
        assert pixels.shape[2:] in ((16, 16), (24, 24), (5, 16, 16), (5, 24, 24)) and pixels.is_contiguous()
        assert kinds[-1] == batches.kind_at(step)
    assert kinds.count("image") == 5 and sizes == {16, 24}
    batches.close()


@pytest.mark.parametrize("flip", [False, True])
def test_ranks_share_a_step_and_any_step_can_be_the_first(artifact, flip):
    settings = data(sizes=[16, 24], flip=flip)
    whole = ClipBatches(artifact, "train", settings, 7, 0, 1)
    straight = [whole.at(step) for step in range(8)]
    halves = [ClipBatches(artifact, "train", settings, 7, rank, 2) for rank in range(2)]
    for step in range(8):
        assert torch.equal(torch.cat([half.at(step) for half in halves]), straight[step])
    late = ClipBatches(artifact, "train", settings, 7, 0, 1)
    assert torch.equal(late.at(6), straight[6]) and torch.equal(late.at(7), straight[7])
    other = ClipBatches(artifact, "train", settings, 8, 0, 1)
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in
               zip(straight, (other.at(step) for step in range(8)), strict=True))
    for batches in (whole, *halves, late, other):
        batches.close()


def test_an_epoch_of_images_visits_each_once(artifact):
    batches = ClipBatches(artifact, "train", data(kinds=["image"], image_batch=4), 0, 0, 1)
    store = batches.stores["image"]
    wanted = {clip.tobytes() for clip in (store[i] for i in range(16))}
    for epoch in range(2):
        seen = [picture for step in range(4) for picture in batches.at(4 * epoch + step)]
        found = [((p.permute(1, 2, 0) + 0.5) * 255).round().byte().numpy().tobytes() for p in seen]
        assert len(set(found)) == 16 and set(found) == wanted
    batches.close()


def test_a_kind_that_is_missing_is_named_and_a_held_out_split_may_lack_it(artifact, tmp_path):
    only_images = corpora.ingest(tmp_path / "ingest", images=4, videos=0)
    with pytest.raises(ValueError, match="data.kinds: ingest holds no video"):
        ClipBatches(only_images, "train", data(), 0, 0, 1)
    held_out = ClipBatches(only_images, "validation", data(), 0, 0, 1)
    assert held_out.first("image", 3) is None and held_out.first("video", 3) is None
    held_out = ClipBatches(artifact, "validation", data(), 0, 0, 1)
    assert held_out.first("image", 3).shape == (3, 3, 24, 24)
    assert held_out.first("video", 3).shape == (1, 3, 5, 24, 24)


def test_a_batch_is_described_by_its_ids(artifact):
    batches = ClipBatches(artifact, "train", data(kinds=["image"]), 0, 0, 1)
    ids = {row["id"][:12] for row in records.iterate(artifact.uri, kinds=["image"])}
    text = batches.describe(3)
    assert text.startswith("6 images at 24 pixels, ids ")
    assert set(text.split("ids ")[1].split(", ")) <= ids
