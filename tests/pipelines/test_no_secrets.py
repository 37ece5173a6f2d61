"""Secrets in every field that may hold one: none comes out of any command, record, artifact or tracking store."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from omniloom.infra import secrets
from omniloom.infra.errors import InputError
from omniloom.infra.tracking import Tracker, resolve_tracking
from omniloom.pipelines import doctor, jobs, tables
from omniloom.pipelines.config import load
from omniloom.pipelines.fingerprint import canonical, fingerprint
from omniloom.pipelines.plan import make_plan

USER, PASSWORD, SIGNATURE, VALUE = "planteduser", "plantedpassword", "plantedsignature", "plantedvalue"
PLANTED = (USER, PASSWORD, SIGNATURE, VALUE)


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch):
    monkeypatch.setattr(secrets, "_hidden", set())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def uri(kind: str, place: str, password: str = PASSWORD, signature: str = SIGNATURE) -> str:
    return f"{kind}://{USER}:{password}@{place}?X-Amz-Signature={signature}&token={signature}"


def planted(folder: Path, **credentials: str) -> Path:
    """A config with a secret in every field that takes a URI, and in the workers' environment."""
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts/a.txt").write_text("a square is red")
    at = partial(uri, **credentials)
    perceptual = {"vgg": at("https", "host/vgg.safetensors"), "heads": at("s3", "bucket/heads.pth")}
    file = folder / "planted.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "planted",
                "storage": str(folder / "st"),
                "data": at("s3", "bucket/data"),
                "tracking": {
                    "uri": at("http", "127.0.0.1:1"),
                    "request_seconds": 1,
                    "flush_seconds": 1,
                    "system_metrics": False,
                },
                "cluster": {"num_cpus": 2, "env": {"AWS_SECRET_ACCESS_KEY": VALUE, "OTHER": f"prefix {VALUE}"}},
                "stages": {
                    "ingest": {"sources": [{"kind": "text", "uri": str(folder / "texts")}]},
                    "tokenizer_image": {
                        "model": {"architecture": "rae", "encoder": at("s3", "bucket/dinov2"), "patch_size": 16},
                        "perceptual": perceptual,
                        "loss": {"perceptual_weight": 0.1, "style_weight": 0.1},
                        "data": {"kinds": ["image"], "sizes": [32]},
                    },
                    "pretokenize": {
                        "text_tokenizer": at("https", "host/tokenizer.json"),
                        "features": at("s3", "bucket/feat"),
                    },
                    "train": {"init_from": at("s3", "bucket/llama"), "diffusion": {"predict": "x"}},
                },
            }
        )
    )
    return file


def clean(text: str) -> str:
    assert not [word for word in PLANTED if word in text], text
    return text


def test_what_commands_print(tmp_path):
    file = str(planted(tmp_path))
    with pytest.raises(InputError) as refused:  # nothing lies at the planted addresses
        make_plan(load(file))
    clean(secrets.redact(str(refused.value)))
    config = load(file, [f"stages.{name}=null" for name in load(file).stages.configured() if name != "ingest"])
    plan = make_plan(config)
    console = Console(width=300, record=True, file=open(os.devnull, "w"))
    console.print(tables.plan_table(plan, {}))
    console.print(tables.status_table(plan.config, tables.status_rows(plan)))
    assert "http://***@127.0.0.1:1" in clean(console.export_text())
    clean(json.dumps(plan.to_dict()))
    clean(json.dumps(doctor._tracking(config)))


@pytest.mark.parametrize(
    "override",
    [
        f"cluster.env={{A: [{VALUE}",
        f"cluster={{env: {{A: [{VALUE}]}}}}",
        f"cluster.env={{A: [plain, {VALUE}]}}",
        f"tracking.uri=nosql://{USER}:{PASSWORD}@host/db&token={SIGNATURE}]",
        f"tracking.uri=ftp://{USER}:{PASSWORD}@host/x?sig={SIGNATURE}",
        f"tracking.register_as=http://{USER}:{PASSWORD}@h/x",
        f"tracking.artifact_root=sftp://{USER}:{PASSWORD}@host/x",
        f"stages.train.batch_rows=s3://{USER}:{PASSWORD}@bucket",
        f"storage=nosuch://{USER}:{PASSWORD}@host/x",
        f"stages.ingest.sources=[{{kind: text, uri: 'http://{USER}:{PASSWORD}@127.0.0.1:1/x?sig={SIGNATURE}'}}]",
    ],
)
@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_what_refusals_say(tmp_path, monkeypatch, capsys, override, debug):
    from omniloom.pipelines import cli

    monkeypatch.setattr(sys, "argv", ["omniloom", "plan", str(planted(tmp_path)), override, *debug])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(InputError if debug else SystemExit) as ended:
        cli.main()
    if debug:
        sys.excepthook(ended.type, ended.value, ended.tb)
    shown = capsys.readouterr()
    assert debug or ended.value.code == 2
    assert ("Traceback" if debug else "error: ") in clean(shown.out + shown.err)


