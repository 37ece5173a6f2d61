"""Clips: the pixels of a step depend on the seed and the step alone, and every rank gets its slice of them."""

from __future__ import annotations

import corpora
import numpy as np
import pytest
import torch

from omniloom.infra.errors import InputError
from omniloom.stages.data import clips, records
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import ClipBatches, ClipStore
from omniloom.stages.data.media import decode as media
from omniloom.stages.data.media import videos
from omniloom.stages.ingest.rows import media_row
from omniloom.stages.tokenizer.config import DataConfig

SQUARES = Aspects()
NAMES = ("1:1", "3:2", "2:3")
SHAPES = {24: [(24, 24), (16, 32), (32, 16)], 48: [(48, 48), (40, 56), (56, 40)]}  # (height, width) for a patch of 8


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return corpora.ingest(tmp_path_factory.mktemp("clips") / "ingest")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return corpora.ingest_shapes(tmp_path_factory.mktemp("shapes") / "ingest")


def data(**fields) -> DataConfig:
    return DataConfig(
        **{"kinds": ["image", "video"], "sizes": [24], "frames": 5, "image_batch": 6, "video_batch": 4, **fields}
    )


def test_a_store_holds_the_decoded_records_of_one_kind_and_split(artifact):
    store = ClipStore(artifact, "image", "train", SQUARES, 16, 1, 1 << 20)
    rows = list(records.iterate(artifact.uri, kinds=["image"], split="train"))
    assert len(store) == len(rows) == 16
    for index, row in enumerate(rows):
        expected = media.resize_center_crop(media.decode_image(row["media"]), 16)
        np.testing.assert_array_equal(store[index], expected[None])
        assert store.record(index) == {name: row[name] for name in ("id", "caption", "label")}
    assert len(ClipStore(artifact, "video", "test", SQUARES, 16, 5, 0)) == 1


def test_videos_have_the_asked_frames_and_short_ones_repeat_some(artifact):
    row = next(records.iterate(artifact.uri, kinds=["video"]))
    clip = clips.decode("video", row["media"], (24, 24), 5)
    assert clip.shape == (5, 24, 24, 3) and clip.dtype == np.uint8
    longer = clips.decode("video", row["media"], (24, 24), 9)
    assert longer.shape == (9, 24, 24, 3)
    np.testing.assert_array_equal(longer, clip[[0, 0, 1, 2, 2, 2, 3, 4, 4]])


def counted(monkeypatch) -> list:
    """The calls of `decode` from now on."""
    calls, original = [], clips.decode
    monkeypatch.setattr(clips, "decode", lambda *a: calls.append(a) or original(*a))
    return calls


def test_decoded_clips_are_kept_up_to_the_limit(artifact, monkeypatch):
    calls = counted(monkeypatch)
    store = ClipStore(artifact, "image", "train", SQUARES, 16, 1, cache_bytes=3 * 16 * 16 * 3)
    for _ in range(2):
        for index in range(5):
            store[index]
    assert len(calls) == 5 + 2


def test_shapes_ranges_and_kinds(artifact):
    batches = ClipBatches(artifact, "train", data(sizes=[16, 24], image_ratio=0.25), 8, 3, 0, 1)
    kinds, sizes = [], set()
    for step in range(20):
        pixels = batches.at(step)
        kinds.append("image" if pixels.ndim == 4 else "video")
        sizes.add(pixels.shape[-1])
        assert pixels.dtype == torch.float32 and -0.5 <= pixels.min() < pixels.max() <= 0.5
        assert pixels.shape[:2] == ((6, 3) if pixels.ndim == 4 else (4, 3))
        assert pixels.shape[2:] in ((16, 16), (24, 24), (5, 16, 16), (5, 24, 24)) and pixels.is_contiguous()
    assert kinds.count("image") == 5 and sizes == {16, 24}
    batches.close()


@pytest.mark.parametrize("flip", [False, True])
def test_ranks_share_a_step_and_any_step_can_be_the_first(artifact, flip):
    settings = data(sizes=[16, 24], flip=flip)
    whole = ClipBatches(artifact, "train", settings, 8, 7, 0, 1)
    straight = [whole.at(step) for step in range(8)]
    halves = [ClipBatches(artifact, "train", settings, 8, 7, rank, 2) for rank in range(2)]
    for step in range(8):
        assert torch.equal(torch.cat([half.at(step) for half in halves]), straight[step])
    late = ClipBatches(artifact, "train", settings, 8, 7, 0, 1)
    assert torch.equal(late.at(6), straight[6]) and torch.equal(late.at(7), straight[7])
    other = ClipBatches(artifact, "train", settings, 8, 8, 0, 1)
    assert any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(straight, (other.at(step) for step in range(8)), strict=True)
    )
    for batches in (whole, *halves, late, other):
        batches.close()


