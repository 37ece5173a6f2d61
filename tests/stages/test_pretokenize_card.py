"""The card of a corpus: counts that add up, and bits that are those of the very codes, latents and pictures."""

from __future__ import annotations

import io
import math
from pathlib import Path

import corpora
import numpy as np
import pytest
from PIL import Image

from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.quantizers.config import GaussianConfig
from omniloom.stages.data import records
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import decode
from omniloom.stages.data.token_shards import write_shard
from omniloom.stages.pretokenize import bits, card
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.stats import Stats, combine, weight


def visual(codes: np.ndarray, channels: int = 2, pixels: int = 64) -> dict:
    """A picture of these codes (t, h, w), each of so many pixels."""
    latents = np.stack([codes.ravel() + c for c in range(channels)], -1).astype(np.float32).ravel()
    grid = list(codes.shape)
    segment = {"kind": "visual", "loss": True, "codes": codes.ravel().astype(np.int32), "latents": latents}
    return {**segment, "grid": grid, "decoded": codes.size * pixels}


def row(kind: str, *segments: dict, source: str = "a", size: int = 0) -> dict:
    return {"id": "0", "kind": kind, "source": source, "path": "p", "bytes": size, "segments": list(segments)}


def text(count: int) -> dict:
    return {"kind": "text", "loss": True, "ids": np.arange(count, dtype=np.int32)}


def test_counts_are_by_split_source_kind_and_language_and_add_up():
    first, second = Stats(2), Stats(2)
    first.count(row("text", text(5), size=20), "train", "en")
    first.count(row("text", text(7), size=30, source="b"), "train")
    first.count(row("image", text(2), visual(np.zeros((1, 2, 3))), size=4), "test")
    second.count(row("text", text(1), size=2), "train", "en")
    made = card.make([first.to_dict(), second.to_dict()], {}, 4, 64, None, None)
    assert [tuple(found.values()) for found in made["documents"]] == [
        ("test", "a", "image", "", 1, 2, 6, 4),
        ("train", "a", "text", "en", 2, 6, 0, 22),
        ("train", "b", "text", "", 1, 7, 0, 30),
    ]
    assert made["latents"] is None  # no picture to train on
    shown = card.text(made)
    assert "| train | b      | text  | unknown  |         1 |           7 |             0 |            30 |" in shown


def test_bits_are_those_of_the_codes_that_occur_and_of_the_latents_as_stored():
    stats = Stats(2)
    codes = np.array([0] * 8 + [1] * 4 + [2] * 2 + [3] * 2).reshape(1, 4, 4)  # 1.75 bits a code
    for _ in range(100):
        stats.count(row("image", visual(codes)), "train")
    stats.count(row("video", visual(np.zeros((2, 2, 2)), pixels=256)), "train")
    shards = [stats.to_dict()]
    made = card.make(shards, combine(shards), 16, 64, bits.Lossless(10, 1000, 500, 250), {"left": 1.0, "upper": 0.5})
    image = made["bits"]["image"]
    assert image["codes"] == 4 / 64 and image["codes_entropy"] == pytest.approx(1.75 / 64)
    assert (image["latents"], image["png"], image["webp"], image["raw"]) == (64 / 64, 4.0, 2.0, 24.0)
    assert (image["codes_beside_left"], image["codes_beside_upper"]) == (1 / 64, 0.5 / 64)
    assert (image["pictures"], image["measured"], image["codes_used"]) == (100, 10, 4)
    video = made["bits"]["video"]
    assert video["codes_entropy"] == 0 and video["latents"] == 64 / 256 and "png" not in video
    latents = np.concatenate([np.repeat(codes.ravel(), 100), np.zeros(8)])
    np.testing.assert_allclose(made["latents"]["std"], [latents.std()] * 2)
    assert (made["latents"]["least"], made["latents"]["greatest"]) == ([0.0, 1.0], [3.0, 4.0])
    assert "| codes: their entropy | 0.0273 | 0.0000 |" in " ".join(card.bits_table(made).split())
    assert card.metrics(made)["bits_image_codes"] == 4 / 64


def test_codes_of_a_shard_count_for_those_that_it_stands_for():
    assert [weight(n) for n in (0, 1, 255, 256, 257, 258, 511, 512, 514, 516, 1023, 1024)] == [
        *(1, 1, 1, 2, 0, 2, 0, 4, 0, 4, 0, 8)
    ]
    for shards in (1, 256, 512, 1000, 20_000):
        assert abs(sum(map(weight, range(shards))) - shards) < max(1, shards / 128)
    assert sum(map(bool, map(weight, range(1 << 20)))) == 256 + 12 * 128
    known, rare = Stats(2), Stats(2, stands_for=2)
    known.count(row("image", visual(np.zeros((1, 1, 4)))), "train")
    rare.count(row("image", visual(np.ones((1, 1, 4)))), "train")
    empty = Stats(2, stands_for=0)
    empty.count(row("image", visual(np.ones((1, 1, 4)))), "train")
    stats = [known.to_dict()] * 256 + [rare.to_dict(), empty.to_dict()] * 128
    made = card.make(stats, combine(stats), 4, 64, None, None)
    assert made["bits"]["image"]["codes_entropy"] == pytest.approx(1 / 64)  # as often the one as the other


