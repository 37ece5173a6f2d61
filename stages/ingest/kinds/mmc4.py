"""Documents as MMC4 has them: sentences, and images that belong to one of them each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.kinds.web_documents import WebDocuments, WebDocumentsConfig


class Mmc4Config(WebDocumentsConfig):
    """Documents as MMC4 has them, in JSON lines: `text_list` holds sentences, `image_info` names the image file of some
    of them, which stands before its sentence."""

    kind: Literal["mmc4"]
    """Documents as MMC4 has them: sentences, and the images that belong to some of them."""


class Mmc4(WebDocuments):
    Config = Mmc4Config
    fields = ("text_list", "image_info")

    def parts(self, row: dict) -> Iterator[tuple[str, Any]]:
        """Sentences between two pictures are one text."""
        sentences, images = row.get("text_list"), row.get("image_info") or []
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise MediaError("bad_segments", "expected a list of texts `text_list`")
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise MediaError("bad_segments", "expected a list of objects `image_info`")
        shown: dict[int, list[Any]] = {}
        for image in images:
            at = image.get("matched_text_index")
            if not isinstance(at, int) or not 0 <= at < len(sentences):
                raise MediaError("bad_segments", f"matched_text_index: no sentence {at!r:.80}")
            shown.setdefault(at, []).append(image.get("image_base64") or image.get("image_name"))
        waiting: list[str] = []
        for at, sentence in enumerate(sentences):
            if at in shown:
                yield from [("text", " ".join(waiting))] if waiting else []
                yield from (("image", image) for image in shown[at])
                waiting = []
            waiting.append(sentence.strip())
        yield from [("text", " ".join(waiting))] if waiting else []
