"""infra/deploy: what a cluster is started with holds against the schemas of those who read it, and fits the preset.

KubeRay's and Compose's own schemas are not kept here. Where OMNILOOM_SCHEMAS names a folder with
`ray.io_rayclusters.yaml` and `ray.io_rayjobs.yaml` (ray-project/kuberay, ray-operator/config/crd/bases) and
`compose-spec.json` (compose-spec/compose-spec, schema), they are asked too; else fields are held against those that
these files had.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jsonschema
import psutil
import pytest
import s3fs
import yaml

from omniloom.infra.cluster import NodeGroup, with_autoscaling
from omniloom.infra.nodes import Node
from omniloom.pipelines import room
from omniloom.pipelines.config import PipelineConfig, load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "infra" / "deploy"
SCHEMAS = os.environ.get("OMNILOOM_SCHEMAS")

# Fields of ray.io/v1 (kuberay at feeaf72facab, August 2026), and of a pod's template those that are used here.
POD = {
    "spec": {
        "restartPolicy": str,
        "terminationGracePeriodSeconds": int,
        "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "fsGroup": int, "seccompProfile": {"type": str}},
        "tolerations": [{"key": str, "operator": str, "effect": str}],
        "containers": [
            {
                "name": str,
                "image": str,
                "envFrom": [{"secretRef": {"name": str}}],
                "securityContext": {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}},
                "ports": [{"name": str, "containerPort": int}],
                "resources": {
                    "requests": {"cpu": str, "memory": str, "nvidia.com/gpu": str},
                    "limits": {"cpu": str, "memory": str, "nvidia.com/gpu": str},
                },
            }
        ],
    }
}
PARAMETERS = {"num-cpus": str, "dashboard-host": str}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": {"disabled", "token"}},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": {"v1", "v2"},
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "idleTimeoutSeconds": int,
    },
    "headGroupSpec": {
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
        "rayStartParams": PARAMETERS,
        "template": POD,
    },
    "workerGroupSpecs": [
        {"groupName": str, "minReplicas": int, "maxReplicas": int, "rayStartParams": PARAMETERS, "template": POD}
    ],
}
JOB = {
    "entrypoint": str,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": CLUSTER,
}


def misfits(value, schema, where="") -> list[str]:
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where}: {value!r}"]
        unknown = [f"{where}.{key}: unknown" for key in value if key not in schema]
        return unknown + [m for k, v in value.items() if k in schema for m in misfits(v, schema[k], f"{where}.{k}")]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where}: {value!r}"]
        return [m for i, v in enumerate(value) for m in misfits(v, schema[0], f"{where}[{i}]")]
    fits = value in schema if isinstance(schema, set) else type(value) is schema
    return [] if fits else [f"{where}: {value!r}"]


def read(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


CLUSTER_SPEC, JOB_SPEC = read("raycluster.yaml")["spec"], read("rayjob.yaml")["spec"]


def containers() -> list[dict]:
    groups = [CLUSTER_SPEC["headGroupSpec"], *CLUSTER_SPEC["workerGroupSpecs"]]
    return [c for group in groups for c in group["template"]["spec"]["containers"]]


def entrypoint() -> list[str]:
    """The command as it arrives: through the submitter's shell, Ray's command line and the shell of the job."""
    return shlex.split(subprocess.list2cmdline(shlex.split(JOB_SPEC["entrypoint"])))


def preset(overrides: list[str]) -> PipelineConfig:
    return load("cluster", overrides)


@pytest.mark.parametrize("name, kind, schema", [("raycluster", "RayCluster", CLUSTER), ("rayjob", "RayJob", JOB)])
def test_kuberay_knows_every_field(name, kind, schema):
    document = read(f"{name}.yaml")
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", kind)
    assert misfits(document["spec"], schema) == []
    for broken in ({"headGroupSpecs": {}}, {"rayVersion": 2.6}, {"authOptions": {"mode": "on"}}):
        assert misfits({**CLUSTER_SPEC, **broken}, CLUSTER)


@pytest.mark.skipif(not SCHEMAS, reason="OMNILOOM_SCHEMAS names no folder with KubeRay's and Compose's schemas")
@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberays_own_schema(name):
    definition = yaml.load((Path(SCHEMAS) / f"ray.io_{name}s.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    jsonschema.validate(read(f"{name}.yaml"), closed(version["schema"]["openAPIV3Schema"]))


def closed(schema):
    """As the API server reads it: a field that is not named is wrong, a quantity is a number or a text."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: closed(value) for key, value in schema.items() if key != "format"}
    if schema.get("properties") and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def test_a_job_has_the_clusters_spec():
    assert JOB_SPEC["rayClusterSpec"] == CLUSTER_SPEC
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned and CLUSTER_SPEC["rayVersion"] == pinned[1]


