"""The Ray cluster of this process. In: an address, or none for a local one. Out: an initialised Ray and its size.

A local Ray starts in 3-4 s (5 s the first time; without dashboard and usage statistics), an attachment in 1 s.
Token authentication is always on for a local Ray, and is used with any cluster as soon as this machine has a token.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from omniloom.infra import nodes
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.fields import PATH, PLACEMENT
from omniloom.infra.head import head_id, reach
from omniloom.infra.nodes import Node
from omniloom.infra.secrets import redact

_CONNECT_SECONDS = 5.0
_MESSAGE_CHARACTERS = 200
_MESSAGE_SECONDS = 30.0  # between two messages of the same words
# Unix sockets take 107 characters, and Ray puts about 65 behind its temporary folder.
_LONGEST_TEMP = 40
# Nobody takes away the only node, so that no process has to watch for it beside each training.
_OF_ONE_NODE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_ending = threading.Event()


class NodeGroup(BaseModel):
    """Nodes of one kind that an autoscaler may start."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    nodes: int = Field(ge=1)
    """How many there are at most."""
    cpus: float = Field(gt=0)
    """CPUs of one."""
    gpus: float = Field(0, ge=0)
    """GPUs of one."""
    accelerator_type: str | None = None
    """Ray's name of its GPUs, as H100 or A100-80G: tells `plan` and `doctor` how much memory they have."""

    @model_validator(mode="after")
    def _type_is_of_gpus(self) -> NodeGroup:
        if self.accelerator_type and not self.gpus:
            raise ValueError("accelerator_type: has no effect: the group has no gpus")
        return self


class ClusterConfig(BaseModel):
    """The `cluster` section of a pipeline's config: where stages run. None of it changes what they compute."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    address: str | None = None
    """HOST:PORT of a Ray cluster's GCS, or `local`. Without it: the cluster that the run is a job of, else a local
    Ray."""
    num_cpus: int | None = Field(None, ge=1)
    """CPUs of a local Ray; by default all."""
    num_gpus: int | None = Field(None, ge=0)
    """GPUs of a local Ray; by default all."""
    object_store_bytes: int | None = Field(None, ge=80 * 2**20)
    """Object store of a local Ray."""
    temp_dir: str | None = Field(None, json_schema_extra=PATH | PLACEMENT)
    """Temporary folder of a local Ray, at most 40 characters long."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables for every worker."""
    log_to_driver: bool = False
    """Show what workers print."""
    autoscaling: list[NodeGroup] = Field(default_factory=list)
    """Groups of nodes that the cluster's autoscaler starts where they are asked for. Ray does not tell them; without
    this, a stage that needs more than the nodes that are there has no room."""


@dataclass(frozen=True)
class Cluster:
    """The connected cluster: the GCS address and its nodes. `local`: started by us; `opened`: this call initialised Ray
    in this process, so its caller is to shut it down."""

    address: str
    nodes: tuple[Node, ...]
    local: bool
    opened: bool
    id: str = ""
    """Of the head: one that takes its place without its memory has another one."""

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def num_cpus(self) -> float:
        """Sum over all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def node_cpus(self) -> float:
        """Those of the largest node."""
        return max(node.cpus for node in self.nodes)


def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    object_store_bytes: int | None = None,
    env: Mapping[str, str] | None = None,
    temp_dir: str | None = None,
    log_to_driver: bool = True,
    field: str = "cluster.address",
) -> Cluster:
    """Initialise Ray in this process; where that is done already, say what is connected.

    `address` is `HOST:PORT` of a cluster's GCS; `local` always starts a new Ray here; None means the cluster that
    this process is a job of (`RAY_ADDRESS`), else `local`. Ray's own search for the last cluster started on this
    machine is never used: it finds dead ones. `num_cpus`, `num_gpus`, `object_store_bytes` and `temp_dir` are for a
    local Ray; `env` holds variables for every worker. Raises `InputError` naming `field` where the address is wrong
    or nothing answers there, and where it refuses the token.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return _describe(local=False, opened=False)
    if address is None and os.environ.get("RAY_ADDRESS"):
        address, field = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    address = address or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = address == "local"
    options: dict = {}
    if local:
        use_token(create=True)
        options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "object_store_memory": object_store_bytes,
            "include_dashboard": False,
        }
        # Ray's way to say that this node has no cluster around it: its servers then listen on 127.0.0.1 alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        temp_dir = temp_dir or os.environ.get("RAY_TMPDIR")
        if temp_dir is not None:
            options["_temp_dir"] = _short(temp_dir)
    else:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")  # a second each; Ray's 20 only delay a refused token
        _require_listener(address, field)
        use_token(create=False)
    # Of a process that memory ran out for; Ray's default is to try for ever.
    os.environ.setdefault("RAY_task_oom_retries", "3")
    import ray

    try:
        with _own_signals(), _short_messages(), _variables(_OF_ONE_NODE if local else {}):
            ray.init(
                address=address,
                log_to_driver=log_to_driver,
                logging_level=logging.WARNING,
                runtime_env=_runtime_env(env, local),
                job_config=_job_config(),
                **options,
            )
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        if local:
            raise OmniLoomError(f"Ray did not start: {error}") from error
        if _refused_token(error):
            raise InputError(
                f"the cluster at {address} refuses this machine's token: set RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to the cluster's",
                field=field,
            ) from error
        raise InputError(f"no Ray cluster answers at {address}: {_first_line(error)}", field=field) from error
    return _describe(local, opened=True)


