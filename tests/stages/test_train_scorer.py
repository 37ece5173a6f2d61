"""A scorer's training on coloured squares: what it learns, what its artifact is, folds, ranks, and going on."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.checkpoints.dual_encoder import load_dual_encoder
from omniloom.stages.checkpoints.scorer import as_one, fold_of, load_scorer
from omniloom.stages.data import records as written
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.data.media.limits import DEFAULT_LIMITS
from omniloom.stages.ingest.rows import media_row
from omniloom.stages.reporting import history
from omniloom.stages.scorer import retrieval, stage
from omniloom.stages.scorer.job import Job
from omniloom.stages.scorer.pairs import PairBatches

SMALL = {
    "model": {"image_size": 24, "patch_size": 8, "width": 32, "heads": 2, "layers": 1, "text_layers": 1, "dim": 16},
    "batch": 16,
    "steps": 80,
    "vocab_size": 300,
    "colour": 0.05,
    "optimizer": {"lr": 1e-3, "warmup_steps": 10},
    "workers": {"count": 1, "log_every": 5, "checkpoint_every": 20},
    "validate_every": 20,
}


def config(**fields) -> stage.Config:
    return stage.Config.model_validate({**SMALL, **fields})


def job(folder: Path, records, own: stage.Config, **more) -> Job:
    words = str(folder / "tokenizer.json")
    storage.write_bytes(words, stage._words(own, records).encode())
    silent = {"progress": corpora.Silent(), "tracker": corpora.Silent()}
    return Job(own, records, words, str(folder / "output"), str(folder / "state"), **{**silent, **more})


def train(folder: Path, records, own: stage.Config, **more):
    from omniloom.stages.scorer.worker import train_worker

    train_worker(job(folder, records, own, **more))
    return corpora.seal(folder / "output", "train_scorer", own)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """96 squares of four colours at random places, 64 of them to train on, and a picture without a caption."""
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    rows = []
    for number in range(97):
        colour = list(corpora.COLOURS)[number % 4]
        row = media_row("image", encode_png(corpora.square(colour, rng.integers(0, 16, 2))), DEFAULT_LIMITS)
        split = ("validation", "test", "train", "train", "train", "train")[number // 4 % 6]
        said = {"caption": f"a {colour} square"} if number < 96 else {}
        rows.append({**row, **said, "split": split, "source": "squares", "path": str(number), "part": 0, "meta": "{}"})
    written.write_shard(str(folder / written.shard_name(0)), rows)
    return corpora.seal(folder, "ingest")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, records, process_group):
    folder = tmp_path_factory.mktemp("scorer")
    return train(folder, records, config(folds=2)), storage.load_json(str(folder / "state" / "metrics.json"))


def test_colours_find_their_captions(trained):
    """Four captions: by chance one of four is the own."""
    artifact, metrics = trained
    assert metrics["retrieval_captions"] == 4 and metrics["recall_at_1_chance"] == 0.25
    assert metrics["recall_at_1"] > 0.9
    assert metrics["recall_at_1_low"] <= metrics["recall_at_1"] <= metrics["recall_at_1_high"]
    assert metrics["retrieval_pictures"] == 16
    rows = history.load(artifact.file("report", "history.jsonl"))
    assert {"fold0_loss", "fold1_loss", "loss", "lr"} <= set().union(*rows)
    html = storage.read_bytes(artifact.file("report", "scorer.html")).decode()
    assert "Own caption among others" in html and "2 scorers" in html
    assert "25.0%" in stage.summary(metrics)


def test_scorer_tells_right_from_wrong(trained):
    artifact, _ = trained
    scorer = load_scorer(artifact)
    squares = [corpora.square(colour, (4, 9)) for colour in corpora.COLOURS]
    captions = [f"a {colour} square" for colour in corpora.COLOURS]
    pictures, texts = scorer.pictures(squares), scorer.texts(captions)
    assert pictures.shape == texts.shape == (4, 2, 16)
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=-1), 1, rtol=1e-5)
    for fold in range(2):
        assert (pictures[:, fold] @ texts[:, fold].T).argmax(1).tolist() == [0, 1, 2, 3]
    mean = np.mean([pictures[:, fold] @ texts[:, fold].T for fold in range(2)], axis=0)
    np.testing.assert_allclose(scorer.features(squares) @ as_one(texts).T, mean, atol=1e-5)


def test_artifact_is_a_folder_that_transformers_reads(trained):
    """Embeddings of pictures of another size and of captions of several lengths."""
    from transformers import CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    folder = trained[0].file("scorer", "0")
    model = CLIPModel.from_pretrained(folder).eval()
    words = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="<pad>")
    captions = ["a red square", "a white", "green blue square of red"]
    tokens = words(captions, return_tensors="pt", padding=True)
    picture = np.random.default_rng(0).integers(0, 256, (40, 31, 3), np.uint8)
    size = {"size": {"shortest_edge": 24}, "crop_size": 24}
    pixels = CLIPImageProcessor(**size)(picture, return_tensors="pt")["pixel_values"]
    mine = load_dual_encoder(folder, "scorer")
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    unit = [torch.nn.functional.normalize(rows, dim=-1) for rows in (mine.texts(captions), mine.pictures([picture]))]
    torch.testing.assert_close(unit[0], out.text_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unit[1], out.image_embeds, rtol=1e-3, atol=1e-3)
    assert model.logit_scale.exp().item() == pytest.approx(
        math.exp(load_file(f"{folder}/model.safetensors")["logit_scale"])
    )
    assert mine.ids(["<end> and \ud800"])[0].count(mine.model.config.eos) == 1


def test_no_fold_sees_its_own_records(records):
    own = config(folds=3, batch=8)
    batches = PairBatches(records, own, 24, 0, 1)
    ids = batches.store.table["id"].to_pylist()
    for fold, order in enumerate(batches._orders):
        seen = {int(i) for step in range(40) for i in order.at(step)[1]}
        assert seen and all(fold_of(ids[i], 3) != fold for i in seen)
        captioned = [i for i, caption in enumerate(batches.store.table["caption"].to_pylist()) if caption]
        assert seen == {i for i in captioned if fold_of(ids[i], 3) != fold}
    batches.close()


def test_ranks_divide_a_step(records):
    """Pixels and captions of three ranks are those of one, in order; the changes to pictures too."""
    own = config(batch=10, flip=True)
    whole, *parts = (PairBatches(records, own, 24, rank, ranks) for rank, ranks in ((0, 1), (0, 3), (1, 3), (2, 3)))
    (expected,), shares = whole.at(4), [part.at(4)[0] for part in parts]
    torch.testing.assert_close(torch.cat([share.pixels for share in shares]), expected.pixels)
    assert list(itertools.chain(*(share.captions for share in shares))) == expected.captions
    assert expected.same.tolist() == [[a == b for b in expected.captions] for a in expected.captions]
    assert all(share.counts == (4, 3, 3) and share.same.equal(expected.same) for share in shares)
    for batches in (whole, *parts):
        batches.close()


def test_expected_recall_is_the_mean_over_all_draws():
    """Against every draw of the others, one by one."""
    rng = np.random.default_rng(0)
    captions = [["a", "b"], ["c"], ["d"], ["a", "e"], ["f"], ["g"]]
    distinct = retrieval.distinct_captions(captions)
    assert distinct == ["a", "b", "c", "d", "e", "f", "g"]
    similarities = rng.normal(size=(6, 7))
    for count in (2, 4, 50):
        found, among = retrieval.recall_at_1(similarities, captions, distinct, count)
        drawn = min(count - 1, 5)
        assert among == drawn + 1
        for row, own, value in zip(similarities, captions, found, strict=True):
            others = [row[i] for i, caption in enumerate(distinct) if caption not in own]
            wins = [row[distinct.index(own[0])] > max(some) for some in itertools.combinations(others, drawn)]
            assert value == pytest.approx(np.mean(wins), abs=1e-12)
    equal, _ = retrieval.recall_at_1(np.zeros((6, 7)), captions, distinct, 4)
    assert not equal.any()


def test_killed_training_goes_on_to_the_same_weights(tmp_path, records, process_group):
    own = config(steps=24, validate_every=7)
    whole = train(tmp_path / "whole", records, own)
    with pytest.raises(corpora.Killed):
        train(tmp_path / "cut", records, own, progress=corpora.KilledAt(18))
    cut = train(tmp_path / "cut", records, own)
    for name in ("scorer/0/model.safetensors", "scorer/0/tokenizer.json", "scorer.json"):
        assert storage.sha256(whole.file(name)) == storage.sha256(cut.file(name)), name


def test_siglip_and_a_pretrained_start(tmp_path, records, process_group):
    first = train(tmp_path / "first", records, config(loss="siglip", batch=4, steps=120))
    metrics = storage.load_json(str(tmp_path / "first" / "state" / "metrics.json"))
    assert metrics["recall_at_1"] > 0.7
    weights = load_file(first.file("scorer", "0", "model.safetensors"))
    assert weights["logit_bias"].shape == (1,)
    folder = first.file("scorer", "0")
    fields = {name: value for name, value in SMALL.items() if name != "model"}
    taken = train(
        tmp_path / "as_it_is", records, stage.Config.model_validate({**fields, "pretrained": folder, "steps": 0})
    )
    again = load_file(taken.file("scorer", "0", "model.safetensors"))
    assert again.keys() == weights.keys()
    for key, value in again.items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)
    kept = storage.load_json(str(tmp_path / "as_it_is" / "state" / "metrics.json"))
    assert kept["recall_at_1"] == metrics["recall_at_1"]


def test_a_siglip_of_transformers_is_trained_further_and_written_back(tmp_path, records, process_group):
    """Its pad token is its tokenizer's; pictures that are no squares are squeezed."""
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil as SiglipImageProcessor

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    told = json.loads(stage._words(config(), records))
    size = 1 + max(token["id"] for token in told["added_tokens"])
    words = {"vocab_size": size, "max_position_embeddings": 9, "bos_token_id": None, "eos_token_id": None}
    pictures = {**shape, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    theirs = SiglipModel(SiglipConfig(text_config={**shape, **words}, vision_config=pictures))
    theirs.save_pretrained(tmp_path / "start")
    (tmp_path / "start" / "tokenizer.json").write_text(json.dumps(told))
    (tmp_path / "start" / "tokenizer_config.json").write_text('{"pad_token": {"content": "<pad>"}}')
    start = {name: value for name, value in SMALL.items() if name != "model"} | {"pretrained": str(tmp_path / "start")}
    made = {}
    for steps in (0, 60):
        changed = stage.Config.model_validate({**start, "steps": steps, "loss": "siglip", "folds": 1})
        stage.check(changed, {})
        made[steps] = train(tmp_path / str(steps), records, changed).file("scorer", "0")
    model = SiglipModel.from_pretrained(made[0]).eval()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)
    model = SiglipModel.from_pretrained(made[60]).eval()
    assert not torch.equal(model.vision_model.head.probe, theirs.vision_model.head.probe)
    assert 0 < abs(model.logit_scale.item() - theirs.logit_scale.item()) < 0.5  # goes on from what it was
    tokens = PreTrainedTokenizerFast(tokenizer_file=f"{made[60]}/tokenizer.json", pad_token="<pad>")
    captions = ["a red square", "white", "a green blue square that is cut"]
    ids = tokens(captions, return_tensors="pt", padding="max_length", max_length=9, truncation=True)["input_ids"]
    picture = np.random.default_rng(0).integers(0, 256, (40, 31, 3), np.uint8)
    pixels = SiglipImageProcessor(size={"height": 16, "width": 16}, resample=3)(picture, return_tensors="pt")
    mine = load_dual_encoder(made[60], "scorer")
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels["pixel_values"])
    unit = [torch.nn.functional.normalize(rows, dim=-1) for rows in (mine.texts(captions), mine.pictures([picture]))]
    torch.testing.assert_close(unit[0], out.text_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unit[1], out.image_embeds, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"batch": 9, "workers": {"count": 2}}, "batch"),
        ({"workers": {"count": 1, "accumulate": 2}}, "workers.accumulate"),
        ({"steps": 0}, "steps"),
        ({"pretrained": "x"}, "model"),
        ({"loss": "cosine"}, "loss"),
    ],
)
def test_configs_that_cannot_be(fields, field):
    with pytest.raises(ValidationError, match=field.replace(".", r"\.")):
        config(**fields)


