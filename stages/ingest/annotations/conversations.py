"""Conversations: turns of people and assistants, as LLaVA and ShareGPT (`from`, `value`) and OpenAI (`role`, `content`)
write them, as one text or as a document with the pictures that they show.

In: the value of a row's field. Out: what is said in order, each turn a line "User: ..." or "Assistant: ...".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omniloom.stages.data.media.limits import MediaError

_ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "question"), "User"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bot", "bard", "bing", "answer"), "Assistant"),
    "system": "System",
}
_PLACEHOLDER = re.compile(r"<image>")


@dataclass(frozen=True)
class Shown:
    """A picture in a turn; `value` is its cell, None for the next of the row's own pictures."""

    value: Any = None


Part = str | Shown


def parts(value: Any, field: str, pictures: bool) -> list[Part]:
    """The texts and pictures of a conversation in order, neighbouring texts joined. `pictures`: whether `<image>` in a
    text stands for one. MediaError where the value is no conversation."""
    joined: list[Part] = []
    for number, turn in enumerate(_turns(value, field), 1):
        role, content = _turn(turn, field, number)
        texts: list[Part] = ["\n" if joined else "", f"{role}: ", *_content(content, field, number, pictures)]
        for part in texts:
            if isinstance(part, str) and joined and isinstance(last := joined[-1], str):
                joined[-1] = last + part
            elif part != "":
                joined.append(part)
    return joined


def illustrated(parts: list[Part], pictures: list[Any], field: str) -> list[Part]:
    """The parts with the row's own `pictures`, the cells of its `field`, in their places: where `<image>` stands, or
    before all where it stands nowhere."""
    places = sum(part == Shown() for part in parts)
    if not places:
        return [*map(Shown, pictures), *parts]
    if places != len(pictures):
        raise MediaError("bad_segments", f"{places} times <image>, but {len(pictures)} pictures in {field}")
    following = iter(pictures)
    return [Shown(next(following)) if part == Shown() else part for part in parts]


def _turns(value: Any, field: str) -> Iterator[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # a table's cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise MediaError("missing_field", f"{field}: {error}") from None
    if not isinstance(value, list) or not value:
        raise MediaError("missing_field", f"{field}: expected a list of turns, got {value!r:.80}")
    for turn in value:
        if isinstance(turn, dict) and "user" in turn and "assistant" in turn:  # both in one object
            yield {"role": "user", "content": turn["user"]}
            yield {"role": "assistant", "content": turn["assistant"]}
        else:
            yield turn


def _turn(turn: Any, field: str, number: int) -> tuple[str, Any]:
    if isinstance(turn, dict):
        for speaker, said in (("from", "value"), ("role", "content"), ("role", "value"), ("speaker", "text")):
            if isinstance(turn.get(speaker), str) and turn.get(said) is not None:
                role = turn[speaker].strip()
                return _ROLES.get(role.lower(), role[:1].upper() + role[1:]), turn[said]
    raise MediaError("missing_field", f"{field}: turn {number}: expected from and value, or role and content")


def _content(content: Any, field: str, number: int, pictures: bool) -> Iterator[Part]:
    if isinstance(content, str):
        texts = _PLACEHOLDER.split(content) if pictures else [content]
        for at, text in enumerate(texts):
            if at:
                yield Shown()
            yield text
        return
    if not isinstance(content, list):
        raise MediaError("missing_field", f"{field}: turn {number}: expected text, got {content!r:.80}")
    for part in content:
        yield _part(part, field, number, pictures)


def _part(part: Any, field: str, number: int, pictures: bool) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "image_url"):
        if not pictures:
            raise MediaError("missing_field", f"{field}: turn {number} shows a picture; set image_field: {field}")
        return Shown(next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key)), None))
    raise MediaError("missing_field", f"{field}: turn {number}: expected texts and images, got {part!r:.80}")
