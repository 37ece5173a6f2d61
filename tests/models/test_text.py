"""The text tokenizer: any text comes back, special tokens are never read from text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniloom.models.text import SPECIALS, TextTokenizer

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


def metaspace(scheme: str) -> str:
    """Tokenizers that put a space before the first word and drop it from what they decode, as SentencePiece does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = ["<unk>", "▁hello", "▁world", "▁this", "▁is", "▁", ",", "."]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    if scheme == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    else:  # Llama 2's
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made.to_str()


@pytest.mark.parametrize("scheme", ["metaspace", "llama 2"])
def test_a_continuation_keeps_the_space_before_its_first_word(scheme: str) -> None:
    tokenizer = TextTokenizer.load(metaspace(scheme))
    prompt, rest = tokenizer.encode("hello world"), tokenizer.encode("hello world this is")[2:]
    assert len(prompt) == 2 and len(rest) == 2 and tokenizer.decode(rest) == "this is"
    assert tokenizer.continuation(prompt, rest) == " this is"
    assert tokenizer.continuation([], prompt) == "hello world"  # a text that begins there has none
    assert tokenizer.continuation(prompt, []) == ""


@given(st.text(min_size=1), st.data())
def test_prompt_and_continuation_are_the_text(text: str, data) -> None:
    ids = _TRAINED.encode(text)
    at = data.draw(st.integers(0, len(ids)))
    cut = _TRAINED.decode(ids[:at])
    if "\N{REPLACEMENT CHARACTER}" not in cut:  # the prompt is a text of its own
        assert cut + _TRAINED.continuation(ids[:at], ids[at:]) == text


def word_level(added: dict[str, bool], words: tuple[str, ...] = ()) -> str:
    """A tokenizer with added tokens, name -> whether they are special, behind [UNK], one, two, `words`."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "one", "two", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, special in added.items():
        made.add_tokens([AddedToken(name, special=special)])
    return made.to_str()


def test_the_checkpoints_config_names_the_beginning_and_the_end() -> None:
    names = {"<|endoftext|>": True, "<begin>": True, "<end>": True}  # ids 3, 4, 5
    document = word_level(names)
    by_name = TextTokenizer.load(document).specials
    assert by_name["bos"] == by_name["eos"] == 3
    for checkpoint in (
        {"bos_token_id": 4, "eos_token_id": 5},
        {"bos_token_id": 4, "eos_token_id": [5, 3]},
        {"bos_token": "<begin>", "eos_token": {"content": "<end>", "special": True}},
        {"bos_token": "<|endoftext|>", "bos_token_id": 4, "eos_token_id": 5},
    ):
        loaded = TextTokenizer.load(document, checkpoint)
        assert (loaded.specials["bos"], loaded.specials["eos"]) == (4, 5)
        assert loaded.added == {loaded.specials[name] for name in ("pad", "boi", "bov", "eoi")} == {6, 7, 8, 9}
        again = TextTokenizer.load(loaded.to_json())
        assert again.specials == loaded.specials and again.digest == loaded.digest and not again.added
        assert not {4, 5} & set(loaded.encode("one <begin> <end>"))
        assert loaded.decode([4, 1, 5]) == "one"
    # 1 and 2 are what configs say that nobody filled in: here they are words.
    assert TextTokenizer.load(document, {"bos_token_id": 1, "eos_token_id": 2}).specials == by_name
    assert TextTokenizer.load(document, {"bos_token_id": True, "eos_token_id": 99}).specials == by_name


@pytest.mark.parametrize(
    "document",
    [
        word_level({"<bos>": False, "<eos>": False}),
        word_level({}, words=("<bos>", "<eos>", "<pad>")),
        word_level({"<s>": False, "</s>": False}),
    ],
    ids=["added", "words", "aliases"],
)
def test_no_text_makes_a_special_token(document: str) -> None:
    for loaded in (made := TextTokenizer.load(document), TextTokenizer.load(made.to_json())):
        assert loaded.specials == made.specials and len(set(loaded.specials.values())) == len(SPECIALS)
        for text in ("<bos>", "one <eos> two", " ".join(SPECIALS), "<s> </s>"):
            assert not set(loaded.encode(text)) & set(loaded.specials.values())


def test_tokens_that_are_added_but_not_special_are_read_as_transformers_reads_them() -> None:
    import transformers
    from tokenizers import Tokenizer

    document = word_level({"<tool_call>": False, "<|endoftext|>": True})
    loaded = TextTokenizer.load(document)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(document))
    text = "one <tool_call> two<tool_call>one"
    assert loaded.encode(text) == reference(text, add_special_tokens=False)["input_ids"] == [1, 3, 2, 3, 1]
    assert loaded.decode([1, 3, 2]) == reference.decode([1, 3, 2])


def test_no_learned_token_is_longer_than_a_word() -> None:
    trained = TextTokenizer.train(["=" * 20000, "7" * 400 + "\n", "再帰" * 300] * 3, 800)
    for text in ("=" * 1000, "7" * 400, "再帰" * 100):
        ids = trained.encode(text)
        assert trained.decode(ids) == text
        assert max(len(trained.decode([i]).encode()) for i in ids) <= 64
