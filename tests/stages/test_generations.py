"""Generations that learn from each other's pictures: what is replaced, what stays, and what the study says."""

from __future__ import annotations

import corpora
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.models.model import OmniLoom
from omniloom.models.pixels import half_range
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate import items
from omniloom.stages.pretokenize.config import Config as PretokenizeConfig
from omniloom.stages.studies import generations
from omniloom.stages.studies.consumed import Consumption, consume, written
from omniloom.stages.studies.generations import Config, _worse, name_of, verdict
from omniloom.stages.train import worker as unified_worker
from omniloom.stages.train.config import Config as TrainingConfig

PATCH = 8
TRAINING = {
    "model": {"width": 32, "layers": 1, "heads": 2, "time_dim": 16},
    "objectives": {"latent_diffusion": 1.0},
    "packing": {"length": 96, "window_rows": 8, "mixture": {"video": 0.0}},
    "batch_rows": 2,
    "steps": 2,
    "optimizer": {"warmup_steps": 1},
    "workers": {"count": 1},
    "validate_every": 2,
    "validation_rows": 2,
    "samples": {"count": 2, "num_steps": 1},
}


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokens, a tokenizer and the folder of a model that was trained on them for two steps."""
    folder = tmp_path_factory.mktemp("generations")
    visual, text, rng = corpora.tokenizer(folder / "joint"), corpora.text_tokenizer(), np.random.default_rng(0)
    rows = {
        split: [corpora.token_rows(text, rng, images, 2, 6, 0, pixel_patch=PATCH)]
        for split, images in (("train", 24), ("validation", 8))
    }
    tokens = corpora.pretokenize(folder / "tokens", rows, text, visual_digest=visual.digest, pixel_patch=PATCH)
    settings = PretokenizeConfig(image_size=24, video_size=24, frames=5, pixel_patch=PATCH, batch_size=4)
    tokens.manifest["config"] = settings.model_dump(mode="json")
    training = TrainingConfig.model_validate(TRAINING)
    output, silent = str(folder / "first"), corpora.Silent()
    job = unified_worker.Job(training, tokens, visual, output, str(folder / "state"), silent, silent)
    unified_worker.train_worker(job)
    return tokens, visual, storage.join(output, "model")


def consumption(made, folder, share: float, seed: int = 3) -> Consumption:
    tokens, visual, model = made
    sampling = {"num_steps": 2, "guidance_scale": 1.0, "objective": "latent_diffusion"}
    return Consumption(tokens, visual, model, share, seed, sampling, 0, str(folder), "", lambda *a: None, None)


def equal(a, b) -> bool:
    return all(
        (x is None and y is None) or np.array_equal(x, y)
        for name in ("ids", "codes", "latents", "pixels")
        for x, y in [(getattr(a, name), getattr(b, name))]
    )


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_share_of_the_pictures_is_drawn_and_all_else_stays(made, tmp_path, share):
    job = consumption(made, tmp_path / "out", share)
    assert written(job) is None
    consume(job)
    found = written(job)
    assert found is not None
    before, after = TokenSet(made[0], "train"), TokenSet(found, "train")
    assert len(after) == len(before)
    changed = []
    for number in range(len(before)):
        assert before.row(number) == after.row(number) and before.document(number)[0].loss
        pairs = list(zip(before.document(number), after.document(number), strict=True))
        if not all(equal(*pair) for pair in pairs):
            changed.append(number)
            assert all(equal(*pair) for pair in pairs if pair[0].kind == "text")
            assert before.row(number)["kind"] == "image"
    captioned = [n for n in before.indices("image").tolist() if before.document(n)[0].kind == "text"]
    assert 0 < len(captioned) < 24 and len(changed) == round(share * len(captioned)) and set(changed) <= set(captioned)
    held_out = [TokenSet(tokens, "validation") for tokens in (found, made[0])]
    assert [held_out[0].row(n) for n in range(8)] == [held_out[1].row(n) for n in range(8)]
    np.testing.assert_array_equal(before.index.documents("image"), after.index.documents("image"))


def test_what_stands_there_is_the_drawn_picture_saved_and_encoded_again(made, tmp_path):
    job = consumption(made, tmp_path / "out", 1.0)
    consume(job)
    found, loom = TokenSet(written(job), "train"), OmniLoom.load(job.model)
    number = int(found.indices("image")[5])
    text, picture = found.document(number)
    from omniloom.models.text import TextTokenizer

    caption = TextTokenizer.load(found.text_json).decode(text.ids.tolist())
    how = VisualSampling(num_steps=2, guidance_scale=1.0, objective="latent_diffusion", size=(24, 24))
    drawn = loom.text_to_image([caption], how, seeds=[3 * 1_000_003 + number])[0]
    pixels = half_range(torch.from_numpy(drawn).permute(2, 0, 1)[None].float())
    with torch.no_grad():
        encoded = load_tokenizer(made[1]).encode(pixels)
    np.testing.assert_array_equal(picture.codes, encoded.codes.flatten().numpy())
    np.testing.assert_allclose(picture.latents, encoded.latents[0].flatten(1).T.numpy(), atol=1e-5)
    blocks = drawn.reshape(3, PATCH, 3, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(9, -1)
    assert sorted(map(tuple, np.sort(blocks))) == sorted(map(tuple, np.sort(picture.pixels)))


def test_another_generation_replaces_others(made, tmp_path):
    sets = []
    for seed in (3, 4):
        job = consumption(made, tmp_path / str(seed), 0.5, seed)
        consume(job)
        before, after = TokenSet(made[0], "train"), TokenSet(written(job), "train")
        pairs = ((n, before.document(n), after.document(n)) for n in range(len(before)))
        sets.append({n for n, a, b in pairs if not all(map(equal, a, b))})
    assert len(sets[0]) == len(sets[1]) > 0 and sets[0] != sets[1]


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"shares": [0.5, 1.0]}, "expected 0 among them"),
        ({"shares": [0.0, 1.5]}, "from 0 to 1"),
        ({"shares": [0.0, 0.004]}, "differ by a hundredth"),
        ({"generations": 1}, "greater than or equal to 2"),
        ({"training": {**TRAINING, "objectives": {}}}, "expected one of pictures"),
        ({"evaluation": {"drawings": 0}}, "nothing would be measured"),
    ],
)
def test_what_is_no_study(fields, told):
    with pytest.raises(ValidationError, match=told):
        Config.model_validate({"training": TRAINING, **fields})


def test_a_share_whose_last_generation_is_worse_is_named(tmp_path):
    """Of 300 captions the last generation of all drawn pictures gets a third right, that of a half as many as none."""
    from types import SimpleNamespace

    rng, rows = np.random.default_rng(0), []
    ids = [f"item-{n:03d}" for n in range(300)]
    for share, right in ((1.0, 0.3), (0.5, 0.9), (0.0, 0.9)):
        name = name_of(share, 3)
        values = items.values_of(ids, (rng.random(300) < right).astype(float))
        items.write(storage.join(str(tmp_path), name, "report"), {"image_class_agreement": values})
        rows.append({"name": name, "share": share, "generation": 3, "image_class_agreement": values.mean})
    worse = _worse(SimpleNamespace(output=str(tmp_path)), rows)
    assert worse == {"1": ["image_class_agreement"], "0.5": []}
    told = verdict({"worse": worse})
    assert told.startswith("100% of drawn pictures: worse in image_class_agreement. Up to 50% nothing is worse than")
    html = generations._report({"steps": 2, "rows": rows, "worse": worse}, str(tmp_path))
    assert "100% drawn" in html and "image class agreement" in html