def test_an_epoch_of_images_visits_each_once(artifact):
    batches = ClipBatches(artifact, "train", data(kinds=["image"], image_batch=4), 8, 0, 0, 1)
    store = batches.stores["image"]
    wanted = {clip.tobytes() for clip in (store[i] for i in range(16))}
    for epoch in range(2):
        seen = [picture for step in range(4) for picture in batches.at(4 * epoch + step)]
        found = [((p.permute(1, 2, 0) + 0.5) * 255).round().byte().numpy().tobytes() for p in seen]
        assert len(set(found)) == 16 and set(found) == wanted
    batches.close()


def test_an_epoch_of_two_kinds_visits_each_clip_once(artifact):
    batches = ClipBatches(artifact, "train", data(image_batch=4, video_batch=2, image_ratio=2 / 3), 8, 0, 0, 1)
    seen = {"image": [], "video": []}
    for step in range(6):
        kind, indices, _ = batches._plan(step)
        seen[kind] += indices.tolist()
    assert sorted(seen["image"]) == list(range(16)) and sorted(seen["video"]) == list(range(4))
    batches.close()


def landscape(artifact, split="train", rank=0, ranks=1, **fields) -> ClipBatches:
    settings = data(sizes=[24, 48], aspects=NAMES, image_batch=4, video_batch=2, **fields)
    return ClipBatches(artifact, split, settings, 8, 5, rank, ranks)


def test_a_store_cuts_each_clip_to_the_shape_nearest_to_its_own(shapes):
    aspects = Aspects(NAMES, 8)
    for kind in ("image", "video"):
        store = ClipStore(shapes, kind, "train", aspects, 48, 5, 0)
        for index, row in enumerate(records.iterate(shapes.uri, kinds=[kind], split="train")):
            whole = media.decode_image(row["media"])[None] if kind == "image" else media.decode_video(row["media"])
            assert whole.shape[1:3] == (row["height"], row["width"])
            bucket = np.abs(np.log(row["width"] / row["height"]) - np.log([1, 3 / 2, 2 / 3])).argmin()
            shape = SHAPES[48][bucket]
            assert store[index].shape[1:3] == shape and store.record(index)["id"] == row["id"]
            if kind == "image":
                np.testing.assert_array_equal(store[index][0], media.resize_center_crop(whole[0], shape))
        assert sum(map(len, store.buckets())) == len(store) and all(len(b) for b in store.buckets())


def test_a_step_has_one_kind_one_shape_and_one_size_over_all_ranks(shapes):
    whole = landscape(shapes)
    halves = [landscape(shapes, rank=rank, ranks=2) for rank in range(2)]
    seen = set()
    for step in range(60):
        pixels = whole.at(step)
        assert torch.equal(torch.cat([half.at(step) for half in halves]), pixels) and pixels.is_contiguous()
        assert -0.5 <= pixels.min() < pixels.max() <= 0.5
        assert f"of {pixels.shape[-1]}x{pixels.shape[-2]} pixels" in whole.describe(step)
        seen.add((pixels.ndim, tuple(pixels.shape[-2:])))
    assert seen == {(ndim, shape) for ndim in (4, 5) for by_size in SHAPES.values() for shape in by_size}
    late = landscape(shapes)
    assert torch.equal(late.at(59), pixels)
    for batches in (whole, *halves, late):
        batches.close()


def test_every_clip_of_every_shape_is_seen_and_decoded_once(shapes, monkeypatch):
    calls = counted(monkeypatch)
    batches = landscape(shapes, kinds=["image"])
    store, seen = batches.stores["image"], np.zeros(22, dtype=int)
    for step in range(60):
        kind, indices, shape = batches._plan(step)
        np.add.at(seen, indices, 1)
        assert len({store.shapes[store.bucket_of[i]] for i in indices}) == 1
        batches.at(step)
    batches.close()
    assert len(store) == 22 and np.ptp(seen) <= 2
    assert len(calls) <= 22 and {shape for _, _, shape, *_ in calls} == set(SHAPES[48])


def test_a_smaller_size_is_scaled_and_cut_like_the_larger(shapes):
    """At 48 pixels 40x56, at 24 pixels 16x32, which is wider: height is cut off, not squeezed to fit."""
    large = torch.zeros(2, 3, 5, 40, 56)
    large[..., 18:22, :] = 1.0  # a bar across the middle, a tenth of the height
    small = clips._scaled(large, (16, 32))
    assert small.shape == (2, 3, 5, 16, 32)
    assert small.sum((-1, -2)).flatten().tolist() == pytest.approx([32 * 4 * 32 / 56] * 30, rel=0.03)
    tall = clips._scaled(large[:, :, 0].transpose(-1, -2), (32, 16))
    torch.testing.assert_close(tall, small[:, :, 0].transpose(-1, -2))


def test_held_out_clips_have_their_own_shapes(shapes):
    found = [(kind, tuple(pixels.shape)) for kind, pixels, _ in landscape(shapes, "validation").batches(2)]
    assert found == [("image", (1, 3, 48, 48)), ("image", (1, 3, 40, 56)), ("video", (1, 3, 5, 40, 56))]


