"""Both loaders of training: what `infra.training.loop.Loader` promises of positions, whichever stage it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import corpora
import numpy as np
import pytest
import torch
from torch import Tensor

from omniloom.infra.training.loop import Loader
from omniloom.models.unified.batch import Batch
from omniloom.stages.data.clips import ClipBatches
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.tokenizer.config import DataConfig
from omniloom.stages.train.config import Config, unified_config, visual_sizes
from omniloom.stages.train.rows import RowLoader


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Callable[[int], Loader]:
    records = corpora.ingest(tmp_path_factory.mktemp("records") / "ingest")
    data = {"kinds": ["image", "video"], "sizes": [16], "frames": 5, "image_batch": 6, "video_batch": 4, "flip": True}
    return lambda rank: ClipBatches(records, "train", DataConfig.model_validate(data), 8, 3, rank, 2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Callable[[int], Loader]:
    text, rng = corpora.text_tokenizer(), np.random.default_rng(0)
    documents = corpora.token_rows(text, rng, images=30, videos=6, texts=8, documents=6)
    artifact = corpora.pretokenize(tmp_path_factory.mktemp("tokens") / "tokens", {"train": [documents]}, text)
    tokens = TokenSet(artifact, "train")
    # 6 rows a step from windows of 4: positions lie inside windows.
    settings = {"packing": {"length": 64, "window_rows": 4}, "batch_rows": 6, "workers": {"count": 2}}
    config = Config.model_validate({"model": {"width": 32, "layers": 2, "heads": 2}, **settings})
    model = unified_config(config, tokens.facts["vocab_size"], visual_sizes(tokens.facts), tokens.facts["specials"])
    return lambda rank, draw=None: RowLoader(tokens, model, config, rank, 2, draw=draw)


@pytest.fixture(params=["clips", "rows"])
def loader(request) -> Callable[[int], Loader]:
    return request.getfixturevalue(request.param)


def values(batch: Any) -> list:
    """A batch as a list that `==` compares value by value."""
    if isinstance(batch, Tensor):
        return [batch.tolist()]
    if isinstance(batch, Batch):
        return [(name, value.tolist()) for name, value in sorted(vars(batch).items()) if isinstance(value, Tensor)]
    return [part for each in batch for part in values(each)] if isinstance(batch, list | tuple) else [batch]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("taken", [1, 4])
def test_a_loader_that_seeks_gives_what_an_unbroken_one_goes_on_with(loader, rank, taken):
    unbroken = loader(rank)
    first = values(unbroken.at(0))
    for step in range(1, taken):
        unbroken.at(step)
    kept = json.loads(
        json.dumps({"units": 7.0, "last": {}, **unbroken.position})
    )  # as a checkpoint's manifest holds it
    expected = [values(unbroken.at(step)) for step in range(taken, taken + 3)]
    fresh = loader(rank)
    fresh.seek(kept)
    assert fresh.position == {name: kept[name] for name in fresh.position}
    assert [values(fresh.at(step)) for step in range(taken, taken + 3)] == expected
    assert fresh.position == unbroken.position and first not in expected
    unbroken.close()
    fresh.close()


def test_a_position_is_of_what_was_taken_not_of_what_is_loaded_ahead(loader):
    """What a checkpoint keeps after a step must not skip the batch that the background has made already."""
    ahead = loader(0)
    ahead.at(0)
    ahead.at(1)
    kept, described = dict(ahead.position), ahead.describe(1)
    ahead._ahead[1].result()
    assert ahead.position == kept and ahead.describe(1) == described
    ahead.close()


def test_ranks_take_different_parts_of_a_step_and_stand_at_one_position(loader):
    parts = [loader(rank) for rank in range(2)]
    batches = [values(part.at(0)) for part in parts]
    assert batches[0] != batches[1] and parts[0].position == parts[1].position
    for part in parts:
        part.close()


def test_a_loader_draws_for_each_of_its_passes_by_the_seeds_of_their_rows(rows):
    plain, drawing = rows(1), rows(1, lambda batch, seeds: {"seeds": (torch.tensor(seeds), batch.ids.sum())})
    for step in range(3):
        for (batch, seeds), (same, _) in zip(drawing.at(step), plain.at(step), strict=True):
            of_seeds, of_ids = batch.drawn["seeds"]
            assert of_seeds.tolist() == seeds and of_ids == same.ids.sum() and same.drawn == {}
    drawing.close()
    plain.close()
