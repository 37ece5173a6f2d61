"""The gate: what a config may ask, and what passes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.evaluate import measures
from omniloom.stages.evaluate.comparing import Comparison, compare
from omniloom.stages.evaluate.gate import Gate, judge
from omniloom.stages.evaluate.items import label_weights, values_of
from omniloom.stages.evaluate.measures import all_names, measured, named
from omniloom.stages.evaluate.stage import Config


def gate(**bounds) -> Gate:
    return Gate.model_validate(bounds)


@pytest.mark.parametrize(
    "bounds, metrics, passed",
    [
        ({"caption_accuracy": {"min": 0.5}}, {"caption_accuracy": 0.5}, True),
        ({"caption_accuracy": {"min": 0.5}}, {"caption_accuracy": 0.49}, False),
        ({"caption_accuracy": 0.5}, {"caption_accuracy": 0.6}, True),
        ({"caption_accuracy": 1}, {"caption_accuracy": 0.6}, False),
        (
            {"bits_per_byte": {"max": 3.0}, "frechet_pixels8": {"max": 2.0}},
            {"bits_per_byte": 1.1, "frechet_pixels8": 0.6},
            True,
        ),
        (
            {"bits_per_byte": {"max": 3.0}, "frechet_pixels8": {"max": 2.0}},
            {"bits_per_byte": 7.9, "frechet_pixels8": 55.0},
            False,
        ),
        ({"bits_per_byte": {"min": 1.0, "max": 3.0}}, {"bits_per_byte": 0.2}, False),
        ({"bits_per_byte": {"min": 1.0, "max": 3.0}}, {"bits_per_byte": 2.0}, True),
        ({"bits_per_byte": {"max": 3.0}}, {}, False),
        ({"bits_per_byte": {"max": 3.0}}, {"bits_per_byte": None}, False),
        *(
            ({"bits_per_byte": bound}, {"bits_per_byte": bad}, False)
            for bound in ({"max": 3.0}, {"min": 3.0})
            for bad in (math.nan, math.inf, -math.inf)
        ),
        ({"classes": {"min": 10}}, {"classes": 10}, True),
    ],
)
def test_bounds(bounds, metrics, passed):
    verdict = judge(gate(**bounds), metrics, None)
    assert verdict.passed is passed and bool(verdict.failures) is not passed
    for failure in verdict.failures:
        assert failure in str(verdict) and failure.split()[0] in bounds


def test_without_a_gate_there_is_no_verdict():
    for empty in ({}, {"better_than_champion": []}):
        verdict = judge(Gate.model_validate(empty), {"bits_per_byte": 1.0}, None)
        assert verdict.passed is None and "No gate given" in str(verdict)
    assert Config().gate == Gate() and not Config().gate.given


def held(count: int, *differences: float) -> tuple[dict, dict]:
    """Bits per byte of a champion's texts, and of a model that differs from it by these."""
    ids, theirs = [str(number) for number in range(count)], np.linspace(2, 3, count)
    own = theirs + np.resize(differences, count)
    names = ("bits_per_byte", "recon_psnr_image")
    first, second = ({name: values_of(ids, values) for name in names} for values in (theirs, own))
    return first, second


@pytest.mark.parametrize(
    "differences, bits, psnr",
    [
        ((-0.1,), "better", "worse"),
        ((0.1,), "worse", "better"),
        ((0.1, -0.1), "undecided", "undecided"),
        ((0.0,), "undecided", "undecided"),
    ],
)
def test_a_champion_is_followed_by_what_is_better_by_one_figure_and_worse_by_none(differences, bits, psnr):
    found = compare(*held(30, *differences))
    assert [figure.decision for figure in found.figures] == [bits, psnr]
    for name, decision in (("bits_per_byte", bits), ("recon_psnr_image", psnr)):
        one = compare(*held(30, *differences), [name])
        verdict = judge(gate(better_than_champion=name), {name: 2.0}, one)
        assert verdict.passed is (decision == "better")
        assert {"worse": "is worse than the champion's 2.5", "undecided": "not known to be better", "better": "passed"}[
            decision
        ] in str(verdict)
    both = judge(
        gate(better_than_champion=["bits_per_byte", "recon_psnr_image"]),
        {"bits_per_byte": 2.0, "recon_psnr_image": 2.0},
        found,
    )
    assert both.passed is False, "worse by one of them, or better by none"


def test_undecided_figures_do_not_stand_in_the_way_of_a_better_one():
    first, second = held(30, -0.1)
    second["recon_psnr_image"] = first["recon_psnr_image"]
    wanted = ("bits_per_byte", "recon_psnr_image")
    verdict = judge(gate(better_than_champion=list(wanted)), dict.fromkeys(wanted, 2.0), compare(first, second, wanted))
    assert verdict.passed is True


