"""What an XMP packet says of its picture, as photo managers write it into files or beside them as `7.xmp`.

In: the packet's text. Out: its description, else its title or headline; empty where there is none. As XMP has it (ISO
16684-1): a property is an element, or an attribute, and texts in several languages are a list, of which x-default comes
before others.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from omniloom.stages.ingest.look import markup

_DC, _PHOTOSHOP = "{http://purl.org/dc/elements/1.1/}", "{http://ns.adobe.com/photoshop/1.0/}"
_RDF, _LANGUAGE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}", "{http://www.w3.org/XML/1998/namespace}lang"
_PROPERTIES = (f"{_DC}description", f"{_DC}title", f"{_PHOTOSHOP}Headline")


def description(text: str) -> str:
    root = markup.parsed(text.strip("\0 \n\r\t\ufeff"))
    if root is None:
        return ""
    return next((said for name in _PROPERTIES if (said := _property(root, name))), "")


def _property(root: Element, name: str) -> str:
    for holder in root.iter(f"{_RDF}Description"):
        if said := holder.get(name, "").strip():
            return said
    for element in root.iter(name):
        texts = [(item.get(_LANGUAGE) == "x-default", item.text or "") for item in element.iter(f"{_RDF}li")]
        said = max(texts, key=lambda pair: pair[0])[1] if texts else element.text or ""
        if said.strip():
            return " ".join(said.split())
    return ""
