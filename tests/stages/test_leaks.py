"""Held-out texts that the train split has too: whole, changed a little, in part, and not at all."""

from __future__ import annotations

import corpora
import numpy as np
import pytest
from test_evaluation import evaluation, inputs  # noqa: F401

from omniloom.stages.data.media.sketches import text_runs
from omniloom.stages.evaluate.leaks import leaked_texts, shares_found

WORDS = np.array("the of a river stone light under green walks seven house and then water never speaks".split())


def written(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(WORDS, count))


def test_shares_of_runs_against_sets_of_strings():
    rng = np.random.default_rng(0)
    texts, others = [[written(rng, 30) for _ in range(20)] for _ in range(2)]
    others += [texts[0], texts[1][: len(texts[1]) // 2], f"{texts[2]} and {texts[3]}"]
    grams = lambda text: [text[at : at + 12] for at in range(len(text) - 11)]  # noqa: E731
    letters = ["".join(text.split()) for text in texts]
    known = {gram for text in others for gram in grams("".join(text.split()))}
    expected = [np.mean([gram in known for gram in grams(text)]) for text in letters]
    found = shares_found([text_runs(text, 12) for text in texts], (text_runs(text, 12) for text in others))
    assert found == pytest.approx(expected) and found[0] == found[2] == found[3] == 1.0
    assert shares_found([text_runs("", 12)], iter([])) == [0.0]


def changed(text: str) -> str:
    """Other case, marks and spaces, and a word in forty another one."""
    words = text.upper().split()
    words[::40] = ["something"] * len(words[::40])
    return ",  ".join(words)


@pytest.mark.parametrize(
    "again, share",
    [
        (lambda text: None, 0.0),
        (lambda text: text, 0.5),
        (changed, 0.5),
        (lambda text: "Before it " + text + " and after it", 0.5),
        (lambda text: " ".join(text.split()[:40]), 0.0),  # a third of it
        (lambda text: " ".join(sorted(text.split())), 0.0),  # its words, not in a row
    ],
)
def test_held_out_texts_that_the_train_split_has_too(inputs, tmp_path, again, share):  # noqa: F811
    text, rng = corpora.text_tokenizer(), np.random.default_rng(5)
    rows = {
        split: corpora.token_rows(text, rng, images=4, videos=0, texts=count, documents=0)
        for split, count in (("train", 12), ("validation", 8))
    }
    said = {split: [written(rng, 120) for row in held if row["kind"] == "text"] for split, held in rows.items()}
    said["train"][:4] = [again(text) or other for text, other in zip(said["validation"], said["train"])][:4]
    for split, held in rows.items():
        for row, words in zip([row for row in held if row["kind"] == "text"], said[split], strict=True):
            row["id"] = f"{split} {row['id']}"
            row["segments"][0]["ids"] = text.encode(words)
    tokens = corpora.pretokenize(tmp_path / "tokens", {name: [held] for name, held in rows.items()}, text)
    found = evaluation(inputs | {"tokens": tokens}, texts=100)
    leaked_texts(found)
    assert found.metrics["leaked_texts"] == share and len(found.items["leaked_texts"].ids) == 8
