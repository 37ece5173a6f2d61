"""MLflow's pages and the report of a run, in Chromium, as `omniloom ui` serves them: what must be there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import psutil
import pytest
import small_pipeline
from browser import Page, browser, needs_browser

from omniloom.infra.tracking import resolve_tracking
from omniloom.pipelines.config import load
from omniloom.pipelines.plan import make_plan

pytestmark = [pytest.mark.slow, needs_browser]
OMNILOOM = Path(sys.executable).with_name("omniloom")
SHOTS = os.environ.get("OMNILOOM_SHOTS")  # a folder for pictures of the pages, to look at
EVALUATE = {
    "reconstructions": 4,
    "drawings": 4,
    "captions": 2,
    "texts": 2,
    "num_steps": 2,
    "class_examples": 2,
    "cpus": 1,
    "gate": {"recon_psnr_image": {"min": 1}},
}


def ran(config: Path, *overrides: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(OMNILOOM), "run", str(config), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A pipeline that ran, and ran again with another field of its evaluation."""
    config = small_pipeline.write(tmp_path_factory.mktemp("pages"), evaluate=EVALUATE)
    ran(config)
    ran(config, "stages.evaluate.captions=3")
    return config


@pytest.fixture(scope="module")
def client(config) -> mlflow.MlflowClient:
    loaded = load(str(config))
    return mlflow.MlflowClient(resolve_tracking(loaded.tracking, loaded.storage).uri)


@pytest.fixture(scope="module")
def served(config, client) -> Iterator[str]:
    """The address that `ui` prints. The server is one process, and ends well on Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [str(OMNILOOM), "ui", str(config), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        yield line.split()[-1]
        assert psutil.Process(process.pid).children(recursive=True) == []
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def page(served) -> Iterator[Page]:
    with browser(1440, 1000) as page:
        yield page


def open_(page: Page, address: str, words: str, name: str) -> str:
    """The text of a page on which the words have come."""
    page.open("about:blank")
    page.open(address, f"document.body && document.body.innerText.includes({words!r})", 90)
    if SHOTS:
        page.shoot(Path(SHOTS) / f"{name}.png")
    return page.text


def run_named(client: mlflow.MlflowClient, name: str):
    (experiment,) = [found for found in client.search_experiments() if found.name == "omniloom"]
    found = client.search_runs([experiment.experiment_id], max_results=100)
    return next(run for run in reversed(found) if run.info.run_name == name)


def base(address: str, *path: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}/#/{'/'.join(path)}?workflowType=machine_learning"


def test_the_printed_page_lists_the_runs_by_what_changed(page, served):
    text = open_(page, served, "squares: first run", "runs")
    assert "squares: evaluate.captions 2 -> 3" in text and "Model training" in text and "Run Name" in text
    assert "ingest (" in text, "the row shows its data"
    hidden = page.run("!document.querySelector('[data-assistant-ui] textarea')")
    assert hidden and "Set up" not in text, "the assistant waits to be asked for"


def test_a_training_has_its_charts_in_sections_and_its_pictures(page, served, client):
    run = run_named(client, "train")
    where = ("experiments", run.info.experiment_id, "runs", run.info.run_id)
    sections = ("gradients", "pictures", "throughput", "train", "validation", "versus_seen")
    open_(page, base(served, *where, "model-metrics"), sections[-1], "train-charts")
    for name in sections:  # which come one by one
        page.wait(f"document.body.innerText.split('\\n').includes({name!r})", 60)
    lines = page.text[page.text.index("Auto-refresh") :].splitlines()
    assert [line for line in lines if line in sections] == list(sections), "in order, each with its own charts"
    assert "grad_norm" in lines
    page.wait("document.querySelectorAll('.js-plotly-plot path.js-line').length >= 4", 60)
    page.click("gradients")  # which folds it: what is below comes into view
    page.wait("document.body.innerText.includes('pictures/samples')", 60)
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    assert len(pictures) > 0 and all("pictures~samples+step+" in path for path in pictures)
    page.wait("[...document.querySelectorAll('img')].filter(i => i.naturalWidth > 16 && i.height > 60).length > 0", 60)
    if SHOTS:
        page.shoot(Path(SHOTS) / "train-pictures.png")
    text = open_(page, base(served, *where), "Registered models", "train")
    assert "squares v1" in text.replace("\n", " "), "the model that came of it"
    assert "omniloom.logs" in text and "Finished" in text


def test_a_run_says_what_came_of_it(page, served, client):
    run = run_named(client, "squares: evaluate.captions 2 -> 3")
    where = ("experiments", run.info.experiment_id, "runs", run.info.run_id)
    text = open_(page, base(served, *where), "Gate passed.", "run")
    first = run_named(client, "squares: first run")
    assert len(client.get_run(first.info.run_id).outputs.model_outputs) == 1, "its row shows the model"
    assert "omniloom sample /" in text and "evaluation/recon_psnr_image" in text and "evaluate.captions" in text


def test_a_model_is_registered_with_version_alias_and_schema(page, served, client):
    text = open_(page, base(served, "models", "squares"), "Version 1", "model")
    assert "@ champion" in text or "champion" in text
    text = open_(page, base(served, "models", "squares", "versions", "1"), "Inputs (3)", "version")
    assert "champion" in text and "Outputs (2)" in text and "Gate passed" in text and "Figures" in text
    run = run_named(client, "evaluate")
    text = open_(page, base(served, "experiments", run.info.experiment_id, "models"), "Ready", "models")
    assert "squares" in text and "v1" in text and "Not registered" not in text


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_of_the_run(config, tmp_path, width):
    plan = make_plan(load(str(config), ["stages.evaluate.captions=3"]))
    report = plan["evaluate"].artifact.file("report.html")
    with browser(width, 900) as page:
        page.open(f"file://{report}")
        if SHOTS:
            page.shoot(Path(SHOTS) / f"report-{width}.png", whole=True)
        assert page.overflowing() == [] and not page.errors
        text = page.text
        assert text.index("Gate passed") < text.index("recon_psnr_image") and page.run("innerWidth") == width
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
