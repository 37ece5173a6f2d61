"""What the report tells of a model's origins, and that all of it is to be seen on a desk and on a phone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import browser, needs_browser

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.data.media.images import encode_png
from omniloom.stages.data.media.videos import encode_mp4
from omniloom.stages.reporting import ancestry, lineage, origins
from omniloom.stages.reporting.report import grid, render, tiles


@pytest.fixture
def made(tmp_path):
    """made(stage, fingerprint, inputs, **manifest) -> a published artifact in one store."""

    def publish(stage: str, fingerprint: str, inputs: dict[str, str], **manifest) -> Artifact:
        folder = tmp_path / "st" / "artifacts" / stage / fingerprint
        times = {"seconds": 7200.0, "ended": "2026-11-28T00:00:00+00:00", "ended_unix": 1.0}
        whole = {"inputs": inputs, "config": {}, "metrics": {}, "times": times, "files": [], **manifest}
        storage.write_json(str(folder / "manifest.json"), whole)
        return Artifact(stage, fingerprint, str(folder), whole)

    return publish


@pytest.fixture
def chain(made):
    corpus = made(
        "ingest",
        "a" * 8,
        {},
        config={"sources": [{"kind": "image_folder", "name": "a_very_long_name_of_photos"}]},
        metrics={"records": 3, "records_image": 3, "records_train_image": 3, "records_train": 3, "rejects": 2},
        reserved={"cpus": 2.0, "gpus": 0.5},
    )
    made("tokenizer_image", "b" * 8, {"ingest": "a" * 8}, metrics={"steps": 60})
    model = made(
        "train", "c" * 8, {"tokenizer_image": "b" * 8, "ingest": "a" * 8}, config={"lr": 0.1, "deep": {"x": 1}}
    )
    storage.write_bytes(
        corpus.file("rejects", "rejects.jsonl"),
        b'{"source": "photos", "path": "x.png", "code": "undecodable", "message": "m"}\n' * 2,
    )
    return corpus, model


def test_the_whole_lineage_is_found_and_drawn(chain):
    corpus, model = chain
    found = ancestry.ancestors([model])
    assert [artifact.stage for artifact in found] == ["ingest", "tokenizer_image", "train"]
    assert ancestry.store_of(model).find("ingest", "a" * 8).manifest == corpus.manifest
    drawn = lineage.draw(found)
    assert (
        drawn.count("class='edge'") == 4 and "60 steps" in drawn and "a_very_long_nam\N{HORIZONTAL ELLIPSIS}" in drawn
    )


def test_configs_are_held_against_earlier_ones(chain, made):
    _, model = chain
    earlier = made("train", "d" * 8, dict(model.manifest["inputs"]), config={"lr": 0.2, "deep": {"x": 1}, "gone": True})
    (section,) = origins._configs(ancestry.ancestors([model]), {"the last run": earlier, "the champion": None})
    assert section["tables"][0]["rows"] == [["train.lr", "0.2", "0.1"], ["train.gone", "true", "none"]]
    (alone,) = origins._configs(ancestry.ancestors([model]), {})
    assert "no earlier run" in alone["text"] and "tables" not in alone


def test_costs_and_rejects_are_told(chain):
    corpus, model = chain
    (costs,) = origins._costs(ancestry.ancestors([model]))
    rows = {row[0]: row[1:4] for row in costs["tables"][0]["rows"]}
    assert rows["ingest"] == [7200.0, 4.0, 1.0] and rows["train"][1:] == [None, None]
    assert rows["together"] == [21600.0, 4.0, 1.0]
    assert origins._rejects(corpus) == [("undecodable (the first: x.png)", 2)]


def test_sources_without_a_name_are_drawn_by_their_own(made):
    sources = [{"kind": "image_folder", "name": None}, {"kind": "text", "name": None}, {"kind": "text", "name": "t"}]
    drawn = lineage.draw([made("ingest", "a" * 8, {}, config={"sources": sources})])
    assert "None" not in drawn and drawn.count("class='box'") == 4
    for name in ("image_folder_0", "text_1", ">t<"):
        assert name in drawn


def test_a_sheet_says_where_its_pictures_are():
    """By the rule of CSS: a position of p% puts p% of the picture's rest at p% of the room's."""
    import io

    from PIL import Image

    pictures = [np.full((20, 30, 3), 10 * n, np.uint8) for n in range(1, 8)]
    png = grid(pictures, 3, [f"picture {n}" for n in range(7)])
    found, sheet = tiles(png), Image.open(io.BytesIO(png))
    assert [caption for _, caption in found["places"]] == [f"picture {n}" for n in range(7)]
    width, height = (int(side) for side in found["ratio"].split(" / "))
    assert found["size"] == f"{100 * sheet.width / width:.3f}% {100 * sheet.height / height:.3f}%"
    for number, (place, _) in enumerate(found["places"], 1):
        left, top = (float(part.rstrip("%")) / 100 for part in place.split())
        corner = round(left * (sheet.width - width)), round(top * (sheet.height - height))
        cut = sheet.crop((*corner, corner[0] + width, corner[1] + height))
        assert np.unique(np.asarray(cut)).tolist() == [10 * number]
    assert tiles(grid(pictures, 3)) is None and tiles(encode_png(pictures[0])) is None


@pytest.mark.slow
@needs_browser
def test_nothing_is_cut_on_a_desk_and_on_a_phone_and_videos_play(chain, tmp_path):
    _, model = chain
    found = ancestry.ancestors([model])
    video = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), dtype=np.uint8)
    cats = [f"a cat {n}" for n in range(16)]
    sections = [
        {
            "title": "Metrics",
            "tables": [{"columns": ["figure", "value", "meaning"], "rows": [["m" * 60, 0.5, "w " * 90]]}],
        },
        {"title": "Videos", "cards": [{"mp4": encode_mp4(video, 8), "lines": ["moving left"]}]},
        {
            "title": "Described",
            "cards": [{"png": encode_png(video[0]), "lines": ["true: a cat", "written: a dog"]}] * 9,
        },
        {"title": "Lineage", "svg": lineage.draw(found)},
        {"title": "Grid", "images": [{"png": encode_png(np.zeros((40, 2000, 3), np.uint8)), "caption": "wide"}]},
        {
            "title": "Drawn",
            "images": [{"png": grid(list(video), 8, cats), "caption": "drawn"}],
        },
        *origins._configs(found, {}),
        *origins._costs(found),
        {"title": "Curves", "curves": [{"title": "loss", "series": {"loss": [(1, 2.0), (2, 1.0)]}}]},
    ]
    page = Path(tmp_path / "report.html")
    verdict = {"text": "Gate passed.", "passed": True}
    page.write_text(render({"title": "mine", "verdict": verdict, "facts": {"seed": 1}, "sections": sections}))
    with browser(1280, 900) as tab:
        tab.open(page.as_uri())
        assert tab.text.index("Gate passed.") < tab.text.index("seed"), "the verdict comes first"
        tab.wait("document.querySelector('video').currentTime > 0", 20)
        assert tab.run("document.querySelector('video').videoWidth") == 64
        for width, height in ((1280, 900), (390, 844)):
            tab.resize(width, height)
            assert not tab.overflowing()
            drawn = tab.run(
                "[...document.querySelectorAll('.tiles figure')].map(f => [f.getBoundingClientRect().left, "
                "f.querySelector('i').clientWidth, f.innerText.trim()])"
            )
            assert [caption for _, _, caption in drawn] == cats
            assert len({left for left, _, _ in drawn}) == (1 if width == 390 else 8) and drawn[0][1] > 90
            assert tab.run("document.documentElement.scrollWidth") <= width
            tab.shoot(tmp_path / f"report{width}.png", whole=True)
        columns = tab.run(
            "new Set([...document.querySelectorAll('section')].map(s => s.getBoundingClientRect().left)).size"
        )
        assert columns == 1 and "value: 0.5" not in tab.text, "a label is drawn, and no part of what is copied"
        label = tab.run("getComputedStyle(document.querySelector('td[data-column=value]'), '::before').content")
        assert label.startswith('"value"') or "value" in label
        assert not tab.errors and not [
            address for address in tab.requests if not address.startswith(("file:", "data:"))
        ]
