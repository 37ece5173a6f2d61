"""The demo's stages over a small corpus, with artifacts published by hand: what a run leaves, without Ray."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo_stages import NAMES

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.pipelines import cli
from omniloom.pipelines.config import PipelineConfig, load
from omniloom.pipelines.fingerprint import canonical
from omniloom.pipelines.plan import Plan, make_plan
from omniloom.pipelines.selection import Selection


@dataclass
class Workspace:
    """`corpus` has the texts; the image and the video that the demo's tokenizers ask for are empty files, of which only
    a listing is made. `storage` does not exist until something is published."""

    corpus: Path
    storage: Path
    media: Path

    def overrides(self, *more: str) -> list[str]:
        sources = f"{{kind: text, uri: {self.corpus}}}, " + ", ".join(
            f"{{kind: {kind}_folder, uri: {self.media}/{kind}}}" for kind in ("image", "video")
        )
        return [f"storage={self.storage}", f"stages.ingest.sources=[{sources}]", *more]

    def config(self, *more: str) -> PipelineConfig:
        return load("demo", self.overrides(*more))

    def plan(self, *more: str, **selection) -> Plan:
        return make_plan(self.config(*more), Selection(**selection))

    def publish(self, *names: str, overrides: tuple[str, ...] = (), content: str = "", report: str = "") -> None:
        """Publish these stages (by default all) as a run would; `content` and `report` make the files differ."""
        plan = self.plan(*overrides)
        store, published = plan.store, len(plan.store.all())
        for number, name in enumerate(names or NAMES):
            planned = plan[name]
            work = store.work_uri(name, planned.fingerprint)
            for path in ("a.bin", "b.bin", "c.bin", "d.bin"):
                storage.write_bytes(storage.join(work, "output", path), f"{name} {path} {content}".encode())
            storage.write_bytes(storage.join(work, "output", "report", "curve.jsonl"), report.encode())
            if name == "evaluate":
                storage.write_bytes(storage.join(work, "output", "report.html"), b"<html></html>")
            inputs = {read: plan[read].artifact for read in planned.inputs.values()}
            ended = 1000.0 + number + published * 10
            planned.artifact = store.publish(
                name,
                planned.fingerprint,
                work,
                {
                    "stage": name,
                    "version": planned.stage.module.VERSION,
                    "fingerprint": planned.fingerprint,
                    "config": canonical(planned.config, name),
                    "inputs": {read: artifact.fingerprint for read, artifact in inputs.items()},
                    "input_digests": {read: artifact.digest for read, artifact in inputs.items()},
                    "sources": planned.sources,
                    "outside": planned.outside,
                    "metrics": {"records": 2},
                    "code": None,
                    "packages": {},
                    "pipeline": plan.config.name,
                    "run": "by-hand",
                    "mlflow_run_id": None,
                    "times": {"started": "", "ended": "", "ended_unix": ended, "seconds": 7.0 + number},
                },
            )
            store.set_last_used(plan.config.name, planned.artifact)

    def artifact(self, name: str, *overrides: str) -> Artifact:
        return self.plan(*overrides)[name].artifact

    def files(self) -> dict[str, int]:
        """Every file with its modification time: what must not change where nothing may be written."""
        return {str(path): path.stat().st_mtime_ns for path in self.storage.rglob("*")}


@pytest.fixture
def omniloom(tmp_path, monkeypatch, capsys):
    """Calls the command in this process, in an empty folder; gives (exit code, stdout, stderr)."""
    empty = tmp_path / "cwd"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omniloom", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "one.txt").write_text("A first text.\n")
    (corpus / "two.txt").write_text("And a second one.\n")
    media = tmp_path / "media"
    for kind, name in (("image", "one.png"), ("video", "one.mp4")):
        (media / kind).mkdir(parents=True)
        (media / kind / name).touch()
    return Workspace(corpus, tmp_path / "storage", media)
