"""Measures that a broken model cannot raise: by hand, and of what copies or does not read."""

from __future__ import annotations

import corpora
import numpy as np
import pytest
from test_evaluation import evaluation, inputs  # noqa: F401

from omniloom.infra import storage
from omniloom.stages.data import records
from omniloom.stages.evaluate import following, metrics, novelty
from omniloom.stages.evaluate.drawing import draw
from omniloom.stages.evaluate.exported import export_gap
from omniloom.stages.evaluate.filming import consistency, film, motion
from omniloom.stages.evaluate.novelty import leaked
from omniloom.stages.evaluate.writing import read_text


def test_how_near_a_picture_is_to_a_train_picture_by_hand():
    train = np.array([[0.0], [10.0], [11.0], [12.0], [13.0], [14.0], [90.0]])
    found = novelty.nearness(np.array([[1.0], [0.0], [10.0]]), train)
    assert found == pytest.approx([1 / 11, 0, 0 / 2])
    assert novelty.nearness(np.array([[12.5]]), train) == pytest.approx([0.5 / np.mean([0.5, 1.5, 1.5, 2.5, 12.5])])


def test_of_held_out_points_a_twentieth_counts_as_copied_and_of_copies_all(inputs):  # noqa: F811
    rng, asked = np.random.default_rng(0), list(range(8))
    train, real, others = (rng.normal(size=(count, 6)) for count in (400, 300, 8))
    found = evaluation(inputs)
    novelty.copies(found, asked, train[:8] + 1e-3, real, train, "")
    assert found.metrics["image_memorised"] == 1.0
    novelty.copies(found, asked, others, real, train, "_other")
    assert found.metrics["image_memorised_other"] <= 0.25
    assert np.mean(novelty.nearness(real, train) < np.quantile(novelty.nearness(real, train), 0.05)) == pytest.approx(
        0.05
    )


def test_a_plain_picture_that_is_near_to_all_is_no_copy():
    rng = np.random.default_rng(1)
    train, real = rng.normal(size=(400, 30)), rng.normal(size=(200, 30))
    least = np.quantile(novelty.nearness(real, train), 0.05)
    plain = 0.1 * rng.normal(size=(100, 30))
    assert metrics.distances(plain, train).min(1).mean() < 0.9 * metrics.distances(real, train).min(1).mean()
    assert np.mean(novelty.nearness(plain, train) < least) < 0.05


def test_drawings_that_go_with_their_words():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 50, 4))
    noise = rng.normal(size=(50, 4)) * 0.01
    assert following.followed((a + noise, b + noise), (a, b)).tolist() == [1.0] * 50
    assert following.followed((b, a), (a, b)).tolist() == [0.0] * 50
    assert following.followed((a, a), (a, b)).tolist() == [0.5] * 50
    assert np.isnan(following.followed((a * np.nan, a), (a, b))).all()


def test_pairs_differ_in_caption_and_label_and_both_are_drawn_from_one_noise(inputs):  # noqa: F811
    found = evaluation(inputs, counterfactuals=8)
    pairs = following.pairs(found)
    assert len(pairs) == 8 and [first for first, _ in pairs] == found.labelled
    for first, second in pairs:
        assert found.captions[first] != found.captions[second] and found.labels[first] != found.labels[second]
    draw(found)
    loom, seeds = found.loom, list(range(8))
    for objective in ("latent_diffusion", "masked_code"):
        drawn = [
            metrics.shrink(
                list(
                    loom.text_to_image(
                        [found.captions[pair[side]] for pair in pairs],
                        found.visual(objective=objective),
                        seeds=seeds,
                    )
                ),
                8,
            )
            for side in (0, 1)
        ]
        real = [metrics.shrink([found.images[pair[side]][0] for pair in pairs], 8) for side in (0, 1)]
        expected = following.followed(tuple(drawn), tuple(real))
        assert found.items[f"image_following_{objective}"].values.tolist() == expected.tolist()
    assert not following.pairs(evaluation(inputs, counterfactuals=0))


@pytest.mark.parametrize("kind, share", [("none", 0.0), ("same id", 0.5), ("encoded anew", 0.5)])
def test_held_out_pictures_that_the_train_split_has_too(inputs, tmp_path, kind, share):  # noqa: F811
    rows = list(records.iterate(inputs["records"].uri, kinds=["image"]))
    rng = np.random.default_rng(3)
    for row in rows:  # no two are alike
        row["media"] = corpora.encode_png(rng.integers(0, 250, (24, 24, 3), np.uint8))
    held_out = [row for row in rows if row["split"] == "validation"]
    for row in held_out[: len(held_out) // 2] if share else ():
        again = dict(row, split="train")
        if kind == "encoded anew":
            pixels = corpora.Image.open(corpora.io.BytesIO(row["media"]))
            again |= {"id": f"again {row['id']}", "media": corpora.encode_png(np.asarray(pixels) + np.uint8(1))}
        rows.append(again)
    records.write_shard(str(tmp_path / "ingest" / records.shard_name(0)), rows)
    found = evaluation(inputs | {"records": corpora.seal(tmp_path / "ingest", "ingest")}, captions=100)
    leaked(found)
    assert found.metrics["leaked_images"] == share and len(found.items["leaked_images"].ids) == len(held_out)


def test_how_videos_move_and_hold_together():
    rng = np.random.default_rng(4)
    still, noise = np.repeat(rng.random((1, 64)), 9, axis=0), rng.random((9, 64))
    assert motion(still) == 0 and consistency(still) == pytest.approx(1.0)
    assert motion(noise) == pytest.approx(1 / 3, abs=0.05) and abs(consistency(noise)) < 0.3
    assert consistency(np.zeros((3, 8))) == 1.0 and consistency(np.array([[0.0, 1.0], [0.5, 0.5]])) == 0.0
    assert [metrics.less_over_more(*pair) for pair in ((0, 2), (2, 1), (0, 0))] == [0, 0.5, 1]


def test_videos_are_drawn_for_held_out_captions_and_judged(inputs):  # noqa: F811
    found = evaluation(inputs, videos=1)
    film(found)
    assert set(found.pictures) == {f"drawn_videos_{name}" for name in ("latent_diffusion", "masked_code")}
    moved = found.metrics["video_motion_masked_code"]
    captions = found.videos.table["caption"].to_pylist()
    visual = found.visual(objective="masked_code", size=found.videos.shape(0))
    drawn = found.loom.text_to_video(captions[:1], visual, seeds=0)[0]
    amounts = [motion(metrics.shrink(list(video), 8)) for video in (drawn, found.videos[0])]
    assert moved == pytest.approx(min(amounts) / max(amounts))
    none = evaluation(inputs, videos=0)
    film(none)
    assert none.metrics == {} and set(none.pictures) == set(found.pictures)


def test_how_often_a_text_says_a_thing_again(inputs):  # noqa: F811
    assert metrics.repeated([1, 2, 3, 4, 5]) == 0 and metrics.repeated([1, 2]) == 0
    assert metrics.repeated([7] * 12) == pytest.approx(0.9)
    assert metrics.repeated([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    found = evaluation(inputs)
    found.loom.text_to_text = lambda prompts, *a, **k: ["red square " * 12 for _ in prompts]
    read_text(found)
    assert found.metrics["text_repeated"] > 0.7 > 0.3 > found.metrics["text_repeated_real"]


def test_no_gap_is_told_of_a_model_whose_training_wrote_no_losses_down(inputs):  # noqa: F811
    found = evaluation(inputs)
    export_gap(found)
    assert found.metrics == {} and storage.exists(inputs["model"].file("model", "config.json"))
