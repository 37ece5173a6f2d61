"""The text tokenizer: any text comes back, special tokens are never read from text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text import SPECIALS, TextTokenizer

CORPUS = ["a handwritten seven", "a handwritten three moving left", "The <eos> of <boi> and <eos>.\n"] * 50


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CORPUS, 320)


def test_specials_come_first_and_words_are_learned(tokenizer: TextTokenizer) -> None:
    assert tokenizer.specials == {"pad": 0, "bos": 1, "eos": 2, "boi": 3, "bov": 4, "eoi": 5}
    assert 262 < tokenizer.vocab_size <= 320
    assert len(tokenizer.encode("a handwritten seven")) < 8


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    tokenizer = _TRAINED
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.specials.values())
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


_TRAINED = TextTokenizer.train(CORPUS, 300)


@pytest.mark.parametrize("special", SPECIALS)
def test_a_special_token_in_text_is_text(tokenizer: TextTokenizer, special: str) -> None:
    for text in (special, f"x{special}y", special * 3, f" {special} "):
        for made in (tokenizer, TextTokenizer.load(tokenizer.to_json())):
            ids = made.encode(text)
            assert not set(ids) & set(made.specials.values())
            assert made.decode(ids) == text
            assert made.encode_batch([text]) == [ids]


def test_specials_are_left_out_of_decoded_text(tokenizer: TextTokenizer) -> None:
    s = tokenizer.specials
    assert tokenizer.decode([s["bos"], *tokenizer.encode("seven"), s["eos"]]) == "seven"


def test_save_load_digest(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    for loaded in (TextTokenizer.load(path), TextTokenizer.load(str(path)), TextTokenizer.train(CORPUS, 320)):
        assert loaded.digest == tokenizer.digest and len(loaded.digest) == 64
        assert loaded.encode("a handwritten three") == tokenizer.encode("a handwritten three")
    assert TextTokenizer.train(CORPUS, 300).digest != tokenizer.digest


def test_a_foreign_tokenizer_gets_the_specials() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    foreign = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    loaded = TextTokenizer.load(foreign.to_str())
    assert loaded.specials["pad"] == 3 and loaded.vocab_size == 9 and loaded.encode("one two") == [1, 2]
    assert TextTokenizer.load(loaded.to_json()).specials == loaded.specials


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        TextTokenizer.train(CORPUS, 261)
    with pytest.raises(ValueError, match="missing.json"):
        TextTokenizer.load(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match="bad.json"):
        TextTokenizer.load(tmp_path / "bad.json")


def test_lone_surrogates_do_not_stop_encoding(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_importing_it_is_cheap() -> None:
    code = "import sys, models.text; assert not {'torch', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