def test_a_job_runs_the_preset_on_its_groups():
    program, command, config, *overrides = entrypoint()
    assert (program, command, config) == ("omniloom", "run", "cluster")
    loaded = preset(overrides)
    assert loaded.tracking.uri == "http://mlflow:5000"
    groups = CLUSTER_SPEC["workerGroupSpecs"]
    asked = [group["template"]["spec"]["containers"][0]["resources"] for group in groups]
    assert loaded.cluster.autoscaling == [
        NodeGroup(nodes=group["maxReplicas"], cpus=float(size["cpu"]), gpus=float(size.get("nvidia.com/gpu", 0)))
        for group, size in zip(groups, (size["limits"] for size in asked))
    ]
    assert all(size["requests"] == size["limits"] for size in asked)
    # With the head alone there is room once the autoscaler is known, and none without.
    names, head = loaded.graph.names, (Node(0.0),)
    assert not list(room.missing(loaded, names, room.of_cluster(with_autoscaling(head, loaded.cluster)), {}))
    assert list(room.missing(loaded, names, room.of_cluster(head), {}))
    joined = with_autoscaling((*head, Node(72.0, 8.0, 2.0**39)), loaded.cluster)
    assert len(joined) == 1 + 8 + 4 and joined[1].memory


def test_pods_run_as_a_user_and_listen_where_a_cluster_does():
    groups = [CLUSTER_SPEC["headGroupSpec"], *CLUSTER_SPEC["workerGroupSpecs"]]
    for group in groups:
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    ports = {port["containerPort"] for container in containers() for port in container.get("ports", ())}
    assert ports == {6379, 8265} and CLUSTER_SPEC["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert CLUSTER_SPEC["authOptions"] == {"mode": "token"}
    assert {container["image"] for container in containers()} == {image_of_the_dockerfile()}


def test_no_secret_is_written_down():
    secret = re.compile(r"(?i)(?:password|secret_?key|access_key|token)\w*[ \t]*[:=][ \t]*([^\s$*]\S*)")
    for file in DEPLOY.iterdir():
        lines = file.read_text(encoding="utf-8").splitlines()
        said = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        assert not secret.findall(re.sub(r"\$\{[^}]*\}", "$", said)), file.name
    assert secret.findall("POSTGRES_PASSWORD: hunter2")


# The container.


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def image_of_the_dockerfile() -> str:
    found = re.search(r"-t (\S+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    assert found
    return found[1]


def test_the_container_file():
    found = instructions()
    assert {word for word, _ in found} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "HEALTHCHECK", "CMD"}
    users = [rest for word, rest in found if word == "USER"]
    assert users == ["1000"] and ("HEALTHCHECK", "NONE") in found
    assert not [rest for word, rest in found if word == "EXPOSE"]
    copied = [rest.split()[0] for word, rest in found if word == "COPY" and not rest.startswith("--from")]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert json.loads(found[-1][1])[0] == "omniloom"
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert not {"pyproject.toml", "setup.py", "omniloom", "pipelines", "stages", "models", "infra"} & set(ignored)
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version and image_of_the_dockerfile().endswith(f":{version[1]}")


def test_the_wheel_has_the_files():
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {file for pattern in data["omniloom.infra"] for file in (ROOT / "infra").glob(pattern)}
    assert set(DEPLOY.iterdir()) <= packed


# The MLflow server.


@pytest.mark.skipif(not SCHEMAS, reason="OMNILOOM_SCHEMAS names no folder with KubeRay's and Compose's schemas")
def test_composes_own_schema():
    schema = json.loads((Path(SCHEMAS) / "compose-spec.json").read_text(encoding="utf-8"))
    jsonschema.validate(read("mlflow.compose.yaml"), schema)


def test_the_mlflow_server():
    from mlflow.cli import cli

    found = read("mlflow.compose.yaml")
    services = found["services"]
    assert set(found) == {"name", "services", "volumes", "networks"}
    assert set(services) == {"mlflow", "bucket", "postgres", "objects"}
    known = {"build", "image", "restart", "depends_on", "environment", "command", "ports", "networks", "volumes"}
    for service in services.values():
        assert set(service) <= known | {"healthcheck"}
        assert set(service.get("depends_on", {})) <= set(services)
        assert set(service["networks"]) <= set(found["networks"])
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= set(found["volumes"])
    # One port, of this machine unless somebody opens it; what is behind it has no way in or out.
    assert [name for name, service in services.items() if "ports" in service] == ["mlflow"]
    assert services["mlflow"]["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]
    assert found["networks"]["inside"] == {"internal": True}
    # MLflow's own command line takes the arguments.
    program, command, *arguments = services["mlflow"]["command"]
    server = cli.commands[command]
    parsed = server.make_context("server", list(arguments), resilient_parsing=True).params
    assert program == "mlflow" and (parsed["host"], parsed["port"]) == ("0.0.0.0", 5000)
    uri = preset(["data=d", *[o for o in entrypoint() if o.startswith("tracking")]]).tracking.uri
    assert uri.removeprefix("http://") in parsed["allowed_hosts"].split(",")
    pinned = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned and f'"mlflow=={pinned[1]}"' in services["mlflow"]["build"]["dockerfile_inline"]
    compile(services["bucket"]["command"][2], "bucket", "exec")


def test_the_bucket_is_made_once(monkeypatch, s3_server):
    """Against a real S3 server: what the compose file's one-shot service runs, twice."""
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server)
    command = read("mlflow.compose.yaml")["services"]["bucket"]["command"]
    for _ in range(2):
        subprocess.run([sys.executable, *command[1:]], check=True, timeout=60)
    assert s3fs.S3FileSystem(endpoint_url=s3_server, use_listings_cache=False).exists("mlflow")


# Slurm.


def test_the_slurm_script():
    script = DEPLOY / "slurm.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, script], check=True)
    text = script.read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.+)$", text, re.M))
    workers = preset(["data=d"]).stages.train.workers
    assert int(asked["nodes"]) * int(asked["gpus-per-node"]) == workers.count * workers.gpus
    assert int(asked["cpus-per-task"]) >= int(asked["gpus-per-node"]) * workers.cpus
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    commands = re.findall(r"(?:ray start|start\[@\]\}\")(.*)", re.sub(r"\\\n\s*", " ", text))
    used = {word for command in commands for word in re.findall(r"--[a-z-]+", command)}
    assert {"--head", "--address", "--block"} <= used <= known