def written(folder: Path, pictures: list[np.ndarray], shards: int = 3) -> str:
    for number in range(shards):
        rows = [row("text", text(3)), *(row("image", text(1), visual(codes)) for codes in pictures[number::shards])]
        write_shard(str(folder / "tokens" / "train" / f"shard-{number:05d}.arrow"), rows)
    return str(folder)


def chain(rng, count: int, stay: float, size: int = 16, sides=(1, 8, 8)) -> list[np.ndarray]:
    """Rows of a Markov chain over the columns: a code stays with a probability, or is drawn anew."""
    found = []
    for _ in range(count):
        codes = rng.integers(0, size, sides)
        for column in range(1, sides[2]):
            kept = rng.random(sides[:2]) < stay
            codes[..., column] = np.where(kept, codes[..., column - 1], codes[..., column])
        found.append(codes)
    return found


def test_a_code_beside_its_neighbour_takes_what_is_left_to_say(tmp_path):
    found = bits.conditional(written(tmp_path, chain(np.random.default_rng(0), 600, 0.8)), 16, range(3))
    same = 0.8 + 0.2 / 16
    exact = -same * math.log2(same) - (1 - same) * math.log2((1 - same) / 15)
    assert found["left"] == pytest.approx(exact, abs=0.02)
    assert found["upper"] == pytest.approx(4, abs=0.02)  # rows know nothing of each other


def test_few_codes_of_a_large_vocabulary_are_not_called_cheap(tmp_path):
    """A plain estimate would be near 0: of 2^14 codes hardly a pair occurs twice."""
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 1 << 14, (1, 8, 8)) for _ in range(64)]
    found = bits.conditional(written(tmp_path, pictures), 1 << 14, range(3))
    assert all(13.5 < value < 15.5 for value in found.values())
    assert bits.conditional(written(tmp_path / "one", pictures[:1], shards=1), 1 << 14, range(1)) is None
    assert bits.conditional(str(tmp_path), 1 << 14, {3}) is None  # not one of those


def test_what_is_written_without_loss_is_what_the_encoder_sees(tmp_path):
    corpus = corpora.ingest_shapes(tmp_path / "ingest")
    config = pretokenize.Config(image_size=24, aspects=("1:1", "3:2", "2:3"))
    aspects, sizes = Aspects(config.aspects, 8), []
    for record in records.iterate(corpus.uri, kinds=["image", "document"]):
        for held in [s for s in record["segments"] or [record] if s["media"]]:
            shape = aspects.shape(aspects.bucket(held["width"], held["height"]), 24)
            picture, found = Image.fromarray(decode("image", held["media"], shape, 1)[0]), []
            for options in ({"format": "PNG"}, {"format": "WEBP", "lossless": True}):
                sink = io.BytesIO()
                picture.save(sink, **options)
                found.append(len(sink.getvalue()))
            sizes.append((shape[0] * shape[1], *found))
    made = bits.lossless(corpus, config, 8)
    assert (made.pictures, made.pixels, made.png, made.webp) == (len(sizes), *map(sum, zip(*sizes, strict=True)))


def test_pictures_without_loss_are_some_of_all_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(bits, "_PICTURES", 16)
    rows = list(records.iterate(corpora.ingest(tmp_path / "squares", images=72, videos=0).uri))
    for number in range(6):
        records.write_shard(str(tmp_path / "ingest" / records.shard_name(number)), rows[12 * number :][:12])
    corpus = corpora.seal(tmp_path / "ingest", "ingest")
    drawn = [record["path"] for record, _ in bits._drawn(corpus.uri)]
    assert len(drawn) == len(set(drawn)) == 16 and drawn == [record["path"] for record, _ in bits._drawn(corpus.uri)]
    assert len({int(path) // 12 for path in drawn}) >= 2


def test_log_variances_need_a_posterior():
    with pytest.raises(Exception, match="log_variances: the tokenizer's latents have none, expected .* of kind kl"):
        pretokenize.check_fit(pretokenize.Config(log_variances=True), TokenizerConfig(), {"image"})
    gaussian = TokenizerConfig(quantizer=GaussianConfig())
    pretokenize.check_fit(pretokenize.Config(log_variances=True), gaussian, {"image"})