def test_bounds_of_an_interval():
    asked = gate(bits_per_byte_high={"max": 2.5}, caption_accuracy_low=0.8)
    assert judge(asked, {"bits_per_byte_high": 2.4, "caption_accuracy_low": 0.8}, None).passed
    assert not judge(asked, {"bits_per_byte_high": 2.6, "caption_accuracy_low": 0.8}, None).passed
    asked.check(measured(Config(), ["next_code"]))
    with pytest.raises(ValueError, match="not measured by this pipeline"):
        asked.check(measured(Config(texts=0), ["next_code"]))


@pytest.mark.parametrize(
    "metrics, champion, passed, reason",
    [
        ({"bits_per_byte": 2.0}, None, True, ""),  # the first one
        ({}, None, False, "was not measured"),
        ({"bits_per_byte": math.nan}, None, False, "is nan"),
        ({"bits_per_byte": 2.0}, Comparison((), ("bits_per_byte",)), False, "no item of it in common"),
        ({"bits_per_byte": 2.0}, "the registry does not answer", False, "the registry does not answer"),
    ],
)
def test_what_cannot_be_held_against_the_champion_fails(metrics, champion, passed, reason):
    verdict = judge(gate(better_than_champion=["bits_per_byte"]), metrics, champion)
    assert verdict.passed is passed and reason in str(verdict)


@pytest.mark.parametrize(
    "asked, message",
    [
        (
            {"image_class_agreemnt": {"min": 0.9}},
            "image_class_agreemnt: unknown metric; did you mean 'image_class_agreem",
        ),
        ({"image_class_agreemnt": 0.9}, "unknown metric; did you mean 'image_class_agreement'"),
        ({"xyz": {"min": 1}}, "xyz: unknown metric; expected one of "),
        ({"bits_per_byte": 3.0}, "bits_per_byte is better when lower.*{max: ...}"),
        ({"frechet_pixels16": 3.0}, "better when lower"),
        ({"retrieval_mean_rank_next_code": 3}, "better when lower"),
        ({"classes": 3}, "classes is better neither way"),
        ({"caption_accuracy": {}}, "expected {min: ...}, {max: ...} or both"),
        ({"caption_accuracy": {"min": 0.9, "max": 0.5}}, "min 0.9 is above max 0.5"),
        ({"caption_accuracy": {"min": math.nan}}, "finite"),
        ({"caption_accuracy": {"least": 1}}, "Extra inputs"),
        ({"caption_accuracy": True}, "expected a number"),
        ({"caption_accuracy": "0.9"}, "expected a number"),
        ({"caption_accuracy": math.inf}, "finite"),
        ({"better_than_champion": "caption_acuracy"}, "did you mean 'caption_accuracy'"),
        ({"better_than_champion": ["classes"]}, "classes is no measure"),
        ({"better_than_champion": "classifier_accuracy"}, "classifier_accuracy is no measure of a model"),
        ({"better_than_champion": "bits_per_byte_low"}, "bits_per_byte_low is no mean over items"),
        ({"better_than_champion": "codebook_usage"}, "codebook_usage is no mean over items"),
        ({"codebook_usage_low": 0.1}, "codebook_usage_low: unknown metric"),
        ({"bits_per_byte_high": 3.0}, "bits_per_byte_high is better when lower"),
        ({"recon_psnr_image_next_code": {"min": 20}}, "unknown metric; did you mean 'recon_psnr_image'"),
    ],
)
def test_what_is_no_gate(asked, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"gate": asked})


def test_a_gate_is_what_it_says_after_a_trip_through_json():
    config = Config.model_validate({"gate": {"caption_accuracy": 0.5, "better_than_champion": "bits_per_byte"}})
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config and again.gate.bounds["caption_accuracy"].min == 0.5
    assert again.gate.better_than_champion == ("bits_per_byte",)


