"""Markdown with pictures: a document's text, and the pictures in it, in order.

In: the text of a document, line ends as one line feed. Out: its front matter, and pieces of text (as they stand in the
source, the pictures' markup cut out) between `Picture`s. What a picture is, CommonMark says, by markdown-it-py, and
three habits besides: Obsidian's `![[name.png]]`, names with spaces or lone parentheses, `<img src=...>` of HTML. In
code, comments and escapes there are none. The work grows with the length alone.
"""

from __future__ import annotations

import html
import re
import tomllib
from bisect import bisect_right
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, image, link
from markdown_it.token import Token

from omniloom.stages.ingest.files.suffixes import IMAGES, suffix

_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?:(.*?)\n)?\1[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_MATTER_CHARS = 1 << 16  # nothing longer is looked at: YAML is slow to read
_PICTURE_NAME = rf"(?:{'|'.join(re.escape(ending) for ending in IMAGES)})"
# A name that CommonMark takes for none, up to the first bracket behind a picture's suffix; of 1,000 characters at most.
_LOOSE_TARGET = re.compile(
    rf"\([ \t]*([^<>\n]{{1,1000}}?{_PICTURE_NAME}(?:[?#][^\s()]{{0,1000}})?)"
    r"(?:[ \t]+(?:\"[^\"\n]{0,1000}\"|'[^'\n]{0,1000}'))?[ \t]*\)",
    re.IGNORECASE,
)
_EMBED = re.compile(r"!\[\[([^\[\]|\n]{1,1000})(?:\|([^\[\]\n]{0,1000}))?\]\]")
_TAG = re.compile(r"<img(?=[\s/>])(?:[^>\"']|\"[^\"]*\"|'[^']*')*+>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"[\s\"'/](src|alt)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"']+))", re.IGNORECASE)
_NOT_SHOWN = re.compile(r"<!--|<(script|style|textarea|template|title)\b", re.IGNORECASE)
_TAG_BEGIN = re.compile(r"<img(?=[\s/>])", re.IGNORECASE)
_OPENING = re.compile(r"<([A-Za-z][\w-]*)[^<>]*>\s*\Z")
_CLOSING = re.compile(r"\s*</([A-Za-z][\w-]*)\s*>")


class Picture(NamedTuple):
    """`link` as a URL that is relative to the document; one that is `embedded` may be relative to the root as well."""

    alt: str
    link: str
    embedded: bool = False


class _Cut(NamedTuple):
    """A stretch of the source that is left out, and the picture in its place, if it is one."""

    start: int
    end: int
    picture: Picture | None = None


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The fields of a document's YAML (between lines `---`) or TOML (`+++`), and the text behind it. What is no mapping
    is text."""
    found = _FRONT_MATTER.match(text, 0, _FRONT_MATTER_CHARS)
    if not found:
        return {}, text
    try:
        load = tomllib.loads if found[1] == "+++" else yaml.safe_load
        fields = load(found[2] or "") or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, text
    return (fields, text[found.end() :]) if isinstance(fields, dict) else ({}, text)


def split_markdown(text: str) -> list[str | Picture]:
    """Pieces of text and pictures, in order; pieces of white space alone are left out."""
    parts: list[str | Picture] = []
    at = 0
    for cut in _with_wrappers(text, sorted(_cuts(text))):
        if cut.start < at:  # of two that overlap, the first
            continue
        parts.append(text[at : cut.start])
        parts += [cut.picture] if cut.picture else []
        at = cut.end
    joined: list[str | Picture] = []
    for part in [*parts, text[at:]]:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return [part for part in joined if isinstance(part, Picture) or part.strip()]


def _cuts(text: str) -> list[_Cut]:
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    starts[-1] -= 1
    env: dict[str, Any] = {}
    found, linked, definitions = [], set(), []
    for token in _parser().parse(text, env):
        if token.type == "inline":
            columns = _columns(token, lines, starts)
            cuts, links = _inline(token.children or [], columns)
            found += cuts
            linked |= links
        elif token.type == "html_block":
            first, end = _lines(token)
            found += _html(text, starts[first], starts[end])
        elif token.type == "definition":
            definitions.append(token)
    shown = env.get("shown", set())
    for token in definitions:
        if token.meta["id"] in shown - linked:
            first, end = _lines(token)
            found.append(_Cut(starts[first], starts[end]))
    return found


def _lines(token: Token) -> tuple[int, int]:
    """The lines of the source that a block, or what is in it, stands on: the first one's number and the one behind."""
    if token.map is None:
        raise ValueError(f"expected a token that knows its lines, got {token.type}")
    return token.map[0], token.map[1]


def _columns(token: Token, lines: list[str], starts: list[int]):
    """Where a place of an inline token's content lies in the source: of each of its lines, block marks are cut off."""
    content_at, source_at, at = [], [], 0
    for number, line in enumerate(token.content.split("\n"), _lines(token)[0]):
        source, piece = lines[number].rstrip(), line.strip()
        shift = source.rfind(piece) if source.endswith(piece) else source.find(piece)
        indent = len(line) - len(line.lstrip())
        content_at.append(at)
        source_at.append(starts[number] + max(shift, 0) - indent)
        at += len(line) + 1

    def place(position: int) -> int:
        line = bisect_right(content_at, position) - 1
        return source_at[line] + position - content_at[line]

    return place


def _inline(children: list[Token], place) -> tuple[list[_Cut], set[str]]:
    """The cuts of one inline token, and the labels of its ordinary links."""
    cuts: list[_Cut] = []
    links, open_links = set(), []
    for number, token in enumerate(children):
        if token.type == "link_open":
            open_links.append((token, len(cuts)))
        elif token.type == "link_close":
            opened, before = open_links.pop()
            if len(cuts) > before and "span" in opened.meta:  # a link around a picture is dissolved
                start, inner_end, end = opened.meta["span"]
                cuts += [_Cut(place(start), place(start) + 1), _Cut(place(inner_end), place(end - 1) + 1)]
            if len(cuts) == before and "label" in opened.meta:
                links.add(opened.meta["label"])
        elif token.type == "image" and "span" in token.meta:
            start, end = token.meta["span"]
            marks = _emphasis(children, number)
            picture = Picture(_plain(token), str(token.attrs["src"]), token.meta.get("embedded", False))
            cuts.append(_Cut(place(start) - marks, place(end - 1) + 1 + marks, picture))
        elif token.type == "html_inline" and "span" in token.meta and (found := _img(token.content)):
            start, end = token.meta["span"]
            cuts.append(_Cut(place(start), place(end - 1) + 1, found))
    return cuts, links


def _emphasis(children: list[Token], number: int) -> int:
    """Characters of emphasis on either side of a picture that holds nothing else, `**![a](b.png)**`."""
    seen = [token for token in children[max(0, number - 8) : number + 9] if token.type != "text" or token.content]
    at, marks = seen.index(children[number]), 0
    pairs = zip(reversed(seen[:at]), seen[at + 1 :])
    for opened, closed in pairs:
        if opened.type not in ("em_open", "strong_open") or closed.type != opened.type.replace("open", "close"):
            break
        marks += len(opened.markup)
    return marks


def _plain(token: Token) -> str:
    """An image's label without its markup."""
    parts = []
    for child in token.children or ():
        if child.type == "image":
            parts.append(_plain(child))
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif child.type in ("text", "code_inline"):
            parts.append(child.content)
    return "".join(parts) if token.children else token.content


def _html(text: str, start: int, end: int) -> list[_Cut]:
    """The pictures of a block of HTML, text[start:end]."""
    found, at = [], start
    while at < end:
        hidden = _NOT_SHOWN.search(text, at, end)
        stop = hidden.start() if hidden else end
        while tag := _next_tag(text, at, stop):
            if picture := _img(tag[0]):
                found.append(_Cut(tag.start(), tag.end(), picture))
            at = tag.end()
        if not hidden:
            break
        closing = f"</{hidden[1]}" if hidden[1] else "-->"
        close = re.compile(re.escape(closing), re.IGNORECASE).search(text, hidden.end(), end)
        at = close.end() if close else end
    return found


def _next_tag(text: str, at: int, end: int) -> re.Match | None:
    opening = _TAG_BEGIN.search(text, at, end)
    return _TAG.match(text, opening.start(), end) if opening else None


def _img(tag: str) -> Picture | None:
    """The picture of one HTML tag; None where it is no `<img>` or has no source."""
    if not _TAG.fullmatch(tag):
        return None
    values: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(tag):
        values.setdefault(name.lower(), html.unescape(double or single or bare).strip())
    return Picture(values.get("alt", ""), values["src"]) if values.get("src") else None


def _with_wrappers(text: str, cuts: list[_Cut]) -> list[_Cut]:
    """HTML tags that hold pictures and nothing else, `<p><img ...></p>`, go with them."""
    out: list[_Cut] = []
    number = 0
    while number < len(cuts):
        last = number
        while last + 1 < len(cuts) and not text[cuts[last].end : cuts[last + 1].start].strip():
            last += 1
        run = cuts[number : last + 1]
        before = cuts[number - 1].end if number else 0
        after = cuts[last + 1].start if last + 1 < len(cuts) else len(text)
        start, end = run[0].start, max(cut.end for cut in run)
        if any(cut.picture for cut in run):
            while True:
                opening = _OPENING.search(text, max(before, start - 1000), start)
                closing = _CLOSING.match(text, end, after)
                if not opening or not closing or opening[1].lower() != closing[1].lower():
                    break
                out += [_Cut(opening.start(), start), _Cut(end, closing.end())]
                start, end = opening.start(), closing.end()
        out += run
        number = last + 1
    return sorted(out, key=lambda cut: cut[:2])


# ---- the parser: markdown-it's, which notes where in the content its pictures and links lie ----


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"store_labels": True, "inline_definitions": True})
    # As written: what may be read is decided by whoever opens it, and percent signs are resolved there.
    parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    parser.validateLink = lambda url: True  # type: ignore[method-assign]
    rules = parser.inline.ruler
    html_inline = next(rule.fn for rule in rules.__rules__ if rule.name == "html_inline")
    rules.at("image", _image)
    rules.at("link", _link)
    rules.at("html_inline", lambda state, silent: _noting(html_inline, state, silent))
    rules.before("image", "embed", _embed)
    rules.after("image", "loose_image", _loose_image)
    return parser


def _noting(rule, state: StateInline, silent: bool) -> bool:
    start = state.pos
    if not rule(state, silent):
        return False
    if not silent:
        state.tokens[-1].meta["span"] = (start, state.pos)
    return True


def _closes(state: StateInline) -> bool:
    """Whether any bracket closes from here on: looking for a label's end in vain, again at each `[`, is slow."""
    if state.env.get("brackets", ("",))[0] is not state.src:
        state.env["brackets"] = state.src, state.src.rfind("]")
    return state.pos < state.env["brackets"][1]


def _image(state: StateInline, silent: bool) -> bool:
    if not state.src.startswith("![", state.pos) or not _closes(state) or not _noting(image, state, silent):
        return False
    if not silent and (label := state.tokens[-1].meta.get("label")):
        state.env.setdefault("shown", set()).add(label)
    return True


def _link(state: StateInline, silent: bool) -> bool:
    start, count = state.pos, len(state.tokens)
    if state.src[start] != "[" or not _closes(state) or not link(state, silent):
        return False
    if not silent:
        opened = next(token for token in state.tokens[count:] if token.type == "link_open")
        opened.meta["span"] = (start, state.md.helpers.parseLinkLabel(_at(state, start), start, True), state.pos)
    return True


def _at(state: StateInline, position: int) -> StateInline:
    other = StateInline(state.src, state.md, state.env, [])
    other.pos, other.posMax, other.cache = position, state.posMax, state.cache
    return other


def _embed(state: StateInline, silent: bool) -> bool:
    """Obsidian's `![[name.png|words]]`; other embeds are notes, which stay text."""
    found = _EMBED.match(state.src, state.pos, state.posMax)
    if not found or suffix(found[1].strip()) not in IMAGES:
        return False
    if not silent:
        words = (found[2] or "").strip()
        if re.fullmatch(r"\d+(?:x\d+)?", words):  # the width and height to show it in
            words = ""
        _push(state, found.end(), quote(found[1].strip()), words)
        state.tokens[-1].meta["embedded"] = True
    state.pos = found.end()
    return True


def _loose_image(state: StateInline, silent: bool) -> bool:
    """`![words](a name.png)`, which CommonMark wants in `<...>`."""
    if not state.src.startswith("![", state.pos) or not _closes(state):
        return False
    label_end = state.md.helpers.parseLinkLabel(state, state.pos + 1, False)
    target = _LOOSE_TARGET.match(state.src, label_end + 1, state.posMax) if label_end > 0 else None
    if not target:
        return False
    if not silent:
        _push(state, target.end(), target[1], state.src[state.pos + 2 : label_end])
    state.pos = target.end()
    return True


def _push(state: StateInline, end: int, target: str, words: str) -> None:
    start = state.pos
    token = state.push("image", "img", 0)
    token.attrs, token.content, token.meta = {"src": target, "alt": ""}, words, {"span": (start, end)}
    token.children = []
    if words:
        state.md.inline.parse(words, state.md, state.env, token.children)
