"""Measures which held-out texts the train split has too, word for word or nearly. In: an `Evaluation`, which gets the
figure. What it means stands in `stages.evaluate.measures`.

Texts are their letters and digits alone (`stages.data.media.sketches`), in runs of `_RUN`, about eight words, as
contamination is usually looked for (PaLM, arXiv 2204.02311, section 8: of eight words). A text counts as leaked where
the train texts have more than `_SHARE` of its runs, wherever they stand; one too short for a run where they have it
whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from omniloom.stages.data.media.sketches import text_runs
from omniloom.stages.data.spread import spread
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.writing import texts_to_read

_RUN, _SHARE = 36, 0.5
_MOST_TOKENS = 20_000_000  # of train texts that are searched, drawn by the seed


def leaked_texts(evaluation: Evaluation) -> None:
    """Of the texts whose bits are counted."""
    chosen = texts_to_read(evaluation)
    train = TokenSet(evaluation.inputs["tokens"], "train")
    if not chosen or not len(train.indices("text")):
        return
    ids = [evaluation.tokens.row(index)["id"] for index in chosen]
    runs = [text_runs(_text(evaluation, evaluation.tokens, index), _RUN) for index in chosen]
    shares = shares_found(runs, _train_runs(evaluation, train))
    known = set(train.table["id"].to_pylist())
    leaked = [item in known or share > _SHARE for item, share in zip(ids, shares, strict=True)]
    evaluation.add("leaked_texts", ids, np.array(leaked, np.float64))


def shares_found(texts: list[np.ndarray], others: Iterator[np.ndarray]) -> list[float]:
    """Of the runs of each text, by their hashes, the share that some of the others have; 0 of a text of none."""
    known, place = np.unique(np.concatenate([*texts, np.zeros(0, np.uint64)]), return_inverse=True)
    found = np.zeros(len(known) + 1, bool)
    for runs in others if len(known) else ():
        at = np.searchsorted(known, runs)
        found[at[known[np.minimum(at, len(known) - 1)] == runs]] = True
    parts = np.split(found[place], np.cumsum([len(runs) for runs in texts])[:-1])
    return [float(part.mean()) if len(part) else 0.0 for part in parts]


def _train_runs(evaluation: Evaluation, train: TokenSet) -> Iterator[np.ndarray]:
    read = 0
    for index in spread(train.table, (), evaluation.config.seed, train.indices("text")).tolist():
        if read >= _MOST_TOKENS:
            return
        read += len(train.document(index)[0].text_ids)
        yield text_runs(_text(evaluation, train, index), _RUN)


def _text(evaluation: Evaluation, tokens: TokenSet, index: int) -> str:
    return evaluation.loom.text.decode(tokens.document(index)[0].text_ids.tolist())
