"""Text to token ids and back. In: strings. Out: ids of a byte-level BPE, the `tokenizers` library behind it
(imported when first needed), so that any text comes back unchanged.

The special tokens frame documents and pictures. They are never parsed from text: a user's "<eos>" becomes
ordinary tokens that decode to the same five characters. In the tokenizer of a Llama, Mistral or Qwen, <bos> and <eos>
are its own tokens for the beginning and the end of a text; Qwen has one for both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SPECIALS = ["<pad>", "<bos>", "<eos>", "<boi>", "<bov>", "<eoi>"]
_BYTES = 256
# What others call them, by the first that a tokenizer has: Llama 1, 2 and Mistral; Llama 3; Qwen.
_ALIASES = {
    "<bos>": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "<eos>": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
}


class TextTokenizer:
    """A tokenizer with `SPECIALS`, whose ids by name are `specials`, and `vocab_size`, one more than its highest id.
    Made by `train` or `load`."""

    def __init__(self, tokenizer: Any):
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        names = {}
        for token in SPECIALS:
            others = [alias for alias in _ALIASES.get(token, ()) if alias in special]
            known = tokenizer.token_to_id(token) is not None or not others
            names[token] = token if known else others[0]
        missing = [token for token in names.values() if tokenizer.token_to_id(token) is None]
        if missing:
            tokenizer.add_special_tokens(missing)
        # A file may ask for either, which would cut texts or lengthen them.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Not part of the saved JSON: without it the library would parse special tokens out of user text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.specials: dict[str, int] = {t.strip("<>"): tokenizer.token_to_id(name) for t, name in names.items()}
        self.vocab_size: int = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self._hidden = set(self.specials.values())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        """Learn a byte-level BPE. The specials take ids 0 to 5, single bytes the next 256, so `vocab_size`
        below 262 is a ValueError; a small corpus may give fewer tokens than asked for."""
        if vocab_size < _BYTES + len(SPECIALS):
            raise ValueError(f"vocab_size: expected at least {_BYTES + len(SPECIALS)}, got {vocab_size}")
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIALS,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, source: str | Path) -> TextTokenizer:
        """From a local `tokenizer.json` or the JSON itself. Special tokens that it lacks, under other names too, are
        added behind its vocabulary. ValueError where the file is missing or is no tokenizer."""
        from tokenizers import Tokenizer

        text, name = str(source), "the given JSON"
        if not text.lstrip().startswith("{"):
            name = text
            try:
                text = Path(source).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{name}: cannot read a tokenizer: {error}") from error
        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # the library raises a bare Exception for any malformed document
            raise ValueError(f"{name}: not a tokenizer of the tokenizers library: {error}") from error

    def to_json(self) -> str:
        """The tokenizer as one JSON document, which `load` takes; keys sorted, so equal tokenizers give equal
        text."""
        return json.dumps(json.loads(self._tokenizer.to_str()), sort_keys=True, ensure_ascii=False)

    @property
    def digest(self) -> str:
        """sha256 of `to_json()`, in hexadecimal: what pretokenized shards are sealed with."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no special tokens added or parsed. Characters that UTF-8 cannot hold (lone
        surrogates) become "?"."""
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        clean = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]
        return [e.ids for e in self._tokenizer.encode_batch(clean, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out. Bytes that are not UTF-8, as a cut character leaves, become
        U+FFFD."""
        return self._tokenizer.decode(
            [i for i in map(int, ids) if i not in self._hidden], skip_special_tokens=False
        )
