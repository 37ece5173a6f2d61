"""The measurements of a model: distances and ranks against plain second implementations, grids by source."""

from __future__ import annotations

from types import SimpleNamespace

import corpora
import numpy as np
import pyarrow as pa
import pytest
import small_models
import torch
from torchmetrics.functional.image import structural_similarity_index_measure
from visual_batches import forward

from omniloom.infra import storage
from omniloom.infra.figures import finite
from omniloom.models.model import OmniLoom, to_pixels
from omniloom.models.unified.batch import Segment, collate, document_length
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.models.unified.layouts import prefix_for_text
from omniloom.stages.data import records
from omniloom.stages.data.media import decode as media
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate import drawing as measure_drawing
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate import report as evaluation_report
from omniloom.stages.evaluate.drawing import draw
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.filming import film
from omniloom.stages.evaluate.gate import Verdict
from omniloom.stages.evaluate.stage import Config
from omniloom.stages.evaluate.tokenizer import codebook, reconstruct
from omniloom.stages.evaluate.writing import _asked, describe, read_text, retrieve
from omniloom.stages.reporting import report

OBJECTIVES = ("latent_diffusion", "masked_code")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    """An untrained model, and squares of two sources: captions of one name the colour, of the other the number too."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = list(records.iterate(corpora.ingest(folder / "squares", images=48).uri))
    for number, row in enumerate(rows):
        if number // 6 % 2:
            row |= {"source": "numbered squares", "caption": f"{row['caption']} {number}"}
    records.write_shard(str(folder / "ingest" / records.shard_name(0)), rows)
    made = corpora.seal(folder / "ingest", "ingest")
    return small_models.of_squares(folder, made, codebook=64, num_frames=5, objectives=OBJECTIVES)


def evaluation(inputs: dict, training: dict | None = None, **fields) -> Evaluation:
    return Evaluation(
        Config(
            **{
                "split": "validation",
                "drawings": 8,
                "captions": 8,
                "num_steps": 1,
                "class_examples": 2,
                "retrieval_captions": 4,
                **fields,
            }
        ),
        inputs,
        "cpu",
        training=training,
    )


def test_distances_are_of_as_many_drawn_and_train_pictures(inputs, monkeypatch):
    monkeypatch.setattr(measure_drawing, "LEAST_PICTURES", 8)
    found = evaluation(inputs)
    draw(found)
    assert len(found.captioned) == found.metrics["frechet_pictures"] == 8
    real = metrics.shrink([found.images[i][0] for i in range(8)], 8)
    for objective in OBJECTIVES:
        # Those whose captions are drawn for the classes are the same eight, so they are not drawn anew.
        drawn = found.loom.text_to_image(
            [found.captions[i] for i in found.labelled],
            VisualSampling(num_steps=1, guidance_scale=2.0, objective=objective),
            seeds=0,
        )
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


@pytest.mark.parametrize(
    "trained, prior",
    [
        ({}, True),
        ({"packing": {"caption_first": 0.0}}, False),
        ({"packing": {"caption_loss": False}}, False),
        ({"loss": {"task_weights": {"draw": 0.0}}}, False),
    ],
)
def test_ranks_are_those_of_plain_likelihoods_with_a_prior_where_it_was_trained(inputs, trained, prior):
    """All captions of the split are held against each picture, so that none is left to chance."""
    found = evaluation(inputs, trained, retrieval_captions=100)
    retrieve(found)
    loom, special = found.loom, found.loom.config.unified.specials
    captions = list(dict.fromkeys(found.captions))
    assert found.metrics["retrieval_captions"] == len(captions) > 4
    assert found.metrics["retrieval_mean_rank_chance"] == (len(captions) + 1) / 2
    for objective in OBJECTIVES:
        ranks = []
        for i, caption in enumerate(found.captions):
            shown = loom.encode(to_pixels([found.images[i][0]], (24, 24)), objective)
            prefix = prefix_for_text([], special, shown.reshape(9, *shown.shape[4:]), (1, 3, 3), objective)
            scores = {
                other: plain_score(loom, prefix, [*loom.text.encode(other), special.eos])
                - prior * plain_score(loom, prefix_for_text([], special), [*loom.text.encode(other), special.boi])
                for other in captions
            }
            ranks.append(sorted(captions, key=lambda c: -scores[c]).index(caption) + 1)
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
        "reconstructed_videos",
        *(f"reconstructed_images_{source}" for source in sources),
        *(
            f"{kind}_images_{source}_{objective}"
            for kind in ("drawn", "described")
            for source in sources
            for objective in OBJECTIVES
        ),
    }
    html = report.render(evaluation_report.content(found, Verdict(False, ("caption_exact 0 is below min 1",))))
    for text in (
        "Gate not passed: caption_exact 0 is below min 1.",
        "pointwise mutual information",
        "pixels of pictures shrunken to 8x8",
        "train pictures",
        "a random order",
        "numbered squares",
    ):
        assert text in html


@pytest.mark.parametrize("length", [16, 4096])
def test_bits_per_byte_is_the_plain_likelihood_in_windows_of_the_trained_length(inputs, length):
    """Texts of one token, and of many windows: what is behind a window is not seen, and nothing is left out."""
    found = evaluation(inputs, {"packing": {"length": length}}, texts=2)
    loom, special = found.loom, found.loom.config.unified.specials
    read_text(found)
    texts = [found.tokens.document(int(i))[0].ids for i in found.tokens.indices("text")]
    size = sum(found.tokens.row(int(i))["bytes"] for i in found.tokens.indices("text"))
    assert len(texts) == 2 and max(map(len, texts)) > 3 * 16
    nats = 0.0
    for text in texts:
        ids = [special.bos, *text, special.eos]
        for start in range(0, len(ids) - 1, length):
            window = torch.tensor([ids[start : start + length + 1]])
            with torch.no_grad():
                likely = loom.model.text_logits(window[:, :-1]).double().log_softmax(-1)[0]
            nats -= sum(float(likely[at, token]) for at, token in enumerate(window[0, 1:].tolist()))
    assert found.metrics["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-5)


def test_texts_are_shown_as_they_were_begun_and_gone_on_with_without_blank_lines(inputs):
    found = evaluation(inputs)
    read_text(found)
    assert [sample["task"] for sample in found.samples] == ["text_to_text"] * 2
    assert found.text_samples == [
        {name: "\n".join(filter(None, map(str.strip, sample[name].split("\n")))) for name in ("prompt", "output")}
        for sample in found.samples
    ]
    assert all(sample["prompt"] != sample["output"] for sample in found.text_samples)


def test_texts_are_drawn_over_sources_and_files(inputs, tmp_path, monkeypatch):
    """One long book fills the first shard; others are read all the same."""
    text = corpora.text_tokenizer()
    rows = [
        {
            "id": f"{number:03}",
            "kind": "text",
            "source": source,
            "path": path,
            "bytes": 10,
            "segments": [{"kind": "text", "loss": True, "ids": text.encode("a red square")}],
        }
        for number, (source, path) in enumerate(
            [("books", "alice")] * 40 + [("books", "emma")] * 3 + [("web", "page")] * 2
        )
    ]
    tokens = corpora.pretokenize(tmp_path, {"validation": [rows[:20], rows[20:]]}, text)
    document = TokenSet.document
    for seed in range(3):
        read: list[int] = []
        monkeypatch.setattr(TokenSet, "document", lambda own, i, read=read: read.append(i) or document(own, i))
        read_text(evaluation({**inputs, "tokens": tokens}, texts=4, seed=seed))
        assert sorted(rows[i]["path"] for i in read[:4]) == ["alice", "emma", "page", "page"]
    assert TokenSet(tokens, "validation").table["source"].to_pylist()[-1] == "web"


def test_the_classifier_learns_from_train_pictures_alone(inputs, monkeypatch):
    seen = []

    class Spy(metrics.PixelClassifier):
        def __init__(self, features, labels):
            seen.append((features, labels))
            super().__init__(features, labels)

    monkeypatch.setattr(metrics, "PixelClassifier", Spy)
    found = evaluation(inputs)
    draw(found)
    held_out, train = (
        list(records.iterate(inputs["records"].uri, kinds=["image"], split=split)) for split in ("validation", "train")
    )
    rows = [row for row in train if row["label"] in {other["label"] for other in held_out}]
    ((features, labels),) = seen
    expected = metrics.shrink([media.decode_image(row["media"]) for row in rows], 8)
    np.testing.assert_array_equal(features, expected)
    assert labels == [row["label"] for row in rows] and len(rows) == 16 < len(train)


def test_what_is_drawn_described_and_retrieved_has_the_shapes_of_training(inputs, tmp_path):
    """Pictures of many shapes, tokens of two ratios without a square."""
    ingest = corpora.ingest_shapes(tmp_path / "shapes")
    tokens = corpora.pretokenize(tmp_path / "tokens", {"validation": [[]]}, corpora.text_tokenizer())
    storage.write_json(
        tokens.file("tokens.json"), {**storage.read_json(tokens.file("tokens.json")), "aspects": ["3:2", "2:3"]}
    )
    found = evaluation({**inputs, "records": ingest, "tokens": tokens}, captions=4, drawings=4)
    shapes = {"drawn": [], "filmed": [], "described": []}
    loom = found.loom

    def noted(name, function):
        def call(given, *rest, **fields):
            visual = rest[0] if rest else fields["visual"]
            shapes[name].append((visual.size, [np.shape(x) for x in given]))
            return function(given, *rest, **fields)

        return call

    for name, method in (("drawn", "text_to_image"), ("filmed", "text_to_video"), ("described", "image_to_text")):
        setattr(loom, method, noted(name, getattr(loom, method)))
    encoded, encode = [], loom.encode
    loom.encode = lambda pixels, *rest: encoded.append(tuple(pixels.shape[-2:])) or encode(pixels, *rest)
    for part in (draw, describe, retrieve, film):
        part(found)
    trained = {(16, 32), (32, 16)}  # (height, width) of 3:2 and 2:3 at size 24 for a patch of 8
    assert len(found.images) == 2 and len(found.videos) == 1
    for name in shapes:
        assert shapes[name] and {size for size, _ in shapes[name]} <= trained, name
    assert {size for size, _ in shapes["drawn"]} == {found.images.shape(i) for i in range(2)}
    assert all(given == [(*size, 3)] * len(given) for size, given in shapes["described"])
    assert set(encoded) <= trained


def test_figures_that_are_no_numbers_are_null_and_no_miss(inputs):
    found = evaluation(inputs)
    with torch.no_grad():
        for parameter in found.loom.model.parameters():
            parameter.fill_(float("nan"))
    for part in (read_text, draw, describe, retrieve, film):
        part(found)
    broken = {name for name, value in finite(found.metrics).items() if value is None}
    assert broken == {
        "bits_per_byte",
        *(
            f"retrieval_{name}_{objective}"
            for objective in OBJECTIVES
            for name in ("recall_at_1", "recall_at_10", "mean_rank")
        ),
    }
    assert not found.text_samples
    found.metrics = finite(found.metrics)
    assert "Not a number: retrieval" in report.render(evaluation_report.content(found, Verdict(None)))


def test_a_pictures_own_captions_are_never_held_against_it():
    captions = [["a", "b"], ["b", "c"], ["c"], ["d", "a", "c"], ["e"]]
    first = [said[0] for said in captions]
    images = SimpleNamespace(table={"captions": pa.chunked_array([captions])})
    for seed in range(20):
        evaluation = SimpleNamespace(
            images=images,
            captions=first,
            caption=first.__getitem__,
            config=SimpleNamespace(retrieval_captions=100, seed=seed),
        )
        asked = _asked(evaluation, first, [0, 1, 2, 3, 4])
        assert asked.shape == (5, 3)  # the fourth has two captions of others against it
        for own, row in zip(captions, asked, strict=True):
            assert first[row[0]] == own[0] and not {first[i] for i in row[1:]} & set(own) and len(set(row)) == 3


def test_pictures_are_told_apart_by_source_only_where_there_are_several(inputs):
    found = evaluation(inputs)
    both = found.by_source(range(8))
    assert set(both) == {"_squares", "_numbered_squares"} and sorted(sum(both.values(), [])) == list(range(8))
    one = both["_squares"]
    assert found.by_source(one) == {"": one} and found.by_source([]) == {"": []}


@pytest.mark.parametrize("reconstructions", [4, 256])
def test_reconstruction_is_the_mean_over_pictures_and_over_frames(inputs, reconstructions):
    """PSNR by its formula, of each picture that is measured and of each frame of each clip, from batches of one."""
    found = evaluation(inputs, reconstructions=reconstructions)
    reconstruct(found)
    tokenizer = found.loom.tokenizer
    for kind, clips in (("image", found.images), ("video", found.videos)):
        chosen = clips.spread(0)[:reconstructions]
        values, likeness = [], []
        for i in chosen:
            clip = torch.from_numpy(clips[int(i)]).permute(3, 0, 1, 2)
            with torch.no_grad():
                recon = tokenizer(clip[None].float() / 255 - 0.5)[0][0]
            shown = ((recon.clamp(-0.5, 0.5) + 0.5) * 255).round()
            errors = (shown.double() - clip.double()).square().mean(dim=(0, 2, 3))
            values += (10 * torch.log10(255**2 / errors)).tolist()
            likeness += [
                float(structural_similarity_index_measure(a[None], b[None], data_range=255.0))
                for a, b in zip(shown.double().unbind(1), clip.double().unbind(1))
            ]
        assert len(chosen) == min(reconstructions, len(clips)) > 0
        assert found.metrics[f"recon_psnr_{kind}"] == pytest.approx(np.mean(values), abs=0.02)
        assert found.metrics[f"recon_ssim_{kind}"] == pytest.approx(np.mean(likeness), abs=1e-3)


def test_clips_are_measured_where_no_picture_is_held_out(inputs, tmp_path):
    rows = [row for row in records.iterate(inputs["records"].uri) if row["kind"] == "video" or row["split"] == "train"]
    records.write_shard(str(tmp_path / records.shard_name(0)), rows)
    found = evaluation(inputs | {"records": corpora.seal(tmp_path, "ingest")})
    reconstruct(found)
    assert set(found.metrics) == {"recon_psnr_video", "recon_ssim_video"} and set(found.pictures) == {
        "reconstructed_videos"
    }


def test_the_codebooks_use_is_counted_over_all_splits(inputs, tmp_path):
    """Codes 0 to 63: of the train split 3 and 5, of the others 5, 7 and 60, as often as they stand in pictures."""
    text, codes = corpora.text_tokenizer(), {"train": [3] * 6 + [5] * 3, "validation": [5] * 8 + [7], "test": [60] * 9}
    splits = {}
    for split, values in codes.items():
        rows = corpora.token_rows(text, np.random.default_rng(0), images=1, videos=0, texts=1, documents=0)
        rows[0]["segments"][-1]["codes"] = np.array(values, np.int32)
        splits[split] = [rows]
    tokens = corpora.pretokenize(tmp_path / "tokens", splits, text)
    found = evaluation(inputs | {"tokens": tokens})
    codebook(found)
    shares = [6 / 27, 11 / 27, 1 / 27, 9 / 27]
    assert found.metrics == {
        "codebook_usage": 4 / 64,
        "codebook_perplexity": pytest.approx(np.prod([share**-share for share in shares])),
    }
    without = corpora.token_rows(text, np.random.default_rng(0), images=0, videos=0, texts=2, documents=0)
    bare = evaluation(
        inputs | {"tokens": corpora.pretokenize(tmp_path / "bare", {"train": [without], "validation": [without]}, text)}
    )
    codebook(bare)
    assert bare.metrics == {}


@pytest.fixture(scope="module")
def many(inputs, tmp_path_factory) -> dict:
    """48 held-out pictures with captions that all differ, a third of them without a label."""
    folder = tmp_path_factory.mktemp("many")
    rows = list(records.iterate(corpora.ingest(folder / "squares", images=60, videos=0).uri))
    for number, row in enumerate(rows):
        row |= {
            "split": "train" if number < 12 else "validation",
            "caption": f"{row['caption']} {number}",
            "captions": [f"{row['caption']} {number}"],
            "label": None if number % 3 == 2 else row["label"],
        }
    records.write_shard(str(folder / "ingest" / records.shard_name(0)), rows)
    return inputs | {"records": corpora.seal(folder / "ingest", "ingest")}


def test_what_is_drawn_of_pictures_of_which_some_have_no_label(many, monkeypatch):
    monkeypatch.setattr(measure_drawing, "LEAST_PICTURES", 8)
    found = evaluation(many, drawings=40)
    assert (len(found.captioned), len(found.labelled)) == (48, 32)
    draw(found)
    asked = measure_drawing._plain(found)
    assert len(asked) == found.metrics["frechet_pictures"] == 12  # as many as there are train pictures
    monkeypatch.setattr(measure_drawing, "_plain", lambda _: found.captioned)
    wide = evaluation(many, drawings=40)
    draw(wide)

    def drawn(captions: list[str], objective: str) -> list[np.ndarray]:
        return list(
            found.loom.text_to_image(
                captions,
                VisualSampling(num_steps=1, guidance_scale=2.0, objective=objective),
                seeds=list(range(len(captions))),
            )
        )

    first = [found.captions[i] for i in found.captioned[:32]]
    for objective in OBJECTIVES:
        # 32 captions, one picture of each.
        assert found.pictures[f"drawn_images_{objective}"] == report.grid(drawn(first, objective), 8, first)
        # Agreement: the mean over labels of what the samples say.
        said = [sample for sample in found.samples if sample["objective"] == objective]
        labels = sorted({sample["label"] for sample in said})
        by_label = [np.mean([s["named"] == s["label"] for s in said if s["label"] == label]) for label in labels]
        assert len(said) == 40 and len(labels) == 4 and None not in labels
        assert found.metrics[f"image_class_agreement_{objective}"] == pytest.approx(np.mean(by_label))
        # The distance is of the captions that it is of, though those with a label are drawn too, twice some of them.
        for one, indices in ((found, asked), (wide, found.captioned)):
            real = metrics.shrink([one.images[i][0] for i in indices], 8)
            made = metrics.shrink(drawn([one.captions[i] for i in indices], objective), 8)
            assert one.metrics[f"frechet_pixels8_{objective}"] == pytest.approx(metrics.frechet(real, made), rel=1e-5)


def test_a_guess_among_twenty_captions(many):
    found = evaluation(many, retrieval_captions=20, captions=4)
    retrieve(found)
    assert found.metrics["retrieval_captions"] == 20
    assert {name: value for name, value in found.metrics.items() if name.endswith("chance")} == {
        "retrieval_recall_at_1_chance": 0.05,
        "retrieval_recall_at_10_chance": 0.5,
        "retrieval_mean_rank_chance": 10.5,
    }
    # Which captions stand against a picture is a matter of the seed alone, so that figures of two models compare.
    captions, chosen = list(dict.fromkeys(found.captions)), [0, 1]
    rng = np.random.default_rng((0, 8))
    expected = [[i, *rng.choice([j for j in range(48) if j != i], 19, replace=False)] for i in chosen]
    assert _asked(found, captions, chosen).tolist() == expected
