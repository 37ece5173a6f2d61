"""The pipelines that are disturbed, the storages that they work on, and what they made, file by file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import corpora
import yaml
from proxy import Proxy

from omniloom.infra import storage
from omniloom.stages.data.media.decode import encode_png

CHECKPOINT_EVERY = 20
_STEPS = {"tokenizer_image": 100, "tokenizer_joint": 80, "train": 320}
_DISK_BYTES = 60 << 20
# What depends on how long things took, and what shows it.
_TIMED = ("_per_second", "seconds", "utilization", "peak_memory")
_SHOWS_TIMES = ("report.html",)


def write_corpus(folder: Path) -> None:
    """36 texts, and 36 pictures of coloured squares."""
    (folder / "texts").mkdir(parents=True)
    for n in range(36):
        (folder / "texts" / f"{n}.txt").write_text(
            "\n\n".join(f"Chapter {i}. A square moves {n * i % 97} steps, number {n}." for i in range(5))
        )
        colour = list(corpora.COLOURS)[n % 4]
        picture = encode_png(corpora.square(colour, (n % 17, n * 5 % 17)))
        storage.write_bytes(str(folder / "images" / colour / f"{n}.png"), picture)


def settings(corpus: Path, pictures: bool) -> dict:
    workers = {
        "count": 2, "cpus": 1, "log_every": 10, "checkpoint_every": CHECKPOINT_EVERY, "hang_seconds": 8,
        "grace_seconds": 20, "max_failures": 6,
    }  # fmt: skip
    sources: list[dict] = [{"kind": "text", "uri": str(corpus / "texts")}]
    stages: dict[str, dict] = {
        "ingest": {
            "sources": sources,
            "chunk_chars": 120,
            "shard_items": 9,
            "splits": {"train": 0.6, "validation": 0.2, "test": 0.2},
        },
        "pretokenize": {"vocab_size": 300, "workers": 1},
        "train": {
            "objectives": {},
            "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16},
            "packing": {"length": 96, "window_rows": 8, "mixture": {"text": 1}},
            "batch_rows": 4,
            "steps": _STEPS["train"],
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "validate_every": 160,
            "validation_rows": 2,
            "workers": workers,
        },
        "evaluate": {"texts": 4, "cpus": 1},
    }
    if pictures:
        sources.append(
            {
                "kind": "image_folder",
                "uri": str(corpus / "images"),
                "captions": {"from": "folder", "template": "a {name} square"},
            }
        )
        tokenizer: dict = {
            "data": {"kinds": ["image"], "sizes": [24], "image_batch": 4},
            "discriminator": None,
            "workers": workers,
        }
        stages["tokenizer_image"] = tokenizer | {
            "model": {
                "patch_size": 8, "temporal_patch": 4, "width": 16, "heads": 2, "head_dim": 8, "spatial_layers": "t",
                "temporal_layers": 1, "decoder_spatial_layers": "t",
                "quantizer": {"kind": "vq", "codebook_size": 32, "latent_dim": 4},
            },
            "steps": _STEPS["tokenizer_image"],
            "validate_every": 50,
        }  # fmt: skip
        stages["tokenizer_joint"] = tokenizer | {"steps": _STEPS["tokenizer_joint"], "validate_every": 40}
        stages["pretokenize"] |= {"image_size": 24, "video_size": 24, "frames": 5}
        stages["train"] |= {"samples": {"count": 2, "num_steps": 2}, "steps": 160}
        stages["train"]["packing"] |= {"mixture": {"text": 1, "image": 1}}
        del stages["train"]["objectives"]
        stages["evaluate"] |= {"reconstructions": 4, "drawings": 4, "captions": 2, "num_steps": 2}
    return {
        "name": "pictures" if pictures else "texts",
        "tracking": {"system_metrics": False, "request_seconds": 3, "flush_seconds": 5},
        "cluster": {"object_store_bytes": 100 << 20, "env": {"OMP_NUM_THREADS": "1"}},
        "stages": stages,
    }


def write_config(folder: Path, pictures: bool) -> Path:
    corpus, path = folder / "corpus", folder / f"{'pictures' if pictures else 'texts'}.yaml"
    if not corpus.exists():
        write_corpus(corpus)
    path.write_text(yaml.safe_dump(settings(corpus, pictures)))
    return path


def made(root: str) -> dict[str, str]:
    """{stage/file: sha256} of all that a pipeline made in this storage; without what tells of times."""
    found = {}
    for name in storage.list_files(storage.join(root, "artifacts")):
        stage, _, file = name.split("/", 2)
        if file == "manifest.json" or file.endswith(_SHOWS_TIMES):
            continue
        data = storage.read_bytes(storage.join(root, "artifacts", name))
        if file.endswith((".jsonl", "metrics.json")):
            rows = [json.loads(line) for line in (data.splitlines() if file.endswith(".jsonl") else [data])]
            data = json.dumps([_untimed(row) for row in rows], sort_keys=True).encode()
        found[f"{stage}/{file}"] = hashlib.sha256(data).hexdigest()
    return found


def keep(root: str, folder: Path) -> None:
    """Copy what a pipeline made, and where it stands, to a folder of this machine."""
    for name in storage.list_files(root):
        storage.write_bytes(str(folder / name), storage.read_bytes(storage.join(root, name)))


def _untimed(row: dict) -> dict:
    return {name: value for name, value in row.items() if not name.endswith(_TIMED)}


@contextmanager
def place(kind: str, folder: Path) -> Iterator[str]:
    """URI of an empty storage: on a small `disk` of its own, or on the `s3` server."""
    if kind == "s3":
        yield f"s3://bucket/{folder.name}"
        return
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk)], check=True)
    try:
        yield str(disk / "store")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def s3() -> Iterator[tuple[dict[str, str], Proxy]]:
    """(Variables that its clients need, the proxy in front of it.)"""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port()[1])
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys)
    direct = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    fsspec.config.conf.setdefault("s3", {})["endpoint_url"] = direct  # what looks on is not disturbed
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    try:
        yield {**keys, "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}, proxy
    finally:
        fsspec.config.conf.pop("s3")
        server.stop()
