"""Pretokenize and what reads its tokens, on pictures of many shapes: each keeps its own grid all the way."""

from __future__ import annotations

import re
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
import transformers
from visual_batches import forward

from omniloom.infra import storage
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.models.model import BundleConfig, OmniLoom
from omniloom.models.tokenizer.config import TiTokConfig, TokenizerConfig
from omniloom.models.unified.batch import collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.alignment import features_on_grid
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.data import records
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.books import RowStream
from omniloom.stages.data.clips import decode
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.data.packing import PackingConfig
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.stage import Config as EvaluateConfig
from omniloom.stages.evaluate.tokenizer import reconstruct
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.index import write_indices
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.pretokenize.stats import combine

ASPECTS = Aspects(("1:1", "3:2", "2:3"), 8)
GRIDS = {(3, 3), (2, 4), (4, 2)}  # (h, w) of 24x24, 16x32 and 32x16 pixels


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpora.ingest_shapes(tmp_path_factory.mktemp("corpus") / "ingest")


def config(**fields) -> pretokenize.Config:
    return pretokenize.Config(
        **{"image_size": 24, "video_size": 24, "frames": 5, "aspects": ASPECTS.names, "batch_size": 3, **fields}
    )


def tokenize(folder: Path, corpus, visual, settings: pretokenize.Config):
    """The actor's work on every shard, and the facts beside its tokens."""
    text = corpora.text_tokenizer()
    (folder / "output").mkdir(parents=True)
    (folder / "text.json").write_text(text.to_json(), encoding="utf-8")
    actor = ShardTokenizer(settings, visual, str(folder / "text.json"), str(folder / "output"), str(folder / "state"))
    stats = []
    for index, uri in enumerate(records.shards(corpus.uri)):
        actor({"index": index, "uri": uri})
        stats.append(storage.read_json(str(folder / "state" / "shards" / f"{index:05d}.json")))
    facts = combine(stats)
    artifact = corpora.pretokenize(folder / "output", {}, text)
    write_indices(str(folder / "output"), str(folder / "state"))
    known = storage.read_json(artifact.file("tokens.json"))
    storage.write_json(
        artifact.file("tokens.json"),
        known
        | {"aspects": list(settings.aspects), "latent_mean": facts["latent_mean"], "latent_std": facts["latent_std"]},
    )
    return corpora.seal(folder / "output", "pretokenize")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, corpus, visual):
    return tokenize(tmp_path_factory.mktemp("tokens"), corpus, visual, config())


