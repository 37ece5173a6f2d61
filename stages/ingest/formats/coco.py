"""Captions as COCO has them: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}; and as
Karpathy's splits have them: {"images": [{"filename", "sentences": [{"raw"}]}]}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import encoding as encodings
from omniloom.stages.ingest.rejects import Reject


def parse(data: bytes, encoding: str = "utf-8") -> dict | None:
    """The annotations that a JSON text is; None for any other text."""
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return None  # spares parsing what is an array
    try:
        value = json.loads(encodings.decode(data, encoding))
    except (MediaError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_annotations(value) else None


def _is_annotations(value: dict) -> bool:
    images = value.get("images")
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images[:100]):
        return False
    return isinstance(value.get("annotations"), list) or any("sentences" in image for image in images[:100])


def rows(annotations: dict) -> Iterator[dict | Reject]:
    """{"file_name", "captions", "license"} of each image in order, then a reject for each annotation that is of none or
    that is no caption."""
    captions: dict[Any, list] = {}
    wrong: list[Reject] = []
    for number, annotation in enumerate(annotations.get("annotations", ()), 1):
        said = annotation if isinstance(annotation, dict) else {}
        image = said.get("image_id")
        if "caption" not in said or not isinstance(image, int | str):
            wrong.append(Reject("bad_manifest_row", f"annotation {number}: expected image_id and caption"))
        else:
            captions.setdefault(image, []).append(said["caption"])
    licenses: dict[Any, Any] = {
        license["id"]: license.get("name")
        for license in annotations.get("licenses", ())
        if isinstance(license, dict) and isinstance(license.get("id"), int | str)
    }
    for number, image in enumerate(annotations["images"], 1):
        if not isinstance(image, dict) or not isinstance(name := _name(image), str):
            yield Reject("bad_manifest_row", f"image {number}: no file_name in it")
            continue
        own = [sentence.get("raw") for sentence in image.get("sentences") or () if isinstance(sentence, dict)]
        id = image.get("id")
        others = captions.pop(id, []) if isinstance(id, int | str) else []
        row: dict[str, Any] = {"file_name": name, "captions": [*own, *others]}
        license = image.get("license")
        if isinstance(license, int | str) and licenses.get(license):
            row["license"] = licenses[license]
        yield row
    yield from wrong
    for image, texts in captions.items():
        yield Reject("bad_manifest_row", f"image_id {image!r:.80} of {len(texts)} annotations is that of no image")


def _name(image: dict) -> Any:
    folder, name = image.get("filepath"), image.get("file_name", image.get("filename"))
    return f"{folder}/{name}" if isinstance(folder, str) and folder else name