def test_fingerprints_and_manifests(tmp_path):
    """Nothing of a password or a signature is in them, so neither changes what is up to date."""
    first = load(str(planted(tmp_path)))
    second = load(str(planted(tmp_path, password="another", signature="renewed")))
    for name in first.stages.configured():
        one, two = getattr(first.stages, name), getattr(second.stages, name)
        clean(json.dumps(canonical(one, name)))
        assert fingerprint(name, 1, one, {}) == fingerprint(name, 1, two, {})


def test_what_tracking_keeps_while_it_waits(tmp_path, caplog):
    config = load(str(planted(tmp_path)))
    settings = resolve_tracking(config.tracking, config.storage)
    run = Tracker(settings).start_pipeline("planted", config.model_dump(mode="json"), {"from": uri("s3", "bucket/x")})
    stage = run.child("train", {"reason": uri("s3", "bucket/y")}, canonical(config.stages.train, "train"))
    stage.log_input("data", uri("s3", "bucket/z"), "f" * 64)
    stage.log_text(f"ConnectionError: {uri('https', 'host/x')} with {VALUE}", "error.txt")
    assert not stage.finish() and not run.finish()
    files = [path for path in (tmp_path / "st").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".jsonl", ".json", ".txt"}
    for path in files:
        clean(path.read_text())
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("omniloom")]
    assert "is away" in clean("\n".join(ours))
    clean(repr(run) + str(run.url(0.1)))


def test_what_a_job_tells_the_dashboard(tmp_path, monkeypatch):
    sent = {}

    class Client:
        def submit_job(self, **job):
            sent.update(job)
            return "job-1"

    monkeypatch.setattr(jobs, "_client", lambda address: Client())
    overrides = [f"cluster.env={{TOKEN: {VALUE}}}", f"data={uri('s3', 'bucket/other')}", "seed=3"]
    jobs.submit(str(planted(tmp_path)), overrides, "http://127.0.0.1:8265")
    told = clean(json.dumps({name: sent[name] for name in ("entrypoint", "metadata")}))
    assert "cluster.env=***" in told and "seed=3" in told


class Locked(http.server.SimpleHTTPRequestHandler):
    """Files for who gives the planted user and password."""

    def do_GET(self) -> None:
        import base64

        known = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {known}":
            self.send_error(401)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_) -> None:
        return


@pytest.fixture
def locked(tmp_path):
    """The address of a file of texts behind a password, with a signature in its query."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web/lines.jsonl").write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(5)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Locked, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"{USER}:{PASSWORD}@127.0.0.1:{server.server_port}/lines.jsonl?X-Amz-Signature={SIGNATURE}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "away"])
def test_a_whole_run(tmp_path, store, locked):
    """A run that reads, and one that fails: MLflow's database and files, artifacts, records and the terminal."""
    omniloom = Path(sys.executable).with_name("omniloom")
    file = planted(tmp_path)
    config = yaml.safe_load(file.read_text())
    config["stages"]["ingest"]["sources"].append({"kind": "jsonl", "uri": f"http://{locked}", "text_field": "text"})
    if store == "sqlite":
        config["tracking"] = {"system_metrics": False}
    file.write_text(yaml.safe_dump(config))
    outcomes, everything = [], ""
    for command in (
        ("run", "--until", "ingest"),
        ("run", "--until", "ingest", f"cluster.env.MORE={VALUE}", "stages.ingest.limits.max_bytes=3"),
        ("plan",),
        ("plan", "--json"),
        ("status",),
        ("status", "--json"),
        ("doctor",),
    ):
        done = subprocess.run(
            [omniloom, command[0], str(file), *command[1:]], capture_output=True, text=True, timeout=300
        )
        outcomes.append(done.returncode)
        everything += done.stdout + done.stderr
    assert outcomes[0] == 0, everything
    clean(everything)
    files = [path for path in (tmp_path / "st").rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in files)
    assert any(path.name == "mlflow.db" for path in files) == (store == "sqlite")
    for path in files:
        assert not [word for word in PLANTED if word.encode() in path.read_bytes()], path
