"""Text that goes round in circles, as a language model's likeliest text does. In: a text. Out: the text up to the end
of the first round.
"""

from __future__ import annotations

_LONGEST = 64  # characters of what is repeated
_ROUNDS, _LENGTH = 4, 24  # from so many rounds and characters on it is a loop: not "...", not a rule of dashes


def without_loop(text: str) -> str:
    """`text`, cut and marked with an ellipsis where its end repeats one and the same up to 64 characters."""
    for unit in range(1, min(_LONGEST, len(text) // _ROUNDS) + 1):
        start = len(text) - unit
        while start and text[start - 1] == text[start - 1 + unit]:
            start -= 1
        if len(text) - start >= max(_ROUNDS * unit, _LENGTH):
            return text[: start + unit].rstrip() + " \N{HORIZONTAL ELLIPSIS}"
    return text
