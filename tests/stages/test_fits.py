"""What is left out of training is told or refused: by the config, by ingest's counts, by the tokens."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import corpora
import pytest

from omniloom.infra.errors import InputError
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.pipelines.checks import check_counts
from omniloom.pipelines.config import load
from omniloom.pipelines.doctor import examine
from omniloom.pipelines.plan import make_plan
from omniloom.stages.data import survey
from omniloom.stages.data.packing import PackingConfig
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train import fits
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train.rows import validation_rows


def picture(n: int, *captions: int, kind: str = "image"):
    return kind, [*(("text", caption) for caption in captions), ("visual", n)]


DOCUMENTS = [
    picture(16, 4),
    picture(16),
    picture(40, 8),
    picture(16, 4, 60, 70),
    picture(60, 5, kind="video"),
    ("text", [("text", 200)]),
    ("document", [("text", 20), ("visual", 16), ("text", 30), ("visual", 16)]),
    ("document", [("visual", 61), ("text", 3)]),
    ("document", [("text", 5), ("visual", 16)]),
]
CORPUS = corpora.index_of(DOCUMENTS)


def left_out(corpus=CORPUS, objectives=None, **packing) -> dict[str, int]:
    config = PackingConfig(**{"length": 64, **packing})
    return fits.check_tokens(corpus, config, {"latent_diffusion": 1.0} if objectives is None else objectives, 0)


def test_what_is_left_out_is_counted_by_kind_and_reason():
    assert left_out(mixture={"video": 0}) == {
        "left_out_image_captions_too_long": 2,
        "left_out_document_cut": 1,
        "left_out_document_pictures_cut": 1,
        "left_out_document_too_long": 1,
        "left_out_video_too_long": 1,
    }
    assert left_out(length=256) == {}
    assert left_out(length=256, caption_first=0) == {"left_out_image_no_caption": 1}
    assert left_out(length=256, mixture={"image": 0.5, "text": 0.5}) == {
        "left_out_video_no_share": 1,
        "left_out_document_no_share": 3,
    }
    assert left_out(objectives={}) == {
        "left_out_image_no_objective": 4,
        "left_out_video_no_objective": 1,
        "left_out_document_no_objective": 3,
    }


@pytest.mark.parametrize("length", [40, 64, 100])
def test_what_is_counted_and_what_comes_into_rows_is_the_corpus(length):
    """Against the rows of many windows: what is not counted comes, what is counted does not."""
    made = Planner(CORPUS, PackingConfig(length=length, window_rows=8), 0)
    windows, before = [], made.start()
    for number in range(200):
        windows.append((window := made.window(number, before)).rows())
        before = window.after
    seen = {placed.index for rows in windows[:40] for row in rows for placed in row}
    missing = Counter(DOCUMENTS[i][0] for i in range(len(DOCUMENTS)) if i not in seen)
    assert missing == Counter(
        {
            kind: count
            for name, count in survey.left_out(made).items()
            if (kind := name.removesuffix("_too_long")) in ("image", "video", "document")
        }
    )
    reached = {
        (placed.index, number)
        for rows in windows
        for row in rows
        for placed in row
        if placed.view == "document"
        for number in range(max(placed.stop, placed.target + 1))
        if DOCUMENTS[placed.index][1][number][0] == "visual"
    }
    whole = sum(kind == "visual" for index in (6, 8) for kind, _ in DOCUMENTS[index][1])
    assert whole - sum(index in (6, 8) for index, _ in reached) == survey.left_out(made)["document_pictures_cut"]


@pytest.mark.parametrize(
    "packing, field, message",
    [
        ({}, "packing.length", r"of 1 videos none fits into 64 tokens; 69 takes the shortest, 69 all"),
        (
            {"length": 22, "mixture": {"video": 0, "document": 0}},
            "packing.length",
            r"of 4 images none fits into 22 tokens",
        ),
        (
            {"length": 256, "mixture": {"document": 0.5}, "corpus": corpora.index_of([picture(16, 4)])},
            "packing.mixture.document",
            r"document has a share of 0.5, and the train split holds none",
        ),
        (
            {"caption_first": 0, "corpus": corpora.index_of([picture(16), ("text", [("text", 9)])])},
            "packing.caption_first",
            r"none of the 1 images has a caption",
        ),
        ({"corpus": corpora.index_of([])}, None, "holds no documents"),
        (
            {"objectives": {}, "corpus": corpora.index_of([picture(9, 4)])},
            "packing.mixture",
            "nothing to train on.*images 1, v",
        ),
    ],
)
def test_a_kind_of_which_nothing_fits_is_refused_and_told_what_would_do(packing, field, message):
    if packing.get("length") == 22:
        packing = {**packing, "corpus": corpora.index_of([picture(16, 4) for _ in range(4)])}
    with pytest.raises(InputError, match=message) as caught:
        left_out(**packing)
    assert caught.value.field == field
    if told := re.search(r"(\d+) takes the shortest, (\d+) all", str(caught.value)):
        corpus, packing = packing.get("corpus", CORPUS), {k: v for k, v in packing.items() if k != "corpus"}
        for least, kind in ((int(told[1]), "video" if corpus is CORPUS else "image"),):
            left_out(corpus, **{**packing, "length": least})
            with pytest.raises(InputError, match=f"of .* {kind}s none fits"):
                left_out(corpus, **{**packing, "length": least - 1})
        whole = Planner(corpus, PackingConfig(**{**packing, "length": int(told[2])}), 0)
        assert f"{kind}_too_long" not in survey.left_out(whole)


def test_a_validation_split_of_which_nothing_fits_is_counted_and_gives_no_batches(tmp_path):
    assert fits.check_held_out(
        corpora.index_of([picture(100, 4)]), PackingConfig(length=64), {"latent_diffusion": 1.0}, 0
    ) == {"validation_left_out_image_too_long": 1}
    assert fits.check_held_out(corpora.index_of([]), PackingConfig(), {"latent_diffusion": 1.0}, 0) == {}
    text = corpora.text_tokenizer()
    row = {
        "id": "a",
        "kind": "image",
        "label": None,
        "source": "s",
        "path": "a",
        "bytes": 0,
        "segments": [{"kind": "visual", "loss": True, "grid": [1, 8, 8], "latents": [0.0] * 256, "codes": [1] * 64}],
    }
    small = {**row, "segments": [{**row["segments"][0], "grid": [1, 1, 1], "latents": [0.0] * 4, "codes": [1]}]}
    tokens = corpora.pretokenize(tmp_path, {"train": [[small, row]], "validation": [[row]]}, text)
    config, notes = train_unified.Config.model_validate({"packing": {"length": 32}}), []
    assert validation_rows(TokenSet(tokens, "validation"), config, None, "cpu") == []
    found = train_unified.left_out_of(config, tokens, SimpleNamespace(note=notes.append))
    assert found == {"left_out_image_too_long": 1, "validation_left_out_image_too_long": 1}
    assert notes == ["left out of training: 1 image too long"]


DEMO = ("storage=/nowhere/at/all",)


@pytest.mark.parametrize(
    "override, least",
    [
        ("stages.train.packing.length=51", 52),  # 9 frames of 32x32 by patches of 8, 4 frames: 3 x 4 x 4
        ("stages.pretokenize.image_size=128", 256 + 4),
        ('stages.pretokenize.aspects=["1:1","2:1"]', None),
    ],
)
def test_the_config_alone_tells_that_pictures_do_not_fit(tmp_path, override, least):
    overrides = [f"storage={tmp_path}", override]
    if least is None:
        make_plan(load("demo", overrides))
        return
    with pytest.raises(InputError, match=rf"; {least} takes those without a caption") as caught:
        make_plan(load("demo", overrides))
    assert caught.value.field == "stages.train.packing.length"
    with pytest.raises(InputError, match=rf"; {least} takes those without a caption"):
        examine("demo", overrides)
    make_plan(load("demo", [*overrides, f"stages.train.packing.length={least}"]))
    left = "{video: 0}" if "length" in override else "{image: 0, text: 1}"
    make_plan(load("demo", [*overrides, f"stages.train.packing.mixture={left}"]))


@pytest.mark.parametrize("size, frames, aspects", [(32, 9, ("1:1",)), (48, 5, ("2:1", "1:1")), (64, 1, ("4:3",))])
def test_the_sizes_that_the_config_tells_are_those_of_the_tokenizer(size, frames, aspects):
    """Against the grids that a tokenizer makes of such clips."""
    import torch

    from omniloom.models.tokenizer.build import build_tokenizer
    from omniloom.stages.data.aspects import Aspects

    shape = TokenizerConfig(
        patch_size=8,
        temporal_patch=4,
        width=32,
        heads=2,
        head_dim=16,
        spatial_layers="t",
        temporal_layers=1,
        decoder_spatial_layers="t",
    )
    tokens = SimpleNamespace(image_size=size, video_size=size, aspects=aspects, frames=frames, pixel_patch=None)
    model, grids = build_tokenizer(shape).eval(), {}
    for kind, t in (("image", 1), ("video", frames)):
        for bucket in range(len(aspects)):
            height, width = Aspects(aspects, 8).shape(bucket, size)
            clip = torch.zeros(1, 3, t, height, width)
            with torch.no_grad():
                codes = model.encode(clip[:, :, 0] if t == 1 else clip).codes
            grids.setdefault(kind, []).append(codes[0].numel())
    assert {kind: fits.picture_tokens(shape, tokens, kind, ("latent_diffusion",)) for kind in grids} == {
        kind: min(found) for kind, found in grids.items()
    }


def test_ingests_counts_tell_that_a_kind_is_missing_before_a_tokenizer_is_trained(tmp_path):
    config = load("demo", [f"storage={tmp_path}"])
    counts = {"records_image": 10, "records_video": 0, "records_text": 3, "records_document": 0, "uncaptioned": 0}
    with pytest.raises(InputError, match="holds no video in its train split .images 10") as caught:
        check_counts(config, {"ingest": counts})
    assert caught.value.field == "stages.tokenizer_joint.data.kinds"
    video = config.stages.train.packing.mixture["video"]
    share = f"stages.train.packing.mixture.video: video has a share of {video}, and the corpus holds none (images 10"
    assert f"\n  {share}" in str(caught.value)
    warning = "tokenizer_joint: 1 videos in the train split, fewer than the 16 of one step"
    assert any(text.startswith(warning) for text in check_counts(config, {"ingest": {**counts, "records_video": 1}}))
    check_counts(config, {"ingest": {**counts, "records_video": 1}})
    silent = load("demo", [f"storage={tmp_path}", "stages.train.packing.caption_first=0"])
    with pytest.raises(InputError, match="none of the 12 has a caption") as caught:
        check_counts(silent, {"ingest": {**counts, "records_video": 2, "uncaptioned": 12}})
    assert caught.value.field == "stages.train.packing.caption_first"
    check_counts(silent, {"ingest": {**counts, "records_video": 2, "uncaptioned": 11}})
    # A run asks as soon as ingest is done.
    plan = make_plan(config)
    made = SimpleNamespace(metrics=counts, manifest={"metrics": counts}, digest="d", uri="u", fingerprint="f")
    with pytest.raises(InputError, match="video has a share"):
        plan.completed("ingest", made)