def test_every_picture_has_the_grid_of_its_shape_and_the_codes_of_its_own_encoding(corpus, visual, tokens):
    model, grids = load_tokenizer(visual), set()
    for split in ("train", "validation"):
        found = TokenSet(tokens, split)
        rows = list(records.iterate(corpus.uri, split=split))
        assert len(found) == len(rows)
        for document, row in zip(found, rows, strict=True):
            pictures = [s for s in row["segments"] or [row] if s["media"]]
            kind = "video" if row["kind"] == "video" else "image"
            visuals = [token for token in document if token.kind == "visual"]
            assert len(visuals) == len(pictures) > 0
            for token, item in zip(visuals, pictures, strict=True):
                height, width = ASPECTS.shape(ASPECTS.bucket(item["width"], item["height"]), 24)
                assert token.grid == ((2 if kind == "video" else 1), height // 8, width // 8)
                pixels = torch.from_numpy(decode(kind, item["media"], (height, width), 5)).permute(3, 0, 1, 2)
                with torch.no_grad():
                    alone = model.encode(pixels[None].float() / 255 - 0.5)
                np.testing.assert_allclose(
                    token.latents, alone.latents[0].permute(1, 2, 3, 0).reshape(-1, 4), atol=5e-5
                )  # sums over a batch in another order
                assert (token.codes == alone.codes.flatten().numpy()).mean() > 0.9  # equal but for near ties
                grids.add(token.grid)
    assert {(h, w) for _, h, w in grids} == GRIDS and {t for t, _, _ in grids} == {1, 2}


def test_what_is_held_out_teaches_neither_the_text_tokenizer_nor_the_scale_of_latents(tmp_path, corpus, visual, tokens):
    """Other captions, other pictures in the held-out splits alone: the vocabulary, the latents' mean and deviation and
    every token of the train split stay what they are, to the last bit."""
    rows, changed = list(records.iterate(corpus.uri)), 0
    for row in rows:
        if row["split"] != "train" and row["kind"] == "image":
            bright = np.full((row["height"], row["width"], 3), 255, np.uint8)
            row |= {"media": encode_png(bright), "captions": ["zebras quarrel zealously"], "caption": "zebras quarrel"}
            changed += 1
    records.write_shard(str(tmp_path / "ingest" / records.shard_name(0)), rows)
    other = corpora.seal(tmp_path / "ingest", "ingest")
    before, after = (pretokenize._text_tokenizer(config(vocab_size=300), found) for found in (corpus, other))
    assert changed == 2 and before == after
    again = tokenize(tmp_path / "tokens", other, visual, config())
    facts = [storage.read_json(artifact.file("tokens.json")) for artifact in (tokens, again)]
    for name in ("latent_mean", "latent_std"):
        assert facts[0][name] == facts[1][name] and len(facts[0][name]) == 4
    assert TokenSet(tokens, "validation").document(0)[-1].latents.tolist() != (
        TokenSet(again, "validation").document(0)[-1].latents.tolist()
    )
    # Against the train split's latents, written out.
    latents = np.concatenate(
        [token.latents for document in TokenSet(tokens, "train") for token in document if token.kind == "visual"]
    ).astype(np.float64)
    np.testing.assert_allclose(facts[0]["latent_mean"], latents.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(facts[0]["latent_std"], latents.std(0), rtol=1e-4)


def test_without_ratios_every_picture_is_a_square(tmp_path, corpus, visual):
    squares = tokenize(tmp_path, corpus, visual, config(aspects=("1:1",)))
    assert {token.grid for document in TokenSet(squares, "train") for token in document if token.grid} == {
        (1, 3, 3),
        (2, 3, 3),
    }


def unified() -> UnifiedModel:
    torch.manual_seed(0)
    text = corpora.text_tokenizer()
    return UnifiedModel(
        UnifiedConfig(
            vocab_size=text.vocab_size, latent_dim=4, width=32, layers=1, heads=2, time_dim=16, specials=text.specials
        )
    )


def test_documents_of_several_grids_in_one_row_are_predicted_as_alone(tokens):
    found = TokenSet(tokens, "train")
    model = unified().eval()
    torch.nn.init.normal_(model.visual_out.weight)  # it starts at zero
    documents = Documents(found, model.config)
    rows = RowStream(Planner(found.index, PackingConfig(length=192, window_rows=8), 0)).take(8)
    segments = [[documents.segments(placed) for placed in row] for row in rows]
    grids = [{s.grid[1:] for document in row for s in document if s.kind == "visual"} for row in segments]
    assert GRIDS in grids
    packed = collate(segments, 192, model.config)
    loss, _ = UnifiedObjective(model, DiffusionConfig())(packed, list(range(8)))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def predict(batch):
        with torch.no_grad():
            out = forward(model, batch)[1]["latents"]
            return (
                out.new_zeros(batch.ids.numel(), 4)
                .index_copy(0, batch.parts["latents"].index, out)
                .view(*batch.ids.shape, 4)
            )

    together = predict(packed)
    for b, row in enumerate(segments):
        at = 0
        for document in row:
            length = sum(segment.length for segment in document)
            alone = predict(collate([[document]], length, model.config))[0]
            torch.testing.assert_close(together[b, at : at + length], alone, atol=1e-4, rtol=1e-4)
            at += length


def test_raw_pixels_are_kept_in_patches_as_they_were_decoded(tmp_path, corpus, visual, tokens):
    kept = tokenize(tmp_path, corpus, visual, config(pixel_patch=4))
    found, without = TokenSet(kept, "train"), TokenSet(tokens, "train")
    rows, grids = list(records.iterate(corpus.uri, split="train")), set()
    for kind in ("image", "video", "document"):
        places = np.arange(found.index.count(kind))
        documents = [found.document(int(i)) for i in found.index.documents(kind, places)]
        for name, length in (("latents", lambda s: s.length), ("pixels", lambda s: len(s.pixels))):
            counts, segments = found.index.segments(kind, places, name)
            assert counts.tolist() == [len(document) for document in documents]
            expected = [-length(s) if s.kind == "visual" else s.length for document in documents for s in document]
            assert segments.tolist() == expected
        assert not len(without.index.column(f"{kind}.pixels"))
    for index, row in enumerate(rows):
        pictures = [s for s in row["segments"] or [row] if s["media"]]
        visuals = [token for token in found.document(index) if token.kind == "visual"]
        lengths = [(segment.kind, segment.length) for segment in found.document(index)]
        assert lengths == [(segment.kind, segment.length) for segment in without.document(index)]
        for token, item in zip(visuals, pictures, strict=True):
            kind = "video" if row["kind"] == "video" else "image"
            shape = ASPECTS.shape(ASPECTS.bucket(item["width"], item["height"]), 24)
            t, h, w = token.pixel_grid
            clip = token.pixels.reshape(t, h, w, 4, 4, 3).swapaxes(2, 3).reshape(t, 4 * h, 4 * w, 3)
            np.testing.assert_array_equal(clip, decode(kind, item["media"], shape, 5))
            grids.add(token.pixel_grid)
    assert {t for t, _, _ in grids} == {1, 5} and {(h // 2, w // 2) for _, h, w in grids} == GRIDS
    assert all(token.pixels is None for token in without.document(0) if token.kind == "visual")


def test_features_are_those_of_the_encoder_on_the_latents_frames(tmp_path, corpus, visual):
    """Of 16x32 pixels as they are; of an encoder of patch 8 no size here needs scaling."""
    folder = corpora.vision_encoder(tmp_path / "siglip")
    reference = transformers.SiglipVisionModel.from_pretrained(folder).eval()
    kept = TokenSet(tokenize(tmp_path / "kept", corpus, visual, config(features=str(folder))), "train")
    grids = set()
    for index, row in enumerate(records.iterate(corpus.uri, split="train")):
        pictures = [s for s in row["segments"] or [row] if s["media"]]
        visuals = [token for token in kept.document(index) if token.kind == "visual"]
        for token, item in zip(visuals, pictures, strict=True):
            kind = "video" if row["kind"] == "video" else "image"
            shape = ASPECTS.shape(ASPECTS.bucket(item["width"], item["height"]), 24)
            frames = torch.from_numpy(decode(kind, item["media"], shape, 5)).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad():
                found = reference(frames, interpolate_pos_encoding=True).last_hidden_state
            wanted = found if kind == "image" else torch.stack((found[0], found[1:].mean(0)))
            assert token.feature_grid == token.grid and token.features.dtype == np.float16
            np.testing.assert_allclose(token.features, wanted.flatten(0, 1), atol=5e-3, rtol=2e-3)
            grids.add(token.feature_grid)
    assert grids == {(t, h, w) for t in (1, 2) for h, w in GRIDS}


def test_an_encoder_of_another_patch_sees_the_nearest_size(tmp_path, corpus, visual):
    torch.manual_seed(0)
    transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
        )
    ).save_pretrained(tmp_path / "dinov2")
    kept = TokenSet(tokenize(tmp_path / "kept", corpus, visual, config(features=str(tmp_path / "dinov2"))), "train")
    nearest = {(3, 3): (2, 2), (2, 4): (1, 2), (4, 2): (2, 1)}  # 24x24, 16x32 and 32x16 pixels in patches of 14
    for token in (token for document in kept for token in document if token.grid):
        assert token.feature_grid == (token.grid[0], *nearest[token.grid[1:]])
        assert token.features.shape == (int(np.prod(token.feature_grid)), 16)
        on_grid = features_on_grid(torch.from_numpy(token.features.copy()), token.feature_grid, token.grid)
        assert on_grid.shape == (token.length, 16)


def test_no_encoder_at_the_uri_of_features(tmp_path, corpus, visual):
    with pytest.raises(InputError, match="no vision encoder: .*config.json: cannot be read") as caught:
        tokenize(tmp_path, corpus, visual, config(features=str(tmp_path / "nowhere")))
    assert (caught.value.field, caught.value.file) == ("features", str(tmp_path / "nowhere"))


def test_reconstructions_are_measured_in_their_own_shapes(tmp_path, corpus, visual, tokens):
    model = load_tokenizer(visual)
    facts = storage.read_json(tokens.file("tokens.json"))
    bundle = BundleConfig(
        unified=unified().config,
        diffusion=DiffusionConfig(),
        tokenizer=model.config,
        latent_mean=tuple(facts["latent_mean"]),
        latent_std=tuple(facts["latent_std"]),
        image_size=(24, 24),
        num_frames=5,
    )
    OmniLoom(bundle, unified(), model, corpora.text_tokenizer()).save(tmp_path / "train" / "model")
    inputs = {
        "records": corpus,
        "tokenizer": visual,
        "tokens": tokens,
        "model": corpora.seal(tmp_path / "train", "train"),
    }
    evaluation = Evaluation(EvaluateConfig(split="validation"), inputs, "cpu")
    reconstruct(evaluation)
    rows = list(records.iterate(corpus.uri, kinds=["image"], split="validation"))
    expected = []
    for row in rows:
        shape = ASPECTS.shape(ASPECTS.bucket(row["width"], row["height"]), 24)
        pixels = decode("image", row["media"], shape, 1)
        with torch.no_grad():
            recon, _ = model(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 255 - 0.5)
        recon = ((recon[0].permute(1, 2, 3, 0) + 0.5) * 255).round().clamp(0, 255).byte().numpy()
        expected.append(metrics.reconstruction(pixels, recon)["psnr"].mean())
    assert len({ASPECTS.bucket(row["width"], row["height"]) for row in rows}) == 2
    assert evaluation.metrics["recon_psnr_image"] == pytest.approx(np.mean(expected), abs=0.01)
    assert {"recon_ssim_image", "recon_psnr_video", "recon_ssim_video"} <= set(evaluation.metrics)
    assert set(evaluation.pictures) == {"reconstructed_images", "reconstructed_videos"}
    assert evaluation.images[0].shape == (1, 24, 24, 3)  # drawing and description stay at the square


IMAGES, BOTH = (
    {"records_image": 3, "records_video": 0, "records_document": 0},
    {"records_image": 3, "records_video": 3, "records_document": 0},
)


@pytest.mark.parametrize(
    "fields, model, counts, words",
    [
        ({"image_size": 20}, TokenizerConfig(), IMAGES, "image_size: 20 is no multiple of patch_size 8"),
        ({"video_size": 20}, TokenizerConfig(), BOTH, "video_size: 20 is no multiple"),
        ({"aspects": ("1:12",)}, TokenizerConfig(), IMAGES, "aspects: '1:12' at size 24 has a side of 6.9 pixels"),
        (
            {"pixel_patch": 5},
            TokenizerConfig(),
            IMAGES,
            "pixel_patch: 5 does not divide the 24x24 pixels of image_size 24",
        ),
        ({"frames": 6}, TokenizerConfig(), BOTH, "frames: expected 1 + a multiple of temporal_patch 4, got 6"),
        ({}, TiTokConfig(image_size=24, patch_size=8), IMAGES, "image_size: 24 at aspect 3:2 makes pictures of 16x32"),
        ({"aspects": ("1:1",)}, TiTokConfig(image_size=24, patch_size=8), BOTH, "TiTok, which is for images alone"),
        (
            {"aspects": ("1:1",), "features": "vit"},
            TiTokConfig(image_size=24, patch_size=8),
            IMAGES,
            "features: the latents",
        ),
    ],
)
def test_what_the_tokenizer_cannot_encode_is_refused_before_anything_runs(fields, model, counts, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        pretokenize.check_fit(config(**fields), model, pretokenize.pictures_in(counts))
    assert f"{caught.value.field}: " in words or "TiTok, which" in words and caught.value.field is None


def test_only_the_kinds_that_the_corpus_holds_must_fit():
    pretokenize.check_fit(config(video_size=20, frames=6), TokenizerConfig(), {"image"})
    pretokenize.check_fit(config(image_size=20), TokenizerConfig(), {"video"})
    pretokenize.check_fit(config(aspects=("1:1",)), TiTokConfig(image_size=24, patch_size=8), {"image"})


def test_every_caption_is_tokenized_and_teaches_the_text_tokenizer(tmp_path, visual, corpus):
    said = [["a red square", "rot und eckig"], [], ["one alone"]]
    pictures = [row for row in records.iterate(corpus.uri, kinds=["image"], split="train")][:3]
    rows = [
        {**row, "caption": (captions or [None])[0], "captions": captions}
        for row, captions in zip(pictures, said, strict=True)
    ]
    records.write_shard(str(tmp_path / "ingest" / records.shard_name(0)), rows)
    artifact = corpora.seal(tmp_path / "ingest", "ingest")
    assert list(pretokenize._texts(artifact)) == [caption for captions in said for caption in captions]
    found = TokenSet(tokenize(tmp_path / "tokens", artifact, visual, config()), "train")
    text = corpora.text_tokenizer()
    assert [[text.decode(token.ids) for token in document if token.kind == "text"] for document in found] == said
    assert all([token.kind for token in document].count("visual") == 1 for document in found)


def test_an_error_about_a_record_names_it(tmp_path, corpus, visual, monkeypatch):
    """What ingest took can still fail here: a file that only this stage opens in full, memory that is too small."""

    def broken(kind, media, *rest):
        raise ValueError("cut off after 12 bytes\nand a page of the decoder's words")

    monkeypatch.setattr("omniloom.stages.data.clips.decode", broken)
    first = next(iter(records.iterate(corpus.uri)))
    with pytest.raises(OmniLoomError) as caught:
        tokenize(tmp_path, corpus, visual, config())
    assert str(caught.value) == f"{first['source']}: {first['path']}: ValueError: cut off after 12 bytes"
