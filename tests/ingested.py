"""Sources made on the spot, and what an ingest makes of them in this process."""

from __future__ import annotations

import io
import json
import tarfile
import time
import zipfile
from types import SimpleNamespace

import numpy as np

from omniloom.infra import storage
from omniloom.stages.data import records
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.ingest import stage as ingest

RNG = np.random.default_rng(5)


def picture() -> bytes:
    return encode_png(RNG.integers(0, 256, (9, 11, 3), np.uint8))


def put(folder, files: dict[str, bytes | str]) -> str:
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        storage.write_bytes(storage.join(str(folder), path), data)
    return str(folder)


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def listed(*given, **fields) -> tuple[dict, list[dict], list[dict]]:
    """Metrics, records and rejects of an ingest; the listing is made before it."""
    config = ingest.Config.model_validate({"sources": list(given), **fields})
    root = f"memory://ingested-{time.monotonic_ns()}"
    context = SimpleNamespace(
        config=config, output=f"{root}/output", state=f"{root}/state", predecessor=None, progress=lambda *a, **k: None
    )
    ingest.listing(config)
    metrics = ingest.run(context)
    written = storage.read_bytes(f"{context.output}/rejects/rejects.jsonl").split(b"\n")
    assert metrics["items"] == metrics["records"] + metrics["rejects"] + metrics["duplicates"]
    return metrics, list(records.iterate(context.output)), [json.loads(line) for line in written if line]


def take(*given, **fields):
    """The same, records by path and part, and the messages of rejects by path and code."""
    metrics, rows, rejects = listed(*given, **fields)
    return (
        metrics,
        {(row["path"], row["part"]): row for row in rows},
        {(row["path"], row["code"]): row["message"] for row in rejects},
    )


def zipped(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT, special=()) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in special:
            archive.addfile(info)
    return sink.getvalue()
