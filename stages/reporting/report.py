"""The HTML report of a run. In: facts, metrics, loss curves, pictures, texts. Out: one self-contained HTML file.

`render` takes a title, facts and sections; a section holds any of a text, tables, curves, pictures and text samples.
Charts are inline SVG and pictures base64 PNG, so that the file needs nothing else and reads in light and dark.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

Series = Mapping[str, Sequence[tuple[float, float]]]

_WIDTH, _HEIGHT = 560, 260  # of a chart, in SVG units
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 40
_MAX_POINTS = 600  # per series: more than one per SVG unit cannot be seen
_NUM_COLORS = 8
_GAP = 4  # pixels between the pictures of a grid
_CAPTION_SIZE = 12  # pixels
_TEXT = "grid"  # the text of a PNG that says where its pictures are


def render(report: Mapping[str, Any]) -> str:
    """The report as HTML.

    `report` has `title`, optionally `facts` {name: value}, `verdict` {`text`, `passed`: true, false or null} and
    `headline` {metric: value}, and `sections`: each a `title` and any of
    - `text`: a paragraph;
    - `tables`: [{`columns`: [...], `rows`: [[...]], optionally `caption`}];
    - `metrics`: {name: value}, shown as a table;
    - `curves`: [{`title`, `series`: {name: [(step, value)]}, optionally `x`, `y`, `log`}];
    - `images`: [{`png`: bytes, `caption`}]; of a `grid` with captions each picture is shown by itself;
    - `cards`: [{`png` or `mp4`: bytes, `lines`: [text]}], one picture or video each;
    - `svg`: a drawing, as markup-safe text;
    - `details`: text that is shown when it is asked for;
    - `samples`: [{`prompt`, `output`, optionally `expected`, `png`}]; `headings` are other words for the three.
    A key that is none of these raises `ValueError`, so that nothing is left out unseen.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    _known(report, {"title", "facts", "verdict", "headline", "sections"}, "report")
    for number, section in enumerate(report.get("sections", [])):
        _known(
            section,
            {
                "title",
                "text",
                "tables",
                "metrics",
                "curves",
                "images",
                "cards",
                "svg",
                "details",
                "samples",
                "headings",
            },
            f"sections.{number}",
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, data_uri=_data_uri)
    environment.globals.update(chart=chart, tiles=tiles)
    return environment.get_template("report.html").render(
        title=report["title"],
        facts=report.get("facts", {}),
        verdict=report.get("verdict"),
        headline=report.get("headline", {}),
        sections=report.get("sections", []),
    )


def format_number(value: Any) -> str:
    """Four significant digits for a float, thousands separated for an integer, anything else as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if value and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.3e}"
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def chart(series: Series, x: str = "step", y: str = "", log: bool = False) -> Any:
    """A line chart as inline SVG (markup-safe). Points that are not finite break the line.

    `log`: logarithmic y axis, where all values are positive. Long series are thinned to the least and greatest value
    of each bin, so that a spike stays visible.
    """
    from markupsafe import Markup, escape

    points = {name: _thin(values) for name, values in series.items()}
    finite = [point for values in points.values() for point in values if math.isfinite(point[1])]
    if not finite:
        return Markup("<p class='note'>no finite values</p>")
    log = log and min(value for _, value in finite) > 0
    scale_y = math.log10 if log else float
    x_ticks = _ticks(min(p[0] for p in finite), max(p[0] for p in finite))
    low, high = scale_y(min(p[1] for p in finite)), scale_y(max(p[1] for p in finite))
    y_ticks = _ticks(low, high)
    x_low, x_high = min(p[0] for p in finite), max(p[0] for p in finite)
    y_low, y_high = min(low, y_ticks[0]), max(high, y_ticks[-1])

    def at_x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - x_low) / ((x_high - x_low) or 1.0)

    def at_y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - y_low) / ((y_high - y_low) or 1.0)

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{escape(y or 'values')} by {escape(x)}'>"]
    for tick in y_ticks:
        label = f"{10.0**tick if log else tick:.4g}"
        parts.append(
            f"<line class='grid' x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{at_y(tick):.1f}' "
            f"y2='{at_y(tick):.1f}'/><text class='tick' text-anchor='end' x='{_LEFT - 6}' "
            f"y='{at_y(tick) + 4:.1f}'>{label}</text>"
        )
    for tick in (tick for tick in x_ticks if x_low <= tick <= x_high):
        parts.append(
            f"<text class='tick' text-anchor='middle' x='{at_x(tick):.1f}' "
            f"y='{_HEIGHT - _BOTTOM + 16}'>{_short(tick)}</text>"
        )
    parts.append(
        f"<text class='axis' text-anchor='middle' x='{(_LEFT + _WIDTH - _RIGHT) / 2}' "
        f"y='{_HEIGHT - 6}'>{escape(x)}</text>"
    )
    if y:
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        parts.append(
            f"<text class='axis' text-anchor='middle' transform='translate(12 {middle}) rotate(-90)'>{escape(y)}</text>"
        )
    legend = []
    for number, (name, values) in enumerate(points.items()):
        color = f"c{number % _NUM_COLORS}"
        for run in _runs(values):
            line = " ".join(f"{at_x(step):.1f},{at_y(scale_y(value)):.1f}" for step, value in run)
            parts.append(
                f"<polyline class='line {color}' points='{line}'/>"
                if len(run) > 1
                else f"<circle class='dot {color}' cx='{line.split(',')[0]}' cy='{line.split(',')[1]}' r='2.5'/>"
            )
        last = next((value for _, value in reversed(values) if math.isfinite(value)), math.nan)
        legend.append(f"<span><i class='{color}'></i>{escape(name)} <b>{format_number(float(last))}</b></span>")
    return Markup("".join(parts) + "</svg><div class='legend'>" + "".join(legend) + "</div>")


def grid(
    images: Sequence[numpy.ndarray],
    columns: int = 8,
    captions: Sequence[str] | None = None,
    min_size: int | None = None,
) -> bytes:
    """Pictures, uint8 (H, W, 3) or (H, W) of any sizes, side by side as one PNG, with captions drawn below.

    Every picture is centred in a cell of the largest size; small ones are enlarged by whole factors, without
    smoothing, until their shorter side has `min_size` pixels (64, or 96 where captions need the room), so that a 32x32
    sample can be seen as it is.
    """
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    if not len(images):
        raise ValueError("images: a grid needs at least one")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"captions: {len(captions)} for {len(images)} images")
    min_size = min_size or (64 if captions is None else 96)
    side = min(max(image.shape[axis] for image in images) for axis in (0, 1))
    factor = max(1, math.ceil(min_size / side))
    width = factor * max(image.shape[1] for image in images)
    height = factor * max(image.shape[0] for image in images)
    font = ImageFont.load_default(_CAPTION_SIZE)
    lines = [_wrap(caption, font, width) for caption in captions or [""] * len(images)]
    line_height = _CAPTION_SIZE + 3
    below = max(len(wrapped) for wrapped in lines) * line_height + (2 if captions is not None else 0)
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + below + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, wrapped) in enumerate(zip(images, lines, strict=True)):
        left = _GAP + number % columns * (width + _GAP)
        top = _GAP + number // columns * (height + below + _GAP)
        picture = Image.fromarray(image).convert("RGB")
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
        for row, line in enumerate(wrapped):
            draw.text((left, top + height + 2 + row * line_height), line, fill=(40, 40, 40), font=font)
    buffer, info = io.BytesIO(), PngInfo()
    if captions is not None:
        told = {"columns": columns, "cell": [width, height], "below": below, "captions": list(captions)}
        info.add_text(_TEXT, json.dumps(told))
    sheet.save(buffer, "PNG", optimize=True, pnginfo=info)
    return buffer.getvalue()


def tiles(png: bytes) -> dict[str, Any] | None:
    """Where the pictures of a `grid` with captions are on its sheet, as CSS has it: `size` of the sheet, `ratio` of a
    picture, and its `width`; and [(place, caption)]. None for another picture."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as sheet:
        told, (across, down) = json.loads(sheet.info.get(_TEXT, "null")), sheet.size
    if told is None:
        return None
    columns, (width, height), step = told["columns"], told["cell"], told["cell"][1] + told["below"] + _GAP
    places = []
    for number, caption in enumerate(told["captions"]):
        left, top = _GAP + number % columns * (width + _GAP), _GAP + number // columns * step
        places.append((f"{100 * left / (across - width):.4f}% {100 * top / (down - height):.4f}%", caption))
    size = f"{100 * across / width:.3f}% {100 * down / height:.3f}%"
    return {"size": size, "ratio": f"{width} / {height}", "width": width, "wide": width > 2 * height, "places": places}


