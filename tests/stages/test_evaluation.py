"""The measurements of a model: distances and ranks against plain second implementations, grids by source."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import corpora  # noqa: E402
from visual_batches import forward  # noqa: E402

from infra import storage  # noqa: E402
from models.bundle import BundleConfig, OmniLoom, to_pixels  # noqa: E402
from models.unified.batch import Segment, collate, document_length  # noqa: E402
from models.unified.config import UnifiedConfig  # noqa: E402
from models.unified.diffusion_config import DiffusionConfig  # noqa: E402
from models.unified.layouts import prefix_for_text  # noqa: E402
from models.unified.model import UnifiedModel  # noqa: E402
from stages import evaluation_report, measure_drawing, metrics, records, report  # noqa: E402
from stages.evaluate import Config  # noqa: E402
from stages.evaluation import Evaluation  # noqa: E402
from stages.measure_drawing import draw  # noqa: E402
from stages.measure_tokenizer import reconstruct  # noqa: E402
from stages.measure_writing import describe, retrieve  # noqa: E402
from stages.train_tokenizer import load_tokenizer  # noqa: E402

OBJECTIVES = ("latent_diffusion", "masked_code")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    """An untrained model, and squares of two sources: captions of one name the colour, of the other the number too."""
    folder = tmp_path_factory.mktemp("evaluation")
    visual, text, rng = corpora.tokenizer(folder / "joint"), corpora.text_tokenizer(), np.random.default_rng(0)
    storage.write_bytes(str(folder / "joint" / "report" / "history.jsonl"), b"")
    rows = list(records.iterate(corpora.ingest(folder / "squares", images=48).uri))
    for number, row in enumerate(rows):
        if number // 6 % 2:
            row |= {"source": "numbered squares", "caption": f"{row['caption']} {number}"}
    records.write_shard(str(folder / "ingest" / records.shard_name(0)), rows)
    tokens = corpora.pretokenize(
        folder / "tokens", {"validation": [corpora.token_rows(text, rng, images=2, videos=1, texts=2, documents=0)]},
        text, visual_digest=visual.digest)
    torch.manual_seed(0)
    model = UnifiedModel(UnifiedConfig(vocab_size=text.vocab_size, width=32, layers=1, heads=2, time_dim=16,
                                       latent_dim=4, codebook_size=64, specials=text.specials))
    tokenizer = load_tokenizer(visual)
    bundle = BundleConfig(unified=model.config, diffusion=DiffusionConfig(), tokenizer=tokenizer.config,
                          latent_mean=(0.1,) * 4, latent_std=(0.5,) * 4, image_size=(24, 24), num_frames=5,
                          objectives=OBJECTIVES)
    OmniLoom(bundle, model, tokenizer, text).save(folder / "train" / "model")
    storage.write_bytes(str(folder / "train" / "report" / "history.jsonl"), b"")
    trained = corpora.seal(folder / "train", "train")
    trained.manifest.update(pipeline="squares", metrics={"parameters": 1}, times={"seconds": 1.0}, code=None)
    return {"ingest": corpora.seal(folder / "ingest", "ingest"), "tokenizer_joint": visual, "pretokenize": tokens,
            "train": trained}


def evaluation(inputs: dict, **fields) -> Evaluation:
    return Evaluation(Config(**{"split": "validation", "drawings": 8, "captions": 8, "num_steps": 1,
                                "class_examples": 2, "retrieval_captions": 4, **fields}), inputs, "cpu")


def test_distances_are_of_as_many_drawn_and_train_pictures(inputs, monkeypatch):
    monkeypatch.setattr(measure_drawing, "LEAST_PICTURES", 8)
    found = evaluation(inputs)
    draw(found)
    assert len(found.captioned) == found.metrics["frechet_pictures"] == 8
    real = metrics.shrink([found.images[i][0] for i in range(8)], 8)
    for objective in OBJECTIVES:
        drawn = found.loom.text_to_image([record["caption"] for record in found.records], num_steps=1, seeds=0,
                                         guidance_scale=2.0, objective=objective)
        expected = metrics.frechet(real, metrics.shrink(list(drawn), 8))
        assert found.metrics[f"frechet_pixels8_{objective}"] == pytest.approx(expected, rel=1e-6)
    assert 0 < found.metrics["frechet_pixels8_train"] < found.metrics["frechet_pixels8_latent_diffusion"]
    fewer = evaluation(inputs, drawings=7)
    draw(fewer)
    assert not [name for name in fewer.metrics if name.startswith("frechet")]


@torch.no_grad()
def plain_score(loom: OmniLoom, prefix: list, ids: list[int]) -> float:
    document = [*prefix, Segment("text", ids=np.array(ids))]
    batch = collate([[document]], document_length(document), loom.config.unified)
    labels = batch.labels.flatten()[batch.label_index]
    return -float(torch.nn.functional.cross_entropy(forward(loom.model, batch)[0], labels, reduction="sum"))


def test_ranks_are_those_of_plain_mutual_information(inputs):
    """All captions of the split are held against each picture, so that none is left to chance."""
    found = evaluation(inputs, retrieval_captions=100)
    retrieve(found)
    loom, special = found.loom, found.loom.config.unified.specials
    captions = list(dict.fromkeys(record["caption"] for record in found.records))
    assert found.metrics["retrieval_captions"] == len(captions) > 4
    assert found.metrics["retrieval_mean_rank_chance"] == (len(captions) + 1) / 2
    for objective in OBJECTIVES:
        ranks = []
        for i, record in enumerate(found.records):
            shown = loom.encode(to_pixels([found.images[i][0]], (24, 24)), objective)
            prefix = prefix_for_text([], special, shown.reshape(9, *shown.shape[4:]), (1, 3, 3), objective)
            scores = {caption: plain_score(loom, prefix, [*loom.text.encode(caption), special.eos])
                      - plain_score(loom, prefix_for_text([], special), [*loom.text.encode(caption), special.boi])
                      for caption in captions}
            ranks.append(sorted(captions, key=lambda c: -scores[c]).index(record["caption"]) + 1)
        assert found.metrics[f"retrieval_mean_rank_{objective}"] == pytest.approx(np.mean(ranks))
        assert found.metrics[f"retrieval_recall_at_1_{objective}"] == np.mean(np.array(ranks) == 1)


def test_fewer_captions_are_drawn_by_the_seed_and_one_is_no_choice(inputs):
    first, again, *others = (evaluation(inputs, seed=seed) for seed in (0, 0, 1, 2, 3))
    for found in (first, again, *others):
        retrieve(found)
    assert first.metrics == again.metrics and any(first.metrics != other.metrics for other in others)
    assert first.metrics["retrieval_recall_at_1_chance"] == 0.25
    none = evaluation(inputs, retrieval_captions=1)
    retrieve(none)
    assert none.metrics == {}


def test_every_source_has_its_grids(inputs, monkeypatch):
    monkeypatch.setattr(measure_drawing, "LEAST_PICTURES", 8)
    found = evaluation(inputs)
    for part in (draw, describe, retrieve, reconstruct):
        part(found)
    sources = ("squares", "numbered_squares")
    assert set(found.pictures) == {
        "reconstructed_videos", *(f"reconstructed_images_{source}" for source in sources),
        *(f"{kind}_images_{source}_{objective}" for kind in ("drawn", "described") for source in sources
          for objective in OBJECTIVES)}
    html = report.render(evaluation_report.content(found, {}))
    for text in ("pixels of pictures shrunken to 8x8", "train pictures", "a random order", "numbered squares"):
        assert text in html
