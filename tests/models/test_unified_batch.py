"""Packing: masks against a naive reference, labels, counts, and what packing must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from visual_batches import is_target, is_visual, picture

from omniloom.models.unified.batch import IGNORE, Segment, collate, document_length
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.layouts import plain_text, text_to_visual, visual_to_text
from omniloom.models.unified.mask import dense_mask
from omniloom.models.unified.positions import positions

CONFIG = UnifiedConfig(vocab_size=40, latent_dim=3, width=24, layers=2, heads=2)
S = CONFIG.specials


segments = st.one_of(
    st.tuples(st.just("text"), st.integers(1, 6), st.booleans()),
    st.tuples(st.just("visual"), st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)), st.booleans()),
)


def build(described: list[tuple]) -> list[Segment]:
    return [
        Segment("text", ids=np.arange(6, 6 + size), loss=loss)
        if kind == "text"
        else Segment("visual", latents=picture(size), grid=size, loss=loss)
        for kind, size, loss in described
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(segments, min_size=1, max_size=4), min_size=0, max_size=3))
def test_row_against_a_naive_reference(described: list[list[tuple]]) -> None:
    documents = [build(document) for document in described]
    length = sum(map(document_length, documents)) + 3
    batch = collate([documents, []], length, CONFIG)
    # One token at a time: (document, visual segment or None, id, asked for in text, is target).
    tokens: list[tuple] = []
    visual_number = 0
    for d, document in enumerate(documents):
        for before, s in zip([None, *document], document):
            if s.kind == "text":
                tokens += [(d, None, int(i), s.loss, False) for i in s.ids]
            else:
                silent = before is not None and before.kind == "text" and not before.loss
                tokens.append((d, None, S.bov if s.grid[0] > 1 else S.boi, s.loss and not silent, False))
                tokens += [(d, visual_number, S.pad, False, s.loss) for _ in s.latents]
                tokens.append((d, None, S.eoi, False, False))
                visual_number += 1
    mask = dense_mask(batch.start, batch.end)[0, 0]
    for i in range(length):
        for j in range(length):
            if i >= len(tokens) or j >= len(tokens):
                sees = i == j
            else:
                same = tokens[i][1] is not None and tokens[i][1] == tokens[j][1]
                sees = tokens[i][0] == tokens[j][0] and (j <= i or same)
            assert mask[i, j] == sees, (i, j)
    for p in range(length):
        label = IGNORE
        if p + 1 < len(tokens) and tokens[p][0] == tokens[p + 1][0] and tokens[p + 1][3]:
            label = tokens[p + 1][2]
        assert batch.labels[0, p] == label
    assert is_visual(batch)[0, : len(tokens)].tolist() == [t[1] is not None for t in tokens]
    assert is_target(batch)[0, : len(tokens)].tolist() == [t[4] for t in tokens]
    assert batch.ids[0, : len(tokens)].tolist() == [t[2] for t in tokens]
    assert batch.tokens["padding"] == 2 * length - len(tokens)
    assert batch.tokens["text"] + batch.tokens["visual"] == len(tokens)
    assert batch.targets["text"] == len(batch.label_index) == int((batch.labels != IGNORE).sum())
    assert torch.equal(dense_mask(batch.start, batch.end)[1, 0], torch.eye(length, dtype=torch.bool))


def test_layouts_and_positions() -> None:
    caption = [10, 11]
    document = text_to_visual(caption, picture((1, 2, 2)), (1, 2, 2), S)
    batch = collate(
        [[document, visual_to_text(picture((1, 2, 2)), (1, 2, 2), caption, S), plain_text([7], S)]],
        32,
        CONFIG,
    )
    assert batch.ids[0, :10].tolist() == [S.bos, 10, 11, S.boi, 0, 0, 0, 0, S.eoi, S.eos]
    assert batch.labels[0, :10].tolist() == [10, 11, S.boi, -100, -100, -100, -100, -100, S.eos, -100]
    assert batch.labels[0, 10:20].tolist() == [-100] * 6 + [10, 11, S.eos, -100]
    alone = collate([[text_to_visual(caption, picture((1, 2, 2)), (1, 2, 2), S, caption_loss=False)]], 10, CONFIG)
    assert alone.targets == {"text": 0, "latent_diffusion": 4, "next_latent": 0} and torch.equal(
        alone.ids[0], batch.ids[0, :10]
    )
    segs = [("text", 4), ("visual", (1, 2, 2)), ("text", 2)]
    assert torch.equal(batch.positions[0, :10], positions("tie_v2", segs, axes=3))
    assert batch.num_segments == 2 and [s[0] for s in batch.tasks["latent_diffusion"].segments] == [0]
    assert batch.document_index[0, [0, 9, 10, 19, 20, 22, 23]].tolist() == [0, 0, 1, 1, 2, 2, -1]


def test_a_picture_behind_an_empty_text_asks_nothing_of_the_document_before() -> None:
    """Far enough along the row that positions are no small integers."""
    empty = Segment("text", ids=np.empty(0, np.int64))
    drawn = Segment("visual", latents=picture((1, 1, 2)), grid=(1, 1, 2))
    batch = collate([[plain_text(range(6, 36), S)] * 10 + [[empty, drawn]]], 330, CONFIG)
    assert batch.labels[0, 319] == IGNORE and batch.targets["text"] == 10 * 31


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="row 0, document 1: needs 5 places, 3 of 8 are left"):
        collate([[plain_text([7, 7, 7], S)] * 2], 8, CONFIG)
    with pytest.raises(ValueError, match="row 1.*ids outside 0..39"):
        collate([[], [plain_text([40], S)]], 8, CONFIG)
    with pytest.raises(ValueError, match="5 channels, latent_dim is 3"):
        collate([[text_to_visual([], picture((1, 1, 1), channels=5), (1, 1, 1), S)]], 8, CONFIG)
    with pytest.raises(ValueError, match="Segment.latents"):
        Segment("visual", latents=picture((1, 2, 2)), grid=(1, 2, 3))
    with pytest.raises(ValueError, match="Segment.grid"):
        Segment("visual", latents=picture((1, 2, 2)))
    with pytest.raises(ValueError, match="Segment.ids"):
        Segment("text")
    with pytest.raises(ValueError, match="Segment.weight: expected a number not below 0, got -1"):
        Segment("text", ids=np.array([7]), weight=-1)
    with pytest.raises(ValueError, match="Segment.kind"):
        Segment("sound")


def test_a_segment_says_what_it_has_not() -> None:
    text, drawn = Segment("text", ids=[5, 6]), Segment("visual", latents=picture((1, 2, 3)), grid=[1, 2, 3])
    assert text.text_ids.tolist() == [5, 6] and text.length == 2
    assert (drawn.visual_grid, drawn.row.name, drawn.time_cap, drawn.length) == ((1, 2, 3), "latent_diffusion", 1.0, 8)
    for segment, kind, names in (
        (text, "text", {"visual_grid": "grid", "row": "objective", "time_cap": "max_time", "values": "objective"}),
        (drawn, "visual", {"text_ids": "ids"}),
    ):
        for asked, field in names.items():
            with pytest.raises(ValueError, match=rf"^Segment.{field}: a {kind} segment has none$"):
                getattr(segment, asked)
