"""What tests of several rooms share: a real S3 server, and one root folder on each kind of storage."""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import settings

# A red run must be red again on the same code: examples are drawn anew only where a person asks for it
# (`--hypothesis-profile=default`).
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def s3_server():
    """Endpoint of an S3 server on 127.0.0.1, with a bucket `bucket`; s3fs finds it through the environment."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    known = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)  # for the processes that tests start
    # fsspec has read its part of the environment when it was imported, perhaps before this.
    fsspec.config.conf.setdefault("s3", {})["endpoint_url"] = settings["FSSPEC_S3_ENDPOINT_URL"]
    fsspec.filesystem("s3").mkdir("bucket")
    yield settings["FSSPEC_S3_ENDPOINT_URL"]
    fsspec.config.conf.pop("s3")
    for name, value in known.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture
def s3(s3_server) -> str:
    """An empty folder of its own on the S3 server."""
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path) -> str:
    """The URI of an empty folder on a local disk, in memory, on S3."""
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return str(tmp_path / "storage") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def process_group():
    """One process group of one rank for the whole session: DeepSpeed keeps the first group that it meets."""
    import torch

    from omniloom.infra.training.launch import single_process

    torch.set_num_threads(1)
    with single_process():
        yield