def test_held_out_clips_are_drawn_evenly_over_labels_by_the_seed(tmp_path):
    """One label after the other in the records; of each the same number is validated on."""
    rows = list(records.iterate(corpora.ingest(tmp_path / "squares", images=48, videos=0).uri))
    rows = [{**row, "split": "validation"} for row in sorted(rows, key=lambda row: row["label"])]
    records.write_shard(str(tmp_path / "sorted" / records.shard_name(0)), rows)
    artifact, seen = corpora.seal(tmp_path / "sorted", "ingest"), set()
    labels = {tuple(media.decode_image(row["media"]).ravel()): row["label"] for row in rows}
    for seed in (0, 0, 1, 2):
        ((kind, pixels, _),) = ClipBatches(artifact, "validation", data(kinds=["image"]), 8, seed, 0, 1).batches(8)
        assert kind == "image" and pixels.shape == (8, 3, 24, 24)
        whole = ((pixels + 0.5) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
        assert sorted(labels[tuple(picture.ravel())] for picture in whole) == sorted([*corpora.COLOURS] * 2)
        seen.add(whole.tobytes())
    assert len(seen) == 3, "a seed draws the same again, and each its own"


def test_many_held_out_clips_come_a_few_at_a_time(artifact):
    train_as_held_out = ClipBatches(artifact, "train", data(kinds=["image"]), 8, 0, 0, 1)
    whole = torch.cat([pixels for _, pixels, _ in train_as_held_out.batches(99)])
    assert len(whole) == 16 and max(len(pixels) for _, pixels, _ in train_as_held_out.batches(99)) <= 16
    assert torch.equal(whole[:5], torch.cat([pixels for _, pixels, _ in train_as_held_out.batches(5)]))


def test_a_kind_that_is_missing_is_named_and_a_held_out_split_may_lack_it(artifact, tmp_path):
    only_images = corpora.ingest(tmp_path / "ingest", images=4, videos=0)
    with pytest.raises(ValueError, match="data.kinds: the records hold no video"):
        ClipBatches(only_images, "train", data(), 8, 0, 0, 1)
    assert list(ClipBatches(only_images, "validation", data(), 8, 0, 0, 1).batches(3)) == []
    held_out = ClipBatches(artifact, "validation", data(), 8, 0, 0, 1)
    assert [(kind, pixels.shape) for kind, pixels, _ in held_out.batches(3)] == [
        ("image", (3, 3, 24, 24)),
        ("video", (1, 3, 5, 24, 24)),
    ]


def test_a_batch_is_described_by_its_ids(artifact):
    batches = ClipBatches(artifact, "train", data(kinds=["image"]), 8, 0, 0, 1)
    ids = {row["id"][:12] for row in records.iterate(artifact.uri, kinds=["image"])}
    text = batches.describe(3)
    assert text.startswith("6 images of 24x24 pixels, ids ")
    assert set(text.split("ids ")[1].split(", ")) <= ids


def test_later_stages_decode_what_ingest_took_under_other_limits(tmp_path):
    """A clip of 660 seconds and a strip of 4x200 pixels are over the default limits."""
    rows = []
    for kind, data in (
        ("video", media.encode_mp4(np.zeros((660, 16, 16, 3), np.uint8), 1)),
        ("image", media.encode_png(np.full((4, 200, 3), 90, np.uint8))),
    ):
        with pytest.raises(media.MediaError, match="too_"):
            media_row(kind, data, media.DEFAULT_LIMITS)
        row = media_row(kind, data, media.Limits(max_duration=700, min_side=1, max_aspect=100))
        rows.append(row | {"split": "train", "source": "s", "path": f"{kind}.x", "part": 0, "meta": "{}"})
    records.write_shard(str(tmp_path / records.shard_name(0)), rows)
    artifact = corpora.seal(tmp_path, "ingest")
    for kind in ("video", "image"):
        clip = ClipStore(artifact, kind, "train", SQUARES, 16, 5, 0)[0]
        assert clip.shape == (5 if kind == "video" else 1, 16, 16, 3)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_record_that_cannot_be_decoded_is_named(tmp_path, kind):
    row = {
        "id": "ab" * 32,
        "kind": kind,
        "split": "train",
        "media": b"junk",
        "width": 8,
        "height": 8,
        "frames": 1,
        "source": "pets",
        "path": "cats/tom.x",
        "part": 0,
        "synthetic": False,
        "meta": "{}",
    }
    records.write_shard(str(tmp_path / records.shard_name(0)), [row])
    with pytest.raises(InputError, match=r"record abababababab \(cats/tom.x of source pets\).*not_a"):
        ClipStore(corpora.seal(tmp_path, "ingest"), kind, "train", SQUARES, 16, 5, 0)[0]
    document = {**row, "kind": "document"}
    with pytest.raises(InputError, match="cats/tom.x of source pets"):
        clips.decode_record(document, (8, 8), 1, {"media": b"junk"})


def test_a_video_is_decoded_once_where_its_frames_are_known(artifact, monkeypatch):
    row = next(records.iterate(artifact.uri, kinds=["video"]))
    expected = clips.decode("video", row["media"], (24, 24), 3)
    monkeypatch.setattr(videos, "_count_frames", lambda *a: pytest.fail("the record says how many frames there are"))
    np.testing.assert_array_equal(clips.decode_record(row, (24, 24), 3), expected)