def pairs(originals: Sequence[numpy.ndarray], reconstructions: Sequence[numpy.ndarray], columns: int = 8) -> bytes:
    """Originals above their reconstructions, uint8 (H, W, 3), as one PNG."""
    import numpy as np

    if len(originals) != len(reconstructions):
        raise ValueError(f"reconstructions: {len(reconstructions)} for {len(originals)} originals")
    return grid(
        [np.concatenate(pair, axis=0) for pair in zip(originals, reconstructions, strict=True)], columns, min_size=128
    )


def filmstrip(video: numpy.ndarray, num_frames: int = 8) -> numpy.ndarray:
    """Frames spread evenly over a video, uint8 (T, H, W, 3), side by side as one picture (H, n W, 3)."""
    import numpy as np

    chosen = np.linspace(0, len(video) - 1, min(num_frames, len(video))).round().astype(int)
    return np.concatenate(list(video[chosen]), axis=1)


def _known(value: Mapping[str, Any], keys: set[str], where: str) -> None:
    if unknown := set(value) - keys:
        raise ValueError(f"{where}: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(keys))}")
    if "title" not in value:
        raise ValueError(f"{where}.title is missing")


def _data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64," + base64.b64encode(content).decode()


def _wrap(text: str, font, width: int, max_lines: int = 3) -> list[str]:
    """Text in lines that fit `width` pixels; what is longer than `max_lines` ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    cut = len(lines) > max_lines
    lines = lines[:max_lines]
    for number, line in enumerate(lines):
        ellipsis = cut and number == max_lines - 1
        while line and font.getlength(line + ("…" if ellipsis else "")) > width:
            line, ellipsis = line[:-1], True
        lines[number] = line + ("…" if ellipsis else "")
    return lines


def _thin(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points: of each bin the least and the greatest, in their order, and whatever is not
    finite."""
    values = sorted(((float(step), float(value)) for step, value in values), key=lambda point: point[0])
    size = math.ceil(2 * len(values) / _MAX_POINTS)
    if size <= 2:
        return values
    kept: list[tuple[float, float]] = []
    for start in range(0, len(values), size):
        part = values[start : start + size]
        finite = [point for point in part if math.isfinite(point[1])]
        extremes = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        kept += [point for point in part if point in extremes] or part[:1]
    return kept


def _runs(values: Iterable[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The stretches without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in values:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover [low, high] in steps of 1, 2 or 5 times a power of ten."""
    size = max(abs(low), abs(high))
    if high - low <= max(1e-12 * size, 1e-300):  # one value, as far as floats tell
        half = (size if size > 1e-300 else 1.0) / 2
        low, high = low - half, low + half
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _short(value: float) -> str:
    """A step on the axis: 1500 as 1.5k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
