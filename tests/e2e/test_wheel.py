"""OmniLoom as a user gets it: a wheel, installed, in a folder whose own modules are called as our folders are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cluster_fixture import start_cluster

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FOLDERS = ("pipelines", "stages", "models", "infra")
# Whoever imports one of the user's modules leaves a mark, and gets what only the user's has.
MINE = """
import pathlib
pathlib.Path(__file__).with_suffix(".imported").touch()
OWNER = "the user"
"""


def sources() -> list[str]:
    """The files of the tree that git knows or would take."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).is_file()]


def shipped() -> set[str]:
    """What a wheel has to hold: every module, and every file that our modules read beside them."""
    ours = {name for name in sources() if name.split("/")[0] in FOLDERS and not name.endswith(".md")}
    return {f"omniloom/{name}" for name in ours} | {name for name in sources() if name.startswith("omniloom/")}


@dataclass(frozen=True)
class Installed:
    """`python` is of a venv where the wheel is installed and nothing of the checkout can be imported; `folder` is the
    user's, with modules and packages called `models`, `stages`, `infra`, `pipelines`."""

    python: Path
    folder: Path
    wheel: Path
    sdist: Path

    def call(self, *command: str | Path, seconds: float = 300, **env: str) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"} | env,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def omniloom(self, *arguments: str | Path, **env: str) -> str:
        return self.call(self.python.with_name("omniloom"), *arguments, **env)

    def run(self, code: str, *arguments: str) -> str:
        """Run a script of the user's own folder, as `python script.py` does: the folder is first on the path."""
        (self.folder / "script.py").write_text(code)
        return self.call(self.python, "script.py", *arguments)

    def imported(self) -> list[str]:
        """The user's modules that something has imported."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*.imported"))


def build(folder: Path) -> tuple[Path, Path]:
    """The source distribution of the tree, and the wheel that is made from it."""
    tree, made = folder / "tree", folder / "made"
    for name in sources():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    made.mkdir()
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(made)], cwd=tree, check=True, capture_output=True, timeout=120)
    (sdist,) = made.glob("*.tar.gz")
    wheel = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(made), str(sdist)]
    subprocess.run([sys.executable, "-m", "pip", *wheel], check=True, timeout=120)
    (wheel,) = made.glob("*.whl")
    return wheel, sdist


def settings(folder: Path) -> dict:
    """A text pipeline of seconds: all stages that a text model has."""
    return {
        "name": "tiny",
        "storage": "runs/tiny",
        "tracking": {"system_metrics": False},
        "cluster": {"num_cpus": 2, "object_store_bytes": 200 << 20},
        "stages": {
            "ingest": {
                "sources": [{"kind": "text", "uri": "texts"}],
                "chunk_chars": 120,
                "splits": {"train": 0.6, "validation": 0.2, "test": 0.2},
            },
            "pretokenize": {"vocab_size": 300, "workers": 1},
            "train": {
                "objectives": {},
                "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16},
                "packing": {"length": 96, "window_rows": 8, "mixture": {"text": 1}},
                "batch_rows": 4,
                "steps": 6,
                "validation_rows": 2,
                "workers": {"count": 1, "log_every": 2},
            },
            "evaluate": {"texts": 4, "cpus": 1},
        },
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    base = tmp_path_factory.mktemp("installed")
    wheel, sdist = build(base)
    venv.create(base / "venv")
    python = base / "venv/bin/python"
    (library,) = (base / "venv/lib").glob("python*/site-packages")
    # The other packages: folders that a .pth names are read, their own .pth files (an editable install's) are not.
    (library / "others.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    install = ["--python", str(python), "install", "-q", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=120)
    folder = base / "user"
    for name in ("models.py", "infra.py", "stages/__init__.py", "pipelines/__init__.py", "pipelines/config.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(MINE)
    (folder / "texts").mkdir()
    for n in range(40):
        (folder / "texts" / f"{n}.txt").write_text(
            "\n\n".join(f"Chapter {i}. A square moves {n * i % 97} steps, number {n}." for i in range(6))
        )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings(folder)))
    return Installed(python, folder, wheel, sdist)


@pytest.fixture(scope="module")
def finished(installed) -> str:
    """What `omniloom run` of a whole pipeline prints in the user's folder."""
    return installed.omniloom("run", "tiny.yaml")


def test_a_wheel_holds_the_one_package_and_what_it_reads(installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
        info = {name.partition("/")[2] for name in wheel.namelist()} - {name.partition("/")[2] for name in names}
        top = next(name for name in wheel.namelist() if name.endswith("top_level.txt"))
        assert wheel.read(top).decode().split() == ["omniloom"]
    assert names == shipped()
    assert {"omniloom/pipelines/presets/demo.yaml", "omniloom/stages/reporting/report.html"} <= names
    assert {"METADATA", "entry_points.txt"} <= info
    with tarfile.open(installed.sdist) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "setup.py", "README.md", "pipelines/presets/demo.yaml"} <= held


