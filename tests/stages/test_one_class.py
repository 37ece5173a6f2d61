"""A model that knows one class of ten, through ingest, clips and the measures: it gets what it deserves.

Class folders are the commonest layout of labelled pictures: in the records all of one class come before the next.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import corpora
import numpy as np
import pytest

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.stages.data import records
from omniloom.stages.data.media import decode as media
from omniloom.stages.evaluate.config import MeasureConfig
from omniloom.stages.evaluate.drawing import draw
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.writing import describe
from omniloom.stages.ingest import stage as ingest

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
HUES = np.random.default_rng(3).uniform(0.15, 1, (10, 3))
SIDE = 16


def picture(label: str, rng: np.random.Generator) -> np.ndarray:
    """A hue of the class in a pattern of chance."""
    pattern = np.kron(rng.uniform(0.5, 1, (4, 4)), np.ones((4, 4)))[..., None]
    return (255 * pattern * HUES[CLASSES.index(label)]).astype(np.uint8)


class OneClass:
    """In a model's place: draws ants and says "ant", whatever it is asked."""

    config = SimpleNamespace(objectives=("latent_diffusion",))
    tokenizer = SimpleNamespace(config=SimpleNamespace(patch_size=8))

    def __init__(self):
        self.rng, self.asked = np.random.default_rng(9), Counter()

    def sampling(self, chosen):
        return VisualSampling(**chosen)

    def text_to_image(self, prompts, visual, **fields):
        self.asked.update(prompts)
        return np.stack([picture("ant", self.rng) for _ in prompts])

    def image_to_text(self, images, **fields):
        return ["a photo of a ant"] * len(images)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory) -> Artifact:
    """560 pictures in ten folders, half of them held out."""
    rng, root, folder = np.random.default_rng(1), "memory://one-class", tmp_path_factory.mktemp("classes")
    for label in CLASSES:
        for number in range(56):
            storage.write_bytes(f"{root}/pictures/{label}/{number:02}.png", media.encode_png(picture(label, rng)))
    source = {
        "kind": "image_folder",
        "uri": f"{root}/pictures",
        "captions": {"from": "folder", "template": "a photo of a {name}"},
    }
    config = ingest.Config.model_validate(
        {"sources": [source], "splits": {"train": 0.5, "validation": 0.0, "test": 0.5}}
    )
    ingest.run(
        SimpleNamespace(
            config=config,
            output=f"{root}/output",
            state=f"{root}/state",
            predecessor=None,
            progress=lambda *a, **k: None,
        )
    )
    storage.copy_tree(f"{root}/output", str(folder))
    storage.remove(root)
    return corpora.seal(folder, "ingest")


def evaluation(artifact: Artifact, monkeypatch, **fields) -> Evaluation:
    """Of the double, which needs no folder; all else is as it is of a model."""
    monkeypatch.setattr("omniloom.stages.evaluate.evaluation.OmniLoom.load", lambda *a: OneClass())
    monkeypatch.setattr(
        "omniloom.stages.evaluate.evaluation.TokenSet",
        lambda *a: SimpleNamespace(facts={"image_size": SIDE, "video_size": SIDE, "frames": 1}),
    )
    return Evaluation(MeasureConfig(**fields), {"records": artifact, "tokens": None}, "cpu", "anywhere", {})


@pytest.mark.parametrize("fields", [{}, {"drawings": 20, "captions": 20}, {"drawings": 20, "captions": 20, "seed": 5}])
def test_one_class_of_ten_gets_a_tenth(ingested, monkeypatch, fields):
    found = evaluation(ingested, monkeypatch, **fields)
    draw(found)
    describe(found)
    figures = found.metrics
    assert figures["classes"] == 10 and figures["classifier_accuracy"] > 0.9
    assert figures["image_class_agreement"] == pytest.approx(0.1, abs=0.02)
    assert figures["caption_accuracy"] == pytest.approx(0.1)
    assert figures["caption_exact"] <= 0.15
    if not fields:  # of 20 pictures, a neighbourhood of five is a quarter of them all
        assert figures["image_coverage"] <= 0.15
    drawn = Counter(sample["label"] for sample in found.samples if sample["task"] == "text_to_image")
    assert set(drawn) == set(CLASSES)
    if fields:  # of all 256, some classes have no more
        assert set(drawn.values()) == {2}
    assert len(found.loom.asked) == 10, "the grid shows all captions too"


def test_a_second_source_of_ants_alone_flatters_nothing(ingested, monkeypatch, tmp_path):
    """Half of what is described is of the second source, an ant each; labels weigh alike all the same."""
    rows = list(records.iterate(ingested.uri))
    for number in range(60):
        data = media.encode_png(picture("ant", np.random.default_rng((7, number))))
        rows.append(
            {
                **rows[0],
                "id": f"{number:064x}",
                "media": data,
                "source": "ants",
                "path": str(number),
                "label": "ant",
                "caption": "a photo of a ant",
                "split": "test",
            }
        )
    records.write_shard(str(tmp_path / records.shard_name(0)), rows)
    found = evaluation(corpora.seal(tmp_path, "ingest"), monkeypatch, drawings=40, captions=40)
    draw(found)
    describe(found)
    assert found.metrics["image_class_agreement"] == pytest.approx(0.1, abs=0.02)
    assert found.metrics["caption_accuracy"] == pytest.approx(0.1)
    assert found.metrics["caption_exact"] > 0.5, "sources are described evenly"
    assert {name for name in found.pictures} >= {"described_images_ants", "described_images_image_folder_0"}
