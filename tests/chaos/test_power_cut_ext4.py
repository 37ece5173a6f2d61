"""Power cuts on a real ext4: an image that is copied while it is mounted and written to is what a disk holds when the
power goes; mounting the copy replays its journal, as the next boot does. Needs root and loop devices.

`python tests/chaos/test_power_cut_ext4.py --cuts 20 --seed 0` prints each cut. The file system commits its journal of
names every second and gets no help with renames (`noauto_da_alloc`), which loses more than the defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_pipeline

from omniloom.infra.artifacts import ArtifactStore

CUTS = 5  # of the test; the figure in the notes is of 20
SIZE = 160 << 20


class Machine:
    """A disk image and where it is mounted; `cut` gives what is left of it in another image."""

    def __init__(self, folder: Path):
        self.mount, self.image, self.left = folder / "mounted", folder / "disk.img", folder / "left.img"
        self.mount.mkdir()

    @property
    def storage(self) -> str:
        return str(self.mount / "storage")

    def format(self) -> None:
        with open(self.image, "wb") as file:
            file.truncate(SIZE)
        _call("mkfs.ext4", "-q", "-F", str(self.image))

    @contextlib.contextmanager
    def on(self, image: Path) -> Iterator[None]:
        _call("mount", "-o", "loop,commit=1,noauto_da_alloc", str(image), str(self.mount))
        try:
            yield
        finally:
            _call("umount", str(self.mount))

    def cut(self) -> None:
        _call("cp", "--sparse=always", str(self.image), str(self.left))


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _spawn(body: Callable[[], None]) -> int:
    """A process that runs the body; it has all modules and has made an engine when this returns, so that what follows
    is the pipeline's own time."""
    reader, writer = os.pipe()
    if process := os.fork():
        os.close(writer)
        assert os.read(reader, 1) == b"."
        os.close(reader)
        return process
    code = 1
    try:
        import torch

        from omniloom.infra.training.config import EngineConfig, OptimizerConfig
        from omniloom.infra.training.engine import Engine
        from omniloom.infra.training.launch import single_process

        torch.set_num_threads(1)
        with single_process():
            Engine(torch.nn.Linear(2, 2), OptimizerConfig(), EngineConfig(), 1, 1)
            os.write(writer, b".")
            body()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(machine: Machine, synced: bool = True) -> None:
    os.environ["OMNILOOM_CACHE"] = str(machine.mount / "cache")
    if not synced:
        os.fsync = lambda handle: None
    small_pipeline.run(machine.storage)


def _finish(process: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def _contents(storage: str) -> dict[str, str]:
    """{file: sha256 as it is now} of the artifacts, without the curves, in which there are durations."""
    found = {}
    for name in small_pipeline.NAMES:
        artifact = ArtifactStore(storage).find(name, small_pipeline.FINGERPRINT)
        assert artifact is not None, f"{name} was not published"
        assert ArtifactStore(storage).examine(artifact) == [], name
        found |= {
            f"{name}/{entry['path']}": entry["sha256"]
            for entry in artifact.manifest["files"]
            if not entry["path"].endswith("history.jsonl")
        }
    return found


def undisturbed(machine: Machine) -> tuple[dict[str, str], float]:
    """What the artifacts hold, and how many seconds that takes once the machine has done it before."""
    for _ in range(2):
        machine.format()
        with machine.on(machine.image):
            process = _spawn(lambda: _run(machine))
            began = time.monotonic()
            _finish(process)
            found, seconds = _contents(machine.storage), time.monotonic() - began
    return found, seconds


def cut_at(machine: Machine, seconds: float) -> tuple[dict[str, str], str]:
    """What the artifacts hold after a power cut so many seconds after the start and a run that goes on; and what had
    been published by then."""
    machine.format()
    with machine.on(machine.image):
        process = _spawn(lambda: _run(machine))
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)  # the copy is of one moment
        machine.cut()
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with machine.on(machine.left):
        store = ArtifactStore(machine.storage)
        left = [name for name in small_pipeline.NAMES if store.find(name, small_pipeline.FINGERPRINT)]
        steps = sorted(path.stem for path in Path(machine.storage).glob("work/*/*/state/checkpoints/*.json"))
        _finish(_spawn(lambda: _run(machine)))
        return _contents(machine.storage), f"{', '.join(left) or 'nothing'} published; checkpoints {steps}"


@contextlib.contextmanager
def _machine() -> Iterator[Machine]:
    # In memory where there is room: the loop device is then as fast as a good disk.
    memory = "/dev/shm" if shutil.disk_usage("/dev/shm").free > 4 * SIZE else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Machine(Path(folder))


@pytest.fixture(scope="module")
def machine():
    if os.geteuid():
        pytest.skip("only root can mount an image")
    with _machine() as made:
        try:
            made.format()
            with made.on(made.image):
                pass
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"an ext4 image cannot be mounted here: {error}")
        yield made


@pytest.mark.slow
def test_the_next_run_ends_with_the_weights_of_an_undisturbed_one(machine):
    wanted, seconds = undisturbed(machine)
    assert any(name.endswith("unified.safetensors") for name in wanted)
    moments = random.Random(0)
    for _ in range(CUTS):
        at = moments.uniform(0, seconds)
        found, left = cut_at(machine, at)
        assert found == wanted, f"cut after {at:.2f} s of {seconds:.2f}: {left}"


@pytest.mark.slow
@pytest.mark.parametrize("synced", [True, False])
def test_what_a_run_has_declared_is_on_the_disk(machine, synced):
    """And would not be without the syncs: the names are there, the files behind them are empty."""
    machine.format()
    with machine.on(machine.image):
        _finish(_spawn(lambda: _run(machine, synced)))
        if not synced:
            time.sleep(2.0)  # the journal's names are committed
        machine.cut()
    with machine.on(machine.left):
        if synced:
            _contents(machine.storage)
        else:
            with pytest.raises(Exception):  # noqa: B017 - an AssertionError, or JSON that cannot be read
                _contents(machine.storage)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments, equal = random.Random(options.seed), 0
    from omniloom.infra.training.accelerated import import_deepspeed

    import_deepspeed()
    with _machine() as machine:
        wanted, seconds = undisturbed(machine)
        print(f"undisturbed: {len(wanted)} files in {seconds:.2f} s", flush=True)
        for number in range(options.cuts):
            at = moments.uniform(0, seconds)
            found, left = cut_at(machine, at)
            equal += found == wanted
            outcome = "equal" if found == wanted else "DIFFERENT"
            print(f"cut {number + 1} after {at:.2f} s: {left}; {outcome}", flush=True)
    print(f"{equal} of {options.cuts} end with the files of the undisturbed run")


if __name__ == "__main__":
    main()
