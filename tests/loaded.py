"""What a training's loader gave out, told as it is given."""

from __future__ import annotations

from omniloom.stages.train.rows import RowLoader

Given = tuple[int, int, str]  # step, row, path of a document


def note_what_is_given(patch, given: list[Given]) -> None:
    """From here on each document that a `RowLoader` gives to a step is put into the list."""
    at = RowLoader.at

    def noted(loader: RowLoader, step: int):
        batches = at(loader, step)
        for row in loader.taken(step):
            given.extend((step, row.number, loader.tokens.origin(p.index)["path"]) for p in row.documents)
        return batches

    patch.setattr(RowLoader, "at", noted)
