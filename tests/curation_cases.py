"""Corpora for curation: scenes, prose, recordings; what copies of them look like; and a curation of an ingest, in one
process."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
from ingested import put as put
from PIL import Image

from omniloom.infra import storage
from omniloom.stages.curate import stage as curate
from omniloom.stages.curate.deciding import lines as read_lines
from omniloom.stages.data import records
from omniloom.stages.ingest import stage as ingest

EVEN = {"train": 0.4, "validation": 0.3, "test": 0.3}
_STEMS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rt", "lo", "sk", "nd", "mper", "st")]


class Drawn:
    """Everything that is drawn from one seed."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def photo(self, height: int = 96, width: int = 128) -> np.ndarray:
        """Areas of colour that run into each other, a few shapes with edges, and grain."""
        rng = self.rng
        cells = rng.integers(0, 256, (int(rng.integers(3, 7)), int(rng.integers(3, 7)), 3), np.uint8)
        pixels = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), np.float32).copy()
        y, x = np.mgrid[:height, :width]
        for _ in range(int(rng.integers(2, 6))):
            at, size = rng.uniform(0.1, 0.9, 2) * (height, width), rng.uniform(0.06, 0.25) * height
            inside = (
                np.abs(y - at[0]) + np.abs(x - at[1]) if rng.random() < 0.5 else np.hypot(y - at[0], x - at[1])
            ) < size
            pixels[inside] = rng.integers(0, 256, 3)
        return np.clip(pixels + rng.normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)

    def copy(self, pixels: np.ndarray, number: int) -> tuple[str, bytes]:
        """(suffix, bytes) of a copy: re-encoded, resized, cut by a twentieth, or all three."""
        rng, (height, width) = self.rng, pixels.shape[:2]
        if number % 4 in (2, 3):
            down, across = round(height * 0.05), round(width * 0.05)
            top, left = int(rng.integers(0, down + 1)), int(rng.integers(0, across + 1))
            pixels = pixels[top : height - down + top, left : width - across + left]
        if number % 4 in (1, 3):
            scale = rng.uniform(0.5, 1.5)
            size = max(8, round(pixels.shape[1] * scale)), max(8, round(pixels.shape[0] * scale))
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        if number % 4 in (0, 3):
            return (
                ("webp", saved(pixels, "WEBP", quality=60))
                if number % 8 < 4
                else ("jpg", saved(pixels, "JPEG", quality=60))
            )
        return "png", saved(pixels)

    def words(self, count: int) -> str:
        return " ".join(self.rng.choice(_STEMS, count))

    def prose(self, sentences: int = 12) -> str:
        """English enough for the rules of text quality: sentences with stop words."""
        found = []
        for _ in range(sentences):
            small = self.rng.permutation(["the", "of", "and", "that", "with", "have", "to", "it", "is", "by"])[:5]
            found.append(" ".join(word for one in small for word in (one, self.words(2))).capitalize() + ".")
        return " ".join(found)

    def reworded(self, text: str, share: float) -> str:
        """The text with a share of its words in place of others."""
        words = text.split(" ")
        for at in self.rng.permutation(len(words))[: max(1, round(share * len(words)))]:
            words[at] = self.words(1)
        return " ".join(words)


def saved(pixels: np.ndarray, format_: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format_, **options)
    return sink.getvalue()


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def context_of(root: str, config, **fields) -> SimpleNamespace:
    places = {"output": f"{root}/output", "state": f"{root}/state", "predecessor": None}
    return SimpleNamespace(config=config, progress=lambda *a, **k: None, **places, **fields)


def ingested(root: str, *sources: dict, **fields) -> str:
    """The folder of the records of the sources."""
    config = ingest.Config.model_validate({"sources": sources, "splits": EVEN, **fields})
    context = context_of(f"{root}/ingest", config)
    ingest.run(context)
    return context.output


def curated(root: str, corpus: str, *steps: dict, **fields) -> SimpleNamespace:
    """What the steps leave of the records at `corpus`: `rows`, `left` out, `metrics` and the `page`."""
    config = curate.Config.model_validate({"steps": steps, **fields})
    curate.check(config, {})
    context = context_of(f"{root}/curate", config, records=SimpleNamespace(uri=corpus))
    metrics = curate.run(context)
    return SimpleNamespace(
        metrics=metrics,
        rows=list(records.iterate(context.output)),
        left=read_lines(f"{context.output}/curation/left_out.jsonl"),
        page=storage.read_bytes(f"{context.output}/curation.html").decode(),
        context=context,
    )


def paths(found) -> list[str]:
    return [row["path"] for row in found]
