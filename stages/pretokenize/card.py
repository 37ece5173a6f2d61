"""The card of a corpus as it is trained on: `card.json` of the artifact, and as a text `card.md`.

documents   counts by split, source, kind and language, with their tokens and the bytes of their texts
latents     of the train split, by channel: mean, deviation, least and greatest
bits        a pixel's share of images and of videos (`stages.pretokenize.bits`)
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from omniloom.stages.pretokenize.bits import Lossless, entropy
from omniloom.stages.pretokenize.stats import GROUP

_COUNTS = ("documents", "text_tokens", "visual_tokens", "bytes")
_CHANNELS = 16  # that the text shows


def make(
    stats: list[dict],
    facts: dict[str, Any],
    codebook_size: int | None,
    stored_bits: int,
    seen: Lossless | None,
    known: dict[str, float] | None,
) -> dict[str, Any]:
    """From each shard's `Stats.to_dict` and what `combine` made of them. A place's latents are stored in so many bits;
    `seen` are pictures without loss, `known` bits of a code beside a neighbour."""
    return {
        "documents": _documents(stats),
        "latents": _latents(stats, facts),
        "bits": {kind: _bits(stats, kind, codebook_size, stored_bits, seen, known) for kind in _kinds(stats)},
    }


def _documents(stats: list[dict]) -> list[dict[str, Any]]:
    found: dict[tuple[str, ...], Counter[str]] = {}
    for shard in stats:
        for *group, counts in shard["groups"]:
            found.setdefault(tuple(group), Counter()).update(counts)
    return [
        {**dict(zip(GROUP, group, strict=True)), **{name: counts[name] for name in _COUNTS}}
        for group, counts in sorted(found.items())
    ]


def _latents(stats: list[dict], facts: dict[str, Any]) -> dict[str, list[float]] | None:
    held = [shard for shard in stats if shard["number"]]
    if not held:
        return None
    return {
        "mean": facts["latent_mean"],
        "std": facts["latent_std"],
        "least": np.min([shard["least"] for shard in held], 0).tolist(),
        "greatest": np.max([shard["greatest"] for shard in held], 0).tolist(),
    }


def _kinds(stats: list[dict]) -> list[str]:
    return sorted({kind for shard in stats for kind in shard["pictures"]})


def _bits(
    stats: list[dict],
    kind: str,
    codebook_size: int | None,
    stored_bits: int,
    seen: Lossless | None,
    known: dict[str, float] | None,
) -> dict[str, float | int]:
    """Bits a pixel, but for `pictures`, `measured` (of them without loss) and `codes_used`."""
    total: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    for shard in stats:
        total.update(shard["pictures"].get(kind, {}))
        for code, times in zip(*shard["codes"].get(kind, ([], [])), strict=True):
            codes[code] += times * shard["stands_for"]
    a_pixel = total["places"] / total["pixels"]
    found: dict[str, float | int] = {"pictures": total["pictures"], "raw": 24.0}
    if kind == "image" and seen and seen.pixels:
        found |= {"measured": seen.pictures, "png": 8 * seen.png / seen.pixels, "webp": 8 * seen.webp / seen.pixels}
    found["latents"] = stored_bits * a_pixel
    if codes and codebook_size:
        found["codes"] = math.log2(codebook_size) * a_pixel
        found["codes_entropy"] = entropy(np.array(list(codes.values()), float)) * a_pixel
        if kind == "image":
            found |= {f"codes_beside_{name}": bits * a_pixel for name, bits in (known or {}).items()}
        found |= {"codes_used": len(codes), "codebook_size": codebook_size}
    return found


def metrics(card: dict[str, Any]) -> dict[str, float | int]:
    """What of it is compared from run to run."""
    return {
        f"bits_{kind}_{name}": value
        for kind, found in card["bits"].items()
        for name, value in found.items()
        if name not in ("pictures", "raw", "codebook_size")
    }


_ROWS = {
    "raw": "RGB as it is",
    "png": "PNG",
    "webp": "WebP, lossless",
    "latents": "latents as stored",
    "codes": "codes: log2 of the vocabulary",
    "codes_entropy": "codes: their entropy",
    "codes_beside_left": "codes: beside their left neighbour",
    "codes_beside_upper": "codes: beside their upper neighbour",
}


def bits_table(card: dict[str, Any]) -> str:
    """The bits a pixel takes, a column a kind."""
    bits = card["bits"]
    rows = [["bits a pixel", *(f"{kind} ({found['pictures']:,})" for kind, found in bits.items())]]
    for name, title in _ROWS.items():
        if any(name in found for found in bits.values()):
            values = [f"{found[name]:.4f}" if name in found else "" for found in bits.values()]
            rows.append([title, *values])
    return _table(rows)


def text(card: dict[str, Any]) -> str:
    """The card in Markdown."""
    rows = [[*GROUP, "documents", "text tokens", "visual tokens", "bytes of text"]]
    rows += [[str(found[name]) or "unknown" for name in GROUP] + _counted(found) for found in card["documents"]]
    parts = ["# What this corpus holds", "## Documents", _table(rows)]
    if latents := card["latents"]:
        rows = [["channel", *latents]]
        shown = list(zip(*latents.values(), strict=True))[:_CHANNELS]
        rows += [[str(number), *(f"{value:.4f}" for value in values)] for number, values in enumerate(shown)]
        parts += ["## Latents of the train split", _table(rows)]
        if (more := len(latents["mean"]) - _CHANNELS) > 0:
            parts.append(f"and {more} channels more, in card.json")
    if card["bits"]:
        parts += ["## Bits", bits_table(card)]
        image = card["bits"].get("image", {})
        if "measured" in image:
            parts.append(f"PNG and WebP are of {image['measured']:,} images, at the size that they are encoded at.")
        used = [f"{found['codes_used']:,} of {kind}s" for kind, found in card["bits"].items() if "codes_used" in found]
        if used:
            size = next(found["codebook_size"] for found in card["bits"].values() if "codes_used" in found)
            parts.append(f"Of {size:,} codes there occur {' and '.join(used)}.")
    return "\n\n".join(parts) + "\n"


def _counted(found: dict[str, Any]) -> list[str]:
    return [f"{found[name]:,}" for name in _COUNTS]


def _table(rows: list[list[str]]) -> str:
    """Markdown, in columns that stand under each other; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    number = [all(row[at][:1] in "0123456789-" for row in rows[1:]) for at in range(len(widths))]

    def line(row: list[str]) -> str:
        cells = (cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(row, widths, number, strict=True))
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (w - 1) + (":" if n else "-") for w, n in zip(widths, number, strict=True)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])