def test_imports_give_the_users_modules_and_ours_side_by_side(installed):
    code = """
import models, infra, stages, pipelines.config
print(*(module.OWNER for module in (models, infra, stages, pipelines.config)), sep=",")
from omniloom import OmniLoom, load_official, run
import omniloom.models.tokenizer, omniloom.pipelines.config
print(omniloom.models.__file__, omniloom.pipelines.config.__file__, sep="\\n")
"""
    owners, *ours = installed.run(code).splitlines()
    assert owners.split(",") == ["the user"] * 4
    library = installed.python.parents[1]
    assert all(Path(path).is_relative_to(library) for path in ours), ours
    for mark in installed.folder.rglob("*.imported"):
        mark.unlink()


def test_plan_of_a_preset_and_the_schema(installed):
    planned = json.loads(installed.omniloom("plan", "demo", "--json"))
    assert {stage["reason"] for stage in planned["stages"]} == {"never ran"}
    assert "demo" in installed.omniloom("presets") and json.loads(installed.omniloom("schema"))["properties"]
    assert installed.imported() == []


def test_a_whole_pipeline_runs_in_the_users_folder(installed, finished):
    assert "tiny: ran ingest, pretokenize, train, evaluate" in finished
    manifests = [
        json.loads(path.read_text()) for path in installed.folder.glob("runs/tiny/artifacts/*/*/manifest.json")
    ]
    assert {manifest["stage"] for manifest in manifests} == {"ingest", "pretokenize", "train", "evaluate"}
    assert {manifest["code"] for manifest in manifests} == {None}, "the checkout ran, not the wheel"
    assert all(manifest["packages"]["omniloom"] for manifest in manifests if "omniloom" in manifest["packages"])
    assert b"<html" in next(installed.folder.glob("runs/tiny/artifacts/evaluate/*/report.html")).read_bytes().lower()
    written = installed.omniloom("sample", "tiny.yaml", "--text", "--prompt", "Chapter")
    assert written.startswith("Chapter")
    assert installed.imported() == []


def test_a_registered_model_loads_beside_the_users_models(installed, finished):
    code = """
import sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
import models
assert models.OWNER == "the user"
model = mlflow.pyfunc.load_model("models:/tiny/1")
rows = pandas.DataFrame([{"prompt": "Chapter", "task": "text_to_text"}])
print(model.predict(rows, params={"max_new_tokens": 4, "seed": 1})["text"][0] is not None)
print(sys.modules["omniloom.models.model"].__file__)
"""
    database = installed.folder / "runs/tiny/mlflow.db"
    answered, path = installed.run(code, f"sqlite:///{database}").splitlines()[-2:]
    assert answered == "True" and Path(path).is_relative_to(installed.folder / "runs/tiny")
    assert path.endswith("/code/omniloom/models/model.py"), "the code that the model was registered with"
    assert installed.imported() == ["models.imported"], "imported by the script itself, and nothing else by anybody"
    (installed.folder / "models.imported").unlink()


WORKERS = """
import sys
from omniloom.infra import cluster
cluster.connect(sys.argv[1], num_cpus=1, object_store_bytes=200 << 20)
import ray

@ray.remote
def where():
    import models
    import omniloom.models
    return omniloom.models.__file__, models.OWNER

print(*ray.get(where.remote()), sep="\\n")
cluster.shutdown()
"""


def test_workers_of_a_local_ray_import_ours_and_the_users(installed):
    ours, owner = installed.run(WORKERS, "local").splitlines()[-2:]
    assert Path(ours).is_relative_to(installed.python.parents[1]) and owner == "the user"
    (installed.folder / "models.imported").unlink()


def test_a_submitted_job_ships_the_installed_tree(installed, tmp_path):
    """The cluster's own interpreter has no OmniLoom: what the job and its workers import came with the job."""
    bare = tmp_path / "bare"
    shutil.copytree(installed.python.parents[1], bare, symlinks=True)
    (library,) = bare.glob("lib/python*/site-packages")
    shutil.rmtree(library / "omniloom")
    env = {"OMNILOOM_PYTHON": str(bare / "bin/python")}
    with start_cluster(tmp_path / "logs", nodes=1, num_cpus=2, python=bare / "bin/python", env=env) as cluster:
        address, store = cluster.dashboard, tmp_path / "store"
        log = installed.omniloom(
            "submit", "tiny.yaml", f"storage={store}", "--until", "pretokenize", "--address", address, **cluster.env
        )
    assert "succeeded" in log and "tiny: ran ingest, pretokenize" in log, log
    manifests = [json.loads(path.read_text()) for path in store.glob("artifacts/*/*/manifest.json")]
    assert {manifest["stage"]: manifest["code"] for manifest in manifests} == {"ingest": None, "pretokenize": None}
    assert installed.imported() == []
