"""The report: complete, self-contained, and safe with whatever text a model writes."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omniloom.stages.reporting.report import _ticks, chart, filmstrip, format_number, grid, pairs, render


class Page(HTMLParser):
    """The tags and the visible text of a page, with a check that tags are closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.text, self.images, self.links = [], [], [], []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.images += [attrs["src"]] if tag == "img" else []
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def picture(value: int = 128, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def report(**section) -> dict:
    return {"title": "demo", "sections": [{"title": "part", **section}]}


def test_all_that_is_given_is_shown():
    html = render(
        {
            "title": "demo of digits",
            "facts": {"seed": 7, "time": "4 min"},
            "headline": {"caption_accuracy": 0.97},
            "sections": [
                {
                    "title": "training",
                    "text": "how it went",
                    "curves": [
                        {"title": "loss", "series": {"text": [(0, 3.0), (10, 1.0)], "image": [(0, 2.0), (10, 0.5)]}}
                    ],
                },
                {
                    "title": "figures",
                    "metrics": {"recon_psnr_image": 24.3123},
                    "tables": [
                        {
                            "caption": "by kind",
                            "columns": ["kind", "records"],
                            "rows": [["image", 1797], ["video", 400]],
                        }
                    ],
                },
                {
                    "title": "samples",
                    "images": [{"png": grid([picture()]), "caption": "drawn"}],
                    "samples": [
                        {"prompt": "once", "output": "upon a time"},
                        {"prompt": "what", "output": "a seven", "expected": "a one", "png": grid([picture()])},
                    ],
                },
            ],
        }
    )
    page = Page(html)
    text = " ".join(" ".join(page.text).split())
    for expected in (
        "demo of digits",
        "seed 7",
        "4 min",
        "0.97",
        "caption_accuracy",
        "how it went",
        "loss",
        "text 1",
        "image 0.5",
        "recon_psnr_image 24.31",
        "by kind",
        "1,797",
        "drawn",
        "upon a time",
        "a one",
    ):
        assert expected in text, (expected, text)
    assert html.count("<polyline") == 2 and len(page.images) == 2
    assert all(
        Image.open(io.BytesIO(base64.b64decode(src.partition("base64,")[2]))).format == "PNG" for src in page.images
    )


def test_nothing_is_fetched():
    html = render(
        report(
            images=[{"png": grid([picture()]), "caption": "x"}], curves=[{"title": "loss", "series": {"a": [(0, 1)]}}]
        )
    )
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in Page(html).links)
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)
    assert "prefers-color-scheme: dark" in html


@given(st.text(max_size=60))
@settings(max_examples=40, deadline=None)
def test_text_of_any_kind_stays_text(text):
    html = render(
        {
            "title": text,
            "facts": {text: text},
            "sections": [
                {
                    "title": text,
                    "text": text,
                    "samples": [{"prompt": text, "output": "<script>alert(1)</script>" + text}],
                    "curves": [{"title": text, "series": {text: [(0, 1), (1, 2)]}, "x": text, "y": text}],
                }
            ],
        }
    )
    page = Page(html)
    assert "script" not in page.open and "<script" not in html
    assert "<script>alert(1)</script>" in "".join(page.text)


@pytest.mark.parametrize(
    "wrong", [{"title": "x", "section": []}, {"sections": []}, report(image=[]), {"title": "x", "sections": [{}]}]
)
def test_an_unknown_or_missing_key_is_refused(wrong):
    with pytest.raises(ValueError, match="unknown|missing"):
        render(wrong)


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg[: svg.index("</svg>") + 6])
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in root.iter("polyline")
    ]


def test_a_line_goes_where_the_values_are():
    (line,) = polylines(chart({"loss": [(0, 4.0), (50, 2.0), (100, 0.0)]}))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1) and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2 and y0 < y2, "pixels count from the top"


def test_a_logarithmic_axis_makes_a_power_law_straight():
    (line,) = polylines(chart({"lr": [(step, 10.0**-step) for step in range(4)]}, log=True))
    falls = [b[1] - a[1] for a, b in zip(line, line[1:], strict=False)]
    assert falls == pytest.approx([falls[0]] * 3, abs=0.2)


def test_gaps_spikes_and_empty_series():
    values = [(step, 1.0) for step in range(10_000)]
    values[5_000] = (5_000, 9.0)
    (line,) = polylines(chart({"loss": values}))
    assert len(line) <= 600 and len({y for _, y in line}) == 2, "thinning keeps the spike"
    assert len(polylines(chart({"a": [(0, 1), (1, 2), (2, math.nan), (3, 1), (4, math.inf), (5, 1), (6, 2)]}))) == 2
    assert "circle" in chart({"a": [(1, 2.0)]})
    assert "no finite values" in chart({"a": [(1, math.nan)]}) and "no finite values" in chart({})


@given(st.floats(-1e12, 1e12), st.floats(0, 1e12))
def test_ticks_cover_the_range_with_few_round_numbers(low, span):
    ticks = _ticks(low, low + span)
    assert 2 <= len(ticks) <= 9 and ticks == sorted(ticks)
    if span > 1e-3 * abs(low) and span > 1e-6:
        assert ticks[0] <= low + 1e-6 * span and ticks[-1] >= low + span - 1e-6 * span


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (1234567, "1,234,567"),
        (0.93211, "0.9321"),
        (1.2e-7, "1.200e-07"),
        (24310.4, "24,310"),
        (0.0, "0"),
        (True, "yes"),
        (None, "–"),
        (math.nan, "nan"),
        ("x", "x"),
    ],
)
def test_numbers(value, text):
    assert format_number(value) == text


def test_a_grid_holds_every_picture_unsmoothed():
    images = [picture(value, 32) for value in (10, 60, 110, 160, 210)]
    sheet = np.asarray(Image.open(io.BytesIO(grid(images, columns=3))))
    assert sheet.shape[2] == 3
    for value in (10, 60, 110, 160, 210):
        assert (sheet == value).all(-1).sum() == 64 * 64, "each is enlarged to 64x64"
    captioned = Image.open(io.BytesIO(grid(images, 3, ["a long caption that takes more than one line"] + ["b"] * 4)))
    assert captioned.height > sheet.shape[0] and captioned.width > sheet.shape[1]
    with pytest.raises(ValueError, match="captions: 1 for 5"):
        grid(images, captions=["a"])
    with pytest.raises(ValueError, match="at least one"):
        grid([])


def test_pairs_and_filmstrips():
    sheet = np.asarray(Image.open(io.BytesIO(pairs([picture(10, 64)], [picture(200, 64)]))))[:, :, 0]
    assert np.argwhere(sheet == 10).max(0)[0] < np.argwhere(sheet == 200).min(0)[0]
    with pytest.raises(ValueError, match="2 for 1"):
        pairs([picture()], [picture()] * 2)
    video = np.stack([picture(value, 8) for value in range(9)])
    strip = filmstrip(video, 3)
    assert strip.shape == (8, 24, 3) and [strip[0, x, 0] for x in (0, 8, 16)] == [0, 4, 8]
    assert filmstrip(video[:1]).shape == (8, 8, 3)