def test_what_is_measured_depends_on_the_config():
    one, several = (measured(Config(), names) for names in (["next_code"], ["next_code", "masked_code"]))
    assert "caption_accuracy" in one and "caption_accuracy_next_code" not in one
    assert {"caption_accuracy_next_code", "caption_accuracy_masked_code", "classes"} <= set(several)
    assert "caption_accuracy" not in several and "frechet_pixels8_train" in several
    text = {"bits_per_byte", "text_repeated", "text_repeated_real", "leaked_texts", "export_gap"}
    assert set(measured(Config(), [])) == text and set(measured(Config(texts=0), [])) == {"export_gap"}
    assert not [name for name in measured(Config(videos=0), ["next_code"]) if name.startswith("video")]
    assert "image_following" not in measured(Config(counterfactuals=0), ["next_code"])
    assert "frechet_pixels16" in measured(Config(class_pixels=16), ["next_code"])
    less = measured(Config(drawings=50, captions=0, retrieval_captions=1), ["next_code"])
    assert not [name for name in less if name.startswith(("caption", "retrieval", "frechet"))]
    for asked in ({"captions": 0}, {"retrieval_captions": 1}):
        assert not [name for name in measured(Config(**asked), ["next_code"]) if name.startswith("retrieval")]
    networked = Config.model_validate({"features": {"inception": "a", "i3d": "b"}, "drawings": 99})
    assert {name for name, figure in measured(networked, ["next_code"]).items() if figure.network} == {"rfid"}
    assert "fid" not in one and "fvd" in measured(networked.model_copy(update={"videos": 100}), ["next_code"])
    with pytest.raises(ValueError, match="caption_accuracy_next_code: is not measured .* mean 'caption_accuracy'"):
        gate(caption_accuracy_next_code={"min": 1}).check(one)


def test_every_figure_says_which_way_is_better():
    for name in measures.all_names():
        assert named(name).meaning and named(name).better in ("higher", "lower", None)
    for objectives in ([], ["next_code"], list(OBJECTIVES)):
        for name, figure in measured(Config(class_pixels=16), objectives).items():
            assert named(name) == figure or named(name).better == figure.better
    lower = {name for name in measures.all_names() if named(name).better == "lower" and not name.startswith("frechet")}
    shown = {"image_memorised", "retrieval_mean_rank", "fid", "kid", "fd_dinov2", "cmmd", "scorer_mmd", "fvd"}
    by_objective = {f"{name}_{objective}" for name in shown for objective in OBJECTIVES}
    # Of those that write a picture one position after the other; the first of densities alone.
    shown |= {"image_bits_per_dimension", "image_bits_per_pixel"}
    by_objective |= {f"image_bits_per_pixel_{objective}" for objective in ("next_code", "next_latent")}
    by_objective |= {"image_bits_per_dimension_next_latent"}
    assert (
        lower
        == {
            "bits_per_byte",
            "text_repeated",
            "leaked_images",
            "leaked_texts",
            "export_gap",
            "rfid",
            "recon_lpips_image",
            "recon_lpips_video",
        }
        | shown
        | by_objective
    )
    assert named("retrieval_recall_at_1").better == "higher"
    assert named("image_class_agreement").chance({"classes": 4}) == 0.25
    assert named("bits_per_byte").chance({}) == 8.0 and named("caption_accuracy").chance({}) is None


def test_which_figures_are_of_each_objective():
    """What is drawn, described and retrieved; splits, tokenizers and real pictures know no objective."""
    plain = [name for name in all_names() if not any(name.endswith(f"_{objective}") for objective in OBJECTIVES)]
    assert {name for name in plain if named(f"{name}_masked_code")} == {
        "scorer_score",
        "scorer_mmd",
        "image_class_agreement",
        "image_coverage",
        "image_following",
        "image_memorised",
        "video_class_agreement",
        "video_motion",
        "video_consistency",
        "frechet_pixels8",
        "caption_accuracy",
        "caption_exact",
        "caption_cider",
        "retrieval_recall_at_1",
        "retrieval_recall_at_10",
        "retrieval_mean_rank",
        "fid",
        "kid",
        "kid_std",
        "fd_dinov2",
        "cmmd",
        "clip_score",
        "fvd",
        *(
            f"{name}_{net}"
            for name in ("precision", "recall", "density", "coverage")
            for net in ("inception", "dinov2")
        ),
    }
    assert {name for name in plain if named(name).of_text} == {
        "bits_per_byte",
        "text_repeated",
        "text_repeated_real",
        "leaked_texts",
        "export_gap",
    }


def test_a_figure_is_a_value():
    with pytest.raises(AttributeError):
        named("classes").better = "higher"


def test_labels_weigh_alike():
    for values, labels, expected in (
        ([True] * 90 + [False] * 10, ["ant"] * 90 + ["bee"] * 10, 0.5),
        ([True, False, True], list("aab"), 0.75),
    ):
        weighed = values_of(list(map(str, range(len(values)))), values, label_weights(labels))
        assert weighed.mean == pytest.approx(expected)
    with pytest.raises(ValueError):
        values_of(["1"], [True], label_weights(["a", "b"]))
