"""Rows of marked-up pages: each element that stands for a picture, or names one, as a row of what it says.

In: the text of an XML document or of an HTML page. Out: lists of rows, one for each kind of element that occurs more
than once, and one for the document as a whole: attributes, and texts of the elements within, by their names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr", "param")
)
_DEEPEST = 200


def readings(text: str) -> Iterator[list[dict[str, Any]]]:
    root = parsed(text)
    if root is None:
        return
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for element in root.iter():
        if len(element) or element.attrib:
            rows[_name(element)].append(_row(element))
    yield from rows.values()


def document(text: str) -> dict[str, Any]:
    """What an XML document says as one row, as of a file for each picture; empty where it is none."""
    root = parsed(text)
    return {} if root is None else _row(root)


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _row(element: ElementTree.Element) -> dict[str, Any]:
    """Attributes and texts by name; what occurs several times is a list."""
    found: dict[str, list[str]] = defaultdict(list)
    for part in element.iter():
        name = _name(part)
        if text := " ".join("".join(part.itertext()).split()) if part is not element or not len(part) else "":
            found[name].append(text)
        for key, value in part.attrib.items():
            if value.strip():
                found[key if part is element else f"{name}.{key}"].append(" ".join(value.split()))
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def parsed(text: str) -> ElementTree.Element | None:
    """Strict XML, else what a browser would see; None of what declares entities, which may grow without end."""
    if "<!ENTITY" in text:
        return None
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        pass
    page = _Page()
    page.feed(text)
    page.close()
    return page.root


class _Page(HTMLParser):
    """A tree of an HTML page; ends that are missing end with what is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.root = ElementTree.Element("page")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = ElementTree.SubElement(self._open[-1], tag, {name: value or "" for name, value in attrs})
        if tag not in _VOID and len(self._open) < _DEEPEST:
            self._open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        ElementTree.SubElement(self._open[-1], tag, {name: value or "" for name, value in attrs})

    def handle_endtag(self, tag: str) -> None:
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                del self._open[depth:]
                return

    def handle_data(self, data: str) -> None:
        parent = self._open[-1]
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + data
        else:
            parent.text = (parent.text or "") + data