def _job_config() -> Any:
    """Of the folders that Ray puts before all others on its workers' path, those that this process imports from too.

    Ray adds the working folder whether or not the driver imports from it, and there a folder of any project would hide
    an installed module of its name.
    """
    from ray.job_config import JobConfig

    class SearchedHere(JobConfig):
        def _get_proto_job_config(self):
            here = {os.path.abspath(folder) for folder in sys.path}
            self._py_driver_sys_path = [f for f in self._py_driver_sys_path if os.path.abspath(f) in here]
            return super()._get_proto_job_config()

    return SearchedHere()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray replaces this process's handlers by its own, which print a C++ trace and abort: put them back afterwards.

    While it starts, Ray's handler of SIGTERM raises SystemExit; that is told as ours would.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    try:
        yield
    except SystemExit as error:
        if signal.SIGTERM in before:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """In the block these are set, where the user has not: what is started there keeps them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _short_messages() -> Iterator[None]:
    """Show what Ray's own processes report to this one by its first sentence, on stderr.

    Ray prints pages of identifiers, and lines of state-dump, for each process that dies, whatever `log_to_driver` says.
    """
    from ray._private import worker

    _ending.clear()
    shown: dict[str, float] = {}
    full = getattr(worker, "print_to_stdstream", None)
    if full is None:  # in another version of Ray
        yield
        return

    def short(data, *arguments, **named) -> None:
        if data.get("pid") != "raylet":
            full(data, *arguments, **named)
            return
        text = " ".join(data["lines"]).strip().partition("\n")[0].partition(". ")[0][:_MESSAGE_CHARACTERS]
        if text and not _ending.is_set() and time.monotonic() - shown.get(text, -math.inf) > _MESSAGE_SECONDS:
            shown[text] = time.monotonic()
            print(f"Ray: {redact(text)}", file=sys.stderr, flush=True)

    worker.print_to_stdstream = short
    yield


def expect_deaths() -> None:
    """From here on this process ends others, and what Ray says of that is not shown."""
    _ending.set()


def _runtime_env(env: Mapping[str, str] | None, local: bool) -> dict | None:
    settings: dict = {"env_vars": dict(env)} if env else {}
    if not local:
        settings["worker_process_setup_hook"] = "omniloom.infra.cluster.settle"
    return settings or None


def settle() -> None:
    """Leave the folder that Ray unpacked a job into, in every worker before its first task.

    Where two nodes share a machine, the second to unpack a job removes the first one's folder and makes it anew:
    processes that stand in it have no working folder any more. Imports go by path and find the new one.
    """
    os.chdir(tempfile.gettempdir())


def connect_to(config: ClusterConfig) -> Cluster:
    """`connect` with the settings of a pipeline's config; to the nodes belong those that an autoscaler may start."""
    cluster = connect(
        config.address,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        object_store_bytes=config.object_store_bytes,
        env=config.env,
        temp_dir=config.temp_dir,
        log_to_driver=config.log_to_driver,
    )
    return cluster if cluster.local else replace(cluster, nodes=with_autoscaling(cluster.nodes, config))


def with_autoscaling(alive: Iterable[Node], config: ClusterConfig) -> tuple[Node, ...]:
    """The nodes that are there, and of each group of the autoscaler's those that are not there yet."""
    nodes = tuple(alive)
    started = Counter((node.cpus, node.gpus) for node in nodes)
    to_come = [
        Node(group.cpus, group.gpus, accelerator=group.accelerator_type)
        for group in config.autoscaling
        for _ in range(group.nodes - started[group.cpus, group.gpus])
    ]
    return (*nodes, *to_come)


def starts_here(config: ClusterConfig) -> bool:
    """Whether `connect_to` would start a local Ray, and attach to no cluster."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return False
    return (config.address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def shutdown() -> None:
    """Disconnect, and end a local Ray. Clusters that were only attached to go on."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        sys.modules["ray"].shutdown()


def use_token(create: bool) -> bool:
    """Switch token authentication on where a token is at hand (or `create`: Ray makes one in the home folder).

    Ray switches it on by itself in `ray.init` but not in its job client. A mode that the user set stays as it is.
    Returns whether it is on.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None:
        return mode.lower() == "token"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not (create or os.environ.get("RAY_AUTH_TOKEN") or path.exists()):
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    if "ray" in sys.modules:  # it has read its settings from the environment already
        from ray._raylet import Config  # type: ignore[attr-defined]  # of a compiled module

        Config.initialize("")
    return True


def _require_listener(address: str, field: str) -> None:
    """Fail in seconds, not after Ray's minute of retries, where nothing listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise InputError(f"expected HOST:PORT of a Ray cluster, or 'local', got {address!r}", field=field)
    try:
        reach(address, _CONNECT_SECONDS)
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}", field=field) from error


def _short(temp_dir: str) -> str:
    path = os.path.abspath(temp_dir)
    if len(path) > _LONGEST_TEMP:
        raise InputError(
            f"Ray's temporary folder {path} has {len(path)} characters; its sockets leave room for {_LONGEST_TEMP}",
            field="RAY_TMPDIR",
        )
    return path


def _describe(local: bool, opened: bool) -> Cluster:
    import ray

    found = nodes.connected()
    if local:  # Ray tells what was free when it started, which ends no task here
        found = tuple(replace(node, memory=None) for node in found)
    address = ray.get_runtime_context().gcs_address
    return Cluster(address, found, local, opened, head_id(address))


def _refused_token(error: BaseException | None) -> bool:
    """Whether an authentication error stands anywhere in the chain: Ray wraps it in two others."""
    while error is not None:
        if "InvalidAuthToken" in str(error) or "Unauthenticated" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