def test_what_cannot_fit_is_told_before_anything_starts(tmp_path):
    class Texts:
        kinds = ("text",)

    with pytest.raises(InputError, match="images"):
        stage.check(config(), {"records": Texts()})
    fields = {name: value for name, value in SMALL.items() if name != "model"}
    missing = stage.Config.model_validate({**fields, "pretrained": str(tmp_path)})
    with pytest.raises(InputError) as error:
        stage.check(missing, {})
    assert error.value.field == "pretrained"
    with pytest.raises(InputError):
        list(stage.check_counts(config(), {}, {"records_train_image": 0}))
    assert "fewer" in next(iter(stage.check_counts(config(), {}, {"records_train_image": 3})))


def _rank(rank: int, ranks: int, folder: str, records, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store-{ranks}", rank=rank, world_size=ranks)
    from omniloom.stages.scorer.worker import train_worker

    for name, fields in RUNS.items():
        own = config(batch=16, steps=6, workers={"count": {"min": 1, "max": 4}, "log_every": 1}, **fields)
        work = Path(folder, f"{name}-{ranks}")
        train_worker(job(work, records, own))
    dist.destroy_process_group()


RUNS = {
    "clip": {"engine": {"zero_stage": 1}},
    "siglip": {"loss": "siglip", "engine": {"zero_stage": 0}},
    "zero2": {"engine": {"zero_stage": 2, "ema_decay": 0.5}},
    "zero3": {"engine": {"zero_stage": 3}, "folds": 2},
}


@pytest.mark.slow
def test_ranks_and_zero_do_not_change_what_is_trained(tmp_path, records):
    """On one rank, and on three that divide 16 pairs unevenly: every pair is held against those of all ranks."""
    for ranks in (1, 3):
        torch.multiprocessing.spawn(_rank, (ranks, str(tmp_path), records, sys.path), nprocs=ranks)
    for name in RUNS:
        one, three = (history.load(str(tmp_path / f"{name}-{ranks}/output/report/history.jsonl")) for ranks in (1, 3))
        assert len(one) == len(three) >= 6
        for a, b in zip(one, three, strict=True):
            for key in (key for key in a if key.endswith(("loss", "grad_norm", "scale", "recall_at_1"))):
                assert b[key] == pytest.approx(a[key], rel=2e-3, abs=2e-4), f"{name}: {key} at {a['step']}"
        files = [load_file(tmp_path / f"{name}-{ranks}/output/scorer/0/model.safetensors") for ranks in (1, 3)]
        for key, value in files[0].items():
            torch.testing.assert_close(files[1][key], value, rtol=1e-2, atol=1e-3, msg=f"{name}: {key}")
