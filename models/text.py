"""Text to token ids and back. In: strings. Out: ids of a byte-level BPE, the `tokenizers` library behind it
(imported when first needed; without it `byte_bpe` reads what we train), so that any text comes back unchanged.

The special tokens frame documents and pictures. They are never parsed from text: a user's "<eos>" becomes
ordinary tokens that decode to the same five characters. In the tokenizer of a Llama, Mistral or Qwen, <bos> and <eos>
are its own tokens for the beginning and the end of a text, as its checkpoint's config names them; Qwen has one for
both. Other tokens that a tokenizer adds to its vocabulary without calling them special, such as Qwen's `<tool_call>`,
are read from text, as `transformers` reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omniloom.models.byte_bpe import from_str

SPECIALS = ["<pad>", "<bos>", "<eos>", "<boi>", "<bov>", "<eoi>"]
_BYTES = 256
_LONGEST = 64  # bytes of a learned token: a line of 10,000 dashes is no word
_KEY = "omniloom_specials"  # in the JSON where the ids do not follow from the names
# What others call them, by the first that a tokenizer has: Llama 1, 2 and Mistral; Llama 3; Qwen. Of pictures:
# Chameleon, Emu3, Janus.
_ALIASES = {
    "<bos>": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "<eos>": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "<boi>": ("<racm3:break>", "<|image start|>", "<begin_of_image>"),
    "<eoi>": ("<eoss>", "<|image end|>", "<end_of_image>"),
}


class TextTokenizer:
    """A tokenizer with `SPECIALS`, whose ids by name are `specials`, and `vocab_size`, one more than its highest id.
    `added` are the ids of those that it lacked before. Made by `train` or `load`."""

    def __init__(self, tokenizer: Any, own: Mapping[str, int] | None = None):
        """`own`: the ids of specials that the tokenizer has under names of its own."""
        usual = {token: _usual_name(tokenizer, token) for token in SPECIALS}
        names = usual | {f"<{name}>": tokenizer.id_to_token(i) for name, i in (own or {}).items()}
        missing = [name for name in dict.fromkeys(names.values()) if tokenizer.token_to_id(name) is None]
        # Those that it has, too: a token that is added but not special would be parsed out of user text.
        tokenizer.add_special_tokens(list(dict.fromkeys(names.values())))
        # A file may ask for either, which would cut texts or lengthen them.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Not part of the saved JSON: without it the library would parse special tokens out of user text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._own = [token.strip("<>") for token, name in names.items() if name != usual[token]]
        self.specials: dict[str, int] = {t.strip("<>"): tokenizer.token_to_id(name) for t, name in names.items()}
        self.added = frozenset(tokenizer.token_to_id(name) for name in missing)
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
            max_token_length=_LONGEST,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, source: str | Path, checkpoint: Mapping[str, Any] | None = None) -> TextTokenizer:
        """From a local `tokenizer.json` or the JSON itself. Special tokens that it lacks, under other names too, are
        added behind its vocabulary. ValueError where the file is missing or is no tokenizer.

        checkpoint  what the config.json and tokenizer_config.json beside it say: `bos_token_id`, `eos_token_id` (of
                    several the first), else `bos_token`, `eos_token`, as far as they name added tokens of this
                    tokenizer. They go before names that we know.
        """
        text, name = str(source), "the given JSON"
        if not text.lstrip().startswith("{"):
            name = text
            try:
                text = Path(source).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{name}: cannot read a tokenizer: {error}") from error
        try:
            document = json.loads(text)
            own = document.pop(_KEY, None)
            tokenizer = from_str(json.dumps(document) if own is not None else text)
            return cls(tokenizer, _own_specials(tokenizer, checkpoint or {}) if own is None else own)
        except Exception as error:  # the library raises a bare Exception for any malformed document
            raise ValueError(f"{name}: not a tokenizer of the tokenizers library: {error}") from error

    def to_json(self) -> str:
        """The tokenizer as one JSON document, which `load` takes; keys sorted, so equal tokenizers give equal
        text."""
        document = json.loads(self._tokenizer.to_str())
        if self._own:
            document[_KEY] = {name: self.specials[name] for name in self._own}
        return json.dumps(document, sort_keys=True, ensure_ascii=False)

    @property
    def digest(self) -> str:
        """sha256 of `to_json()`, in hexadecimal: what pretokenized shards are sealed with."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    def token(self, number: int) -> str:
        """The tokenizer's own name of an id."""
        return self._tokenizer.id_to_token(number)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no special tokens added or parsed. Characters that UTF-8 cannot hold (lone
        surrogates) become "?"."""
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on as many threads as RAYON_NUM_THREADS says, by default one a core."""
        clean = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]
        # "Fast" leaves out where in the text each token stands; the ids are the same.
        return [e.ids for e in self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out. Bytes that are not UTF-8, as a cut character leaves, become
        U+FFFD."""
        return self._tokenizer.decode([i for i in map(int, ids) if i not in self._hidden], skip_special_tokens=False)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Text of `ids` as it stands behind `prompt`: some tokenizers (Llama 1 and 2, Mistral) drop the space before
        the first word of whatever they decode, which inside a text belongs to it."""
        before = self.decode(prompt)
        whole = self.decode([*prompt, *ids])
        return whole[len(os.path.commonprefix([before, whole])) :]


def _usual_name(tokenizer: Any, token: str) -> str:
    """The tokenizer's name of one of `SPECIALS`, or the name to add it under."""
    added = {known.content: known.special for known in tokenizer.get_added_tokens_decoder().values()}
    for name in (token, *_ALIASES.get(token, ())):
        if added.get(name) or name == token and token in added:
            return name
    # A word of the vocabulary that is spelt like it is a word that text may hold.
    return token if tokenizer.token_to_id(token) is None else f"<|{token.strip('<>')}|omniloom|>"


def _own_specials(tokenizer: Any, checkpoint: Mapping[str, Any]) -> dict[str, int]:
    """The ids of <bos> and <eos> that a checkpoint's configs name; those of ordinary words are a config's defaults, not
    the checkpoint's."""
    added = tokenizer.get_added_tokens_decoder()
    found = {}
    for name in ("bos", "eos"):
        number, token = checkpoint.get(f"{name}_token_id"), checkpoint.get(f"{name}_token")
        number = number[0] if isinstance(number, list) and number else number
        token = token.get("content") if isinstance(token, Mapping) else token
        by_name = tokenizer.token_to_id(token) if isinstance(token, str) else None
        for candidate in (number, by_name):
            if isinstance(candidate, int) and not isinstance(candidate, bool) and candidate in added:
                found[name] = candidate
                break
    return found
