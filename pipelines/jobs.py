"""Runs on a Ray cluster as jobs. In: a config, overrides, the cluster's dashboard address. Out: job ids, states, logs.

`submit` ships our packages and the config, with every override applied and every relative path made absolute, as the
job's working folder, and starts `python -m omniloom.pipelines.cli run CONFIG` in it. All functions raise `InputError`
where the address, the token or the job id is wrong. Ray runs a job once: `run` on the cluster picks up where a job that
died had come to, so a retry is another `submit`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from omniloom.infra import nodes
from omniloom.infra.cluster import use_token, with_autoscaling
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.secrets import redact, redact_override
from omniloom.infra.tree import copy_tree
from omniloom.pipelines import room, yaml_dialect
from omniloom.pipelines.config import PipelineConfig, find, load, raw, validate
from omniloom.pipelines.paths import with_absolute_paths
from omniloom.pipelines.signals import INTERRUPTED

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ADDRESS = "address"
_JOB = "job id"
_REQUEST_SECONDS = 10.0
_POLL_SECONDS = 1.0
# From `stop` until Ray kills the job, beside the grace of its stages: a run takes some to close its records.
_CLOSING_SECONDS = 25
_CLOSING = "omniloom.closing_seconds"
_STOP_SECONDS = 15.0  # for Ray, beside those
# Lines of Ray in a job's log.
_OF_THE_MANAGER = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\s+INFO job_manager\.py:\d+ -- ")
_PROGRESS = re.compile(r"^\d\d:\d\d:\d\d ((?:\d+/)?\w+: .+)$", re.MULTILINE)  # of pipelines.display
_GONE = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
FINAL = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it; times are seconds since the epoch, `end` None while it runs. `pipeline` is the
    name in the config; `progress` is the last line about a stage that a running job wrote, else empty. `killed` says
    that its process was, or its machine went away: it did not end by itself."""

    id: str
    status: str
    pipeline: str
    progress: str
    config: str
    entrypoint: str
    start: float | None
    end: float | None
    message: str
    killed: bool = False

    @property
    def seconds(self) -> float | None:
        return None if self.start is None else (self.end or time.time()) - self.start


def submit(
    config: str,
    overrides: Sequence[str] = (),
    address: str = "",
    *,
    arguments: Sequence[str] = (),
    python: str | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Ship the tree and start `run CONFIG` on the cluster; returns the job's id at once.

    `arguments` are further ones of `run` (`--force`, `STAGE`). `python` is the interpreter on the cluster: by default
    $OMNILOOM_PYTHON, else this one where the cluster is on this machine, else `python`. `env` holds variables for the
    job and its workers. The config is checked before anything is sent.
    """
    loaded = load(config, list(overrides))
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="omniloom-job-") as folder:
        shipped = pack(config, overrides, Path(folder))
        command = [_interpreter(python, address), "-m", "omniloom.pipelines.cli", "run", shipped, *arguments]
        return start(
            client,
            command,
            Path(folder),
            env,
            {
                "omniloom.pipeline": loaded.name,
                _CLOSING: f"{_CLOSING_SECONDS + grace(loaded):g}",
                "omniloom.config": redact(str(config)),
                "omniloom.overrides": " ".join(redact_override(override) for override in overrides),
            },
        )


def start(
    client: JobSubmissionClient,
    command: Sequence[str],
    folder: Path,
    env: Mapping[str, str] | None,
    metadata: Mapping[str, str],
) -> str:
    """Submit any command with a folder as its working folder; returns the job's id."""
    try:
        return client.submit_job(
            entrypoint=shlex.join(command),
            metadata=dict(metadata),
            runtime_env={
                "working_dir": str(folder),
                "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": _closing(metadata), **(env or {})},
            },
        )
    except RuntimeError as error:
        raise OmniLoomError(f"the cluster did not take the job: {error}") from error


def grace(config: PipelineConfig) -> float:
    """How many seconds the pipeline's stages get for a checkpoint, where it is told to end."""
    return max(stage.grace(getattr(config.stages, stage.name, None)) for stage in config.graph.stages)


def _closing(metadata: Mapping[str, str] | None) -> str:
    """Seconds from `stop` until Ray kills the job, as it was submitted."""
    return (metadata or {}).get(_CLOSING, str(_CLOSING_SECONDS))


def pack(config: str, overrides: Sequence[str], folder: Path) -> str:
    """Copy what a job needs into `folder`; returns the config's path within it.

    That is this tree, and the config with its overrides applied, its interpolations resolved,
    and the local paths in it made absolute, since the job runs in another folder.
    """
    copy_tree(folder)
    target = folder / "config" / find(config).name
    target.parent.mkdir()
    values = raw(config, list(overrides))
    _check_sweep(config, values)
    shipped_values = with_absolute_paths(values, validate(values, str(find(config))))
    target.write_text(yaml_dialect.dump(shipped_values), encoding="utf-8")
    return target.relative_to(folder).as_posix()


def _check_sweep(config: str, values: dict) -> None:
    """InputError where a sweep changes what other fields refer to: what is shipped has references filled in."""
    text = find(config).read_text(encoding="utf-8")
    for path in (values.get("sweep") or {}).get("fields", ()):
        if re.search(r"\$\{\s*" + re.escape(path) + r"[}.\[]", text):
            raise InputError(
                f"is referred to as ${{{path}}}, and a job's config has references filled in; name the fields that "
                "refer to it in sweep.fields, or run the sweep from a machine of the cluster",
                field=f"sweep.fields.{path}",
                file=str(config),
            )


