"""The wall: every training's pictures by step on one page that needs nothing else, and is fast with many."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from browser import browser, needs_browser
from PIL import Image

from omniloom.infra.artifacts import ArtifactStore
from omniloom.stages.reporting import report
from omniloom.stages.reporting.wall import build


def grids(count: int, pictures: int = 16) -> list[bytes]:
    """Grids of pictures that tell their number by their brightness."""
    rng = np.random.default_rng(0)
    return [
        report.grid(
            [(rng.integers(0, 40, (32, 32, 3)) + 200 * number // count).astype(np.uint8) for _ in range(pictures)], 4
        )
        for number in range(count)
    ]


def put(root: Path, number: int, pictures: list[bytes], steps: list[int], **config) -> None:
    """A training of an ingest, and its evaluation, as a store has them."""

    def publish(stage: str, fingerprint: str, inputs: dict, metrics: dict, files: dict[str, bytes]) -> None:
        folder = root / "artifacts" / stage / fingerprint
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "config": config if stage == "train" else {},
            "inputs": inputs,
            "metrics": metrics,
            "pipeline": "mine",
            "times": {"ended": f"2026-11-28T00:00:{number % 60:02d}", "ended_unix": float(number), "seconds": 60.0},
            "files": [{"path": name, "bytes": len(content), "sha256": ""} for name, content in files.items()],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))

    rows = [{"step": step, "loss": 9 / (1 + step), "validation_text_loss": 8 / (1 + step)} for step in steps]
    files = {f"report/steps/samples-{step:09d}.png": png for step, png in zip(steps, pictures, strict=True)}
    files["report/history.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    print_ = f"{number:064x}"
    publish("ingest", "a" * 64, {}, {"records": 10}, {})
    publish("train", print_, {"ingest": "a" * 64}, {"steps": steps[-1]}, files)
    publish("evaluate", print_, {"train": print_}, {"gate_passed": 1, "bits_per_byte": 2.5}, {})


def told(page: Path) -> list[dict]:
    return json.loads(re.search(r"const runs = (\[.*\]);\n", page.read_text())[1])


def test_a_page_shows_what_changed_what_it_was_made_of_and_every_step(tmp_path):
    pictures = grids(5, 4)
    put(tmp_path / "st", 1, pictures[:3], [10, 20, 30], lr=0.1, note="</script>")
    put(tmp_path / "st", 2, pictures, [7, 14, 21, 28, 35], lr=0.2, note="</script>")
    page, count = build(ArtifactStore(str(tmp_path / "st")).all(), tmp_path / "wall")
    first, second = told(page)
    assert count == 2 and page.read_text().count("</script>") == 1, "no text of a run ends the page's script"
    assert (first["changed"], second["changed"]) == ("first run", "train.lr 0.1 -> 0.2")
    assert first["steps"] == [10, 20, 30] and second["figures"] == {"bits_per_byte": 2.5}
    assert second["lineage"] == ["ingest aaaaaaaa", f"train {2:064x}"[:14]]
    assert [point[0] for point in second["curves"]["loss"]] == [7, 14, 21, 28, 35]
    with Image.open(page.parent / second["sheet"]) as sheet:
        cell, columns = second["cell"], second["columns"]
        shades = [
            np.asarray(
                sheet.crop(
                    (
                        n % columns * cell[0],
                        n // columns * cell[1],
                        *((n % columns + 1) * cell[0], (n // columns + 1) * cell[1]),
                    )
                )
            ).mean()
            for n in range(5)
        ]
    expected = [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).mean() for png in pictures]
    assert shades == pytest.approx(expected, abs=3), "each step's picture in its place"


def test_sheets_are_made_once_and_an_empty_storage_has_an_empty_page(tmp_path):
    put(tmp_path / "st", 1, grids(2, 4), [1, 2])
    store = ArtifactStore(str(tmp_path / "st"))
    page, _ = build(store.all(), tmp_path / "wall")
    sheet = page.parent / told(page)[0]["sheet"]
    before = sheet.stat().st_mtime_ns
    build(store.all(), tmp_path / "wall")
    assert sheet.stat().st_mtime_ns == before
    empty, count = build(ArtifactStore(str(tmp_path / "none")).all(), tmp_path / "empty")
    assert (count, told(empty)) == (0, [])


_STEP = """new Promise(done => { const began = performance.now(); slider.value = %d;
slider.dispatchEvent(new Event("input")); requestAnimationFrame(() => requestAnimationFrame(
() => done(performance.now() - began))); })"""


@pytest.mark.slow
@needs_browser
def test_a_hundred_trainings_open_in_a_second_and_move_at_once(tmp_path):
    pictures, steps = grids(50), [20 * (number + 1) for number in range(50)]
    for number in range(100):
        put(tmp_path / "st", number + 1, pictures, steps, lr=number)
    page, count = build(ArtifactStore(str(tmp_path / "st")).all(), tmp_path / "wall")
    assert count == 100
    with browser(1280, 900) as tab:
        opening = []
        for _ in range(3):
            tab.open(page.as_uri(), "window.wallReady")
            opening.append(tab.run("window.wallReady"))
        shown = tab.run("[...visible].filter(run => run.image).length")
        assert shown >= 8, "what is in view has its pictures"
        times = sorted(tab.run(_STEP % at) for at in range(0, 50, 2))
        assert tab.text.startswith("The wall") and "100 trainings" in tab.text
        places = tab.run("[...new Set([...visible].map(run => run.picture.style.backgroundPosition))]")
        assert len(places) == 1 and places != ["0% 0%"], "all move together"
        print(f"open {min(opening):.0f} ms, step median {times[12]:.1f} ms, longest {times[-1]:.1f} ms")
        assert min(opening) < 1000 and times[12] < 50
        assert not tab.errors and all(address.startswith("file:") for address in tab.requests)
        tab.shoot(tmp_path / "wall.png")
        tab.resize(390, 844)
        assert not tab.overflowing(), "nothing is cut on a phone"
        tab.shoot(tmp_path / "wall390.png")