def test_the_slurm_script_says_what_it_wants():
    told = subprocess.run(["bash", DEPLOY / "slurm.sh"], capture_output=True, text=True)
    assert told.returncode == 2 and "CONFIG" in told.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["by itself", "by a signal"])
def test_the_slurm_script_runs(tmp_path, ends):
    """The script with Ray and a run as they are; Slurm alone is stood in for: one node, this machine, whose `srun` is a
    process here. What it started is gone when it ends, and the exit code is the run's."""
    ports = iter(free_ports(3))
    temp = tempfile.mkdtemp(prefix="ol-ray-", dir="/tmp")  # pytest's folders are too long for Ray's sockets
    tools = tmp_path / "bin"
    tools.mkdir()
    listens = f"--dashboard-port {next(ports)} --dashboard-agent-listen-port {next(ports)}"
    extra = f"{listens} --min-worker-port 0 --max-worker-port 0"
    shims = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done\n' + f'exec "$@" {extra} --temp-dir {temp}',
        "scontrol": "echo localhost",
    }
    for name, body in shims.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("One sentence, and another one.\n" * 20)
    (tmp_path / "pipeline.yaml").write_text(
        "name: small\nstorage: ???\nstages:\n  ingest: {sources: [{kind: text, name: t, uri: " + f"{corpus}" + "}]}\n"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"])),
        "RAY_HEAD_ADDRESS": "127.0.0.1",
        "RAY_PORT": str(next(ports)),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_CPUS_PER_TASK": "2",
    }
    process = subprocess.Popen(
        ["bash", DEPLOY / "slurm.sh", "pipeline.yaml", "storage=runs"],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if ends == "by a signal":
        until(lambda: (tmp_path / "runs").exists(), 120)
        process.terminate()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == (130 if ends == "by a signal" else 0), said
    assert ("small: ran ingest" in said) == (ends == "by itself"), said
    assert not list(tmp_path.glob(".ray-token*"))
    until(lambda: not any(temp in line for line in command_lines()), 30)
    shutil.rmtree(temp)


def command_lines() -> list[str]:
    return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


def until(met, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.2)