def check_room(address: str, config: PipelineConfig, names: Sequence[str]) -> None:
    """InputError where the cluster's nodes have too little for these stages, or where no cluster answers."""
    _client(address)
    room.check(config, names, with_autoscaling(nodes.behind(_dashboard_url(address)), config.cluster))


def jobs(address: str) -> list[Job]:
    """The cluster's submitted jobs, newest first."""
    client = _client(address)
    found = [_job(details) for details in client.list_jobs() if details.submission_id]
    found = [replace(job, progress=_progress(client, job.id)) if job.status == "RUNNING" else job for job in found]
    return sorted(found, key=lambda job: job.start or 0.0, reverse=True)


def _progress(client: JobSubmissionClient, job_id: str) -> str:
    try:
        lines = _PROGRESS.findall(client.get_job_logs(job_id))
    except RuntimeError:  # its node may be away
        return ""
    return redact(lines[-1]) if lines else ""


def job(address: str, job_id: str) -> Job:
    """One job by its id."""
    return _job(_details(_client(address), job_id))


def wait(address: str, job_id: str, timeout: float | None = None) -> Job:
    """The job once it has ended; `TimeoutError` after `timeout` seconds."""
    client, began = _client(address), time.monotonic()
    while (found := _job(_details(client, job_id))).status not in FINAL:
        if timeout is not None and time.monotonic() - began > timeout:
            raise TimeoutError(f"job {job_id} is {found.status} after {timeout:g} s")
        time.sleep(_POLL_SECONDS)
    return found


def logs(address: str, job_id: str, follow: bool = False) -> Iterator[str]:
    """The job's lines, without line ends: those there are, or with `follow` until the job ends."""
    for line in _lines(_client(address), job_id, follow):
        if not _OF_THE_MANAGER.match(line):
            yield line


def _lines(client: JobSubmissionClient, job_id: str, follow: bool) -> Iterator[str]:
    _details(client, job_id)
    if not follow:
        yield from client.get_job_logs(job_id).splitlines()
        return
    rest = ""
    with asyncio.Runner() as runner:
        chunks: Any = client.tail_job_logs(job_id)
        try:
            while (chunk := runner.run(anext(chunks, None))) is not None:
                *lines, rest = (rest + chunk).split("\n")
                yield from lines
        except (RuntimeError, OSError) as error:
            raise OmniLoomError(f"the cluster closed the log of job {job_id}: {error}") from error
        finally:
            runner.run(chunks.aclose())
    if rest:
        yield rest


def stop(address: str, job_id: str) -> Job:
    """Stop the job, wait until it has ended, and return it. A job that has ended stays as it is."""
    client = _client(address)
    details = _details(client, job_id)
    if _job(details).status not in FINAL:
        client.stop_job(job_id)
    return wait(address, job_id, float(_closing(details.metadata)) + _STOP_SECONDS)


def _client(address: str) -> JobSubmissionClient:
    url = _dashboard_url(address)
    use_token(create=False)
    _probe(url)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in list(logging.root.manager.loggerDict):  # "Uploading package ...": each has set a level of its own
        if name.startswith("ray"):
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(url)
    except AuthenticationError as error:
        hint = (
            "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
            if os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
            else "it asks for a token and this machine has none: set RAY_AUTH_TOKEN"
        )
        raise InputError(f"the cluster at {url} refuses the token: {hint}", field=_ADDRESS) from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise InputError(f"no Ray dashboard answers at {url}: {error}", field=_ADDRESS) from error


def _dashboard_url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        valid = False
    if not valid:
        raise InputError(
            f"expected the address of a Ray dashboard, such as http://127.0.0.1:8265, got {address!r}", field=_ADDRESS
        )
    return url.rstrip("/")


def _probe(url: str) -> None:
    """Fail in seconds where nothing, or something that speaks no HTTP, answers: Ray's client has no time limit."""
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=_REQUEST_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it speaks HTTP; without the token it refuses, which the client tells better
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"no Ray dashboard answers at {url}: {reason}", field=_ADDRESS) from error
    except Exception as error:  # http.client's errors: the port of another protocol, such as the GCS
        raise InputError(f"{url} is not a Ray dashboard (usually port 8265): {error!r}", field=_ADDRESS) from error


def _interpreter(python: str | None, address: str) -> str:
    if chosen := python or os.environ.get("OMNILOOM_PYTHON"):
        return chosen
    return sys.executable if on_this_machine(address) else "python"


def on_this_machine(address: str) -> bool:
    """Whether the cluster's dashboard has an address of this machine."""
    host = urlsplit(_dashboard_url(address)).hostname
    return host in ("127.0.0.1", "localhost", "::1", socket.gethostname())


def _details(client: JobSubmissionClient, job_id: str):
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "404" in str(error):
            raise InputError(f"the cluster knows no job {job_id!r}", field=_JOB) from error
        raise OmniLoomError(f"the cluster does not tell about job {job_id}: {error}") from error


def _job(details) -> Job:
    return Job(
        id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        pipeline=(details.metadata or {}).get("omniloom.pipeline", ""),
        progress="",
        config=(details.metadata or {}).get("omniloom.config", ""),
        entrypoint=details.entrypoint,
        start=details.start_time / 1000 if details.start_time else None,
        end=details.end_time / 1000 if details.end_time else None,
        message=details.message or "",
        killed=_was_killed(details),
    )


def _was_killed(details) -> bool:
    """A signal shows in the exit code, as Python or as the shell gives it; 130 is our own for being told to end."""
    if getattr(details.status, "value", details.status) != "FAILED":
        return False
    code = details.driver_exit_code
    if code is None:
        return str(getattr(details.error_type, "value", details.error_type)) in _GONE
    return code < 0 or (code > 128 and code != INTERRUPTED)
