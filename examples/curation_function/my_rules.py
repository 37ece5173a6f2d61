"""Functions of one's own for curation: `function: my_rules:no_shouting`."""

from __future__ import annotations

import re

_NAMES = re.compile(r"\b(IMG|DSC)_?\d+\b|\.\w{3,4}$")


def no_shouting(record: dict, most: float = 0.5) -> str | None:
    """Texts of capitals go: a text says why a record goes, None that it stays."""
    letters = [letter for letter in record["text"] if letter.isalpha()]
    share = sum(map(str.isupper, letters)) / max(1, len(letters))
    return f"{share:.0%} capitals" if share > most else None


def clean_captions(record: dict) -> dict | bool:
    """Captions without file names and numbers of cameras; pictures go that have none left. A dictionary says what is
    other in a record, True that it stays, False that it goes."""
    captions = [_NAMES.sub("", caption).strip(" -_") for caption in record["captions"] or ()]
    captions = [caption for caption in captions if caption]
    return {"captions": captions} if captions else False
