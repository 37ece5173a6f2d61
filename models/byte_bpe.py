"""A byte-level BPE in plain Python, for where the `tokenizers` library is not installed: a tokenizer.json of the kind
that we train, and of Llama 3's, with the same ids and texts. In: the JSON. Out: what `models.text` asks of a tokenizer.

A text is cut into words by GPT-2's expression, whose classes are Unicode's letters and numbers; each word's bytes are
merged pair by pair, the pair that was learnt first before the others (arXiv 1508.07909).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_SPACES = frozenset("\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(c) for c in range(0x2000, 0x200B)
}
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def _letters() -> dict[int, str]:
    """A printable letter for each byte, as GPT-2 has them."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + number) for number, byte in enumerate(rest)}


_LETTERS = _letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


@dataclass(frozen=True)
class AddedToken:
    content: str
    special: bool


class Encoding:
    def __init__(self, ids: list[int]):
        self.ids = ids


class ByteBPE:
    """ValueError where the JSON is another kind of tokenizer, which needs the library."""

    def __init__(self, text: str):
        document = json.loads(text)
        model = document["model"]
        steps = document.get("pre_tokenizer") or {}
        usual = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        if model.get("type") != "BPE" or document.get("normalizer") or any(steps.get(k) != v for k, v in usual.items()):
            raise ValueError("is no byte-level BPE with GPT-2's words: reading it needs the library `tokenizers`")
        self._document = document
        self._ids: dict[str, int] = dict(model["vocab"])
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._whole = bool(model.get("ignore_merges"))
        self._added = {
            known["id"]: AddedToken(known["content"], known["special"]) for known in document["added_tokens"]
        }
        self._ids |= {known.content: number for number, known in self._added.items()}
        self._tokens = {number: token for token, number in self._ids.items()}
        self.encode_special_tokens = True
        if any(not known.special for known in self._added.values()):
            raise ValueError("has added tokens that are read from text: reading it needs the library `tokenizers`")
        self._word = lru_cache(maxsize=1 << 16)(self._merged)

    # ---- what the library's tokenizer has ----

    def to_str(self) -> str:
        return json.dumps(self._document, ensure_ascii=False)

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def id_to_token(self, number: int) -> str | None:
        return self._tokens.get(number)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return dict(self._ids)

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return dict(self._added)

    def add_special_tokens(self, tokens: Sequence[str]) -> None:
        """Only those that it has: a trained model's tokenizer lacks none."""
        if missing := [token for token in tokens if token not in self._ids]:
            raise ValueError(f"lacks {', '.join(missing)}: adding tokens needs the library `tokenizers`")

    def no_truncation(self) -> None: ...

    def no_padding(self) -> None: ...

    def encode(self, text: str, add_special_tokens: bool = False) -> Encoding:
        return Encoding([number for word in words(text) for number in self._word(word)])

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[Encoding]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """What stands for no byte, such as an added token, is itself."""
        data = bytearray()
        for token in (self._tokens.get(number, "") for number in ids):
            own = all(letter in _BYTES for letter in token)
            data += bytes(_BYTES[letter] for letter in token) if own else token.encode()
        return data.decode("utf-8", errors="replace")

    # ---- one word ----

    def _merged(self, word: str) -> tuple[int, ...]:
        parts = [_LETTERS[byte] for byte in word.encode("utf-8")]
        if self._whole and (number := self._ids.get("".join(parts))) is not None:
            return (number,)
        never = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, never) for pair in zip(parts, parts[1:], strict=False)]
            if (best := min(ranks)) == never:
                break
            left, at, merged = list(parts), 0, []
            while at < len(left):
                if at < len(ranks) and ranks[at] == best:
                    merged.append(left[at] + left[at + 1])
                    at += 2
                else:
                    merged.append(left[at])
                    at += 1
            parts = merged
        return tuple(self._ids[part] for part in parts)


def words(text: str) -> Iterator[str]:
    """The words of GPT-2's expression: 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?numbers| ?others|spaces, of which the last
    goes with the word behind it."""
    at, end = 0, len(text)
    while at < end:
        if ending := next((known for known in _ENDINGS if text.startswith(known, at)), None):
            stop = at + len(ending)
        else:
            first = at + (text[at] == " " and at + 1 < end and text[at + 1] not in _SPACES)
            kind = _kind(text[first])
            stop = first + 1
            while stop < end and _kind(text[stop]) == kind:
                stop += 1
            if kind == " " and stop < end and stop - at > 1:
                stop -= 1
        yield text[at:stop]
        at = stop


def _kind(letter: str) -> str:
    """Space, letter, number or another."""
    if letter in _SPACES:
        return " "
    category = unicodedata.category(letter)[0]
    return category if category in "LN" else "."


def from_str(text: str) -> Any:
    """The library's tokenizer where it is installed, else `ByteBPE`."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return ByteBPE(text)
    return Tokenizer.from_str(text)
