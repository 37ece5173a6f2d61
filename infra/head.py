"""The head of a Ray cluster (its GCS): whether it answers, and whether it is the one that a run began with."""

from __future__ import annotations

import socket
import time

from omniloom.infra.errors import OmniLoomError
from omniloom.infra.failures import line

_INTERVAL = 2.0
_RECOGNISED_SECONDS = 30.0  # for which a head that always answered is taken for the same
_PATIENCE_SECONDS = {"local": 8.0, "attached": 45.0}  # a head of a cluster may be restarted within Ray's minute


class Head:
    """Watches whether the head of a cluster (its GCS) is there: without it Ray ends this process after a minute, and
    with another one in its place, which knows nothing of this run, it waits for ever."""

    def __init__(self, address: str, id: str, local: bool):
        self.address, self.patience = address, _PATIENCE_SECONDS["local" if local else "attached"]
        self.id, self.gone = id, False
        self._asked = self._answered = self._recognised = time.monotonic()

    def require(self) -> None:
        """To be called often; raises `OmniLoomError` once nothing has listened there for some time, or another head."""
        now = time.monotonic()
        if now - self._asked < _INTERVAL:
            return
        silent, self._asked = self._answered < self._asked, now
        try:
            reach(self.address, _INTERVAL)
            same = self._is_the_same(silent)
            self._answered = now
        except OSError as error:
            if now - self._answered > self.patience:
                raise self._lost(str(error)) from error
            return
        if not same:
            raise self._lost("another one in its place knows nothing of this run")

    def _is_the_same(self, silent: bool) -> bool:
        """Whether the same head answers; asked where nobody did the last time, and now and then."""
        if not self.id or not (silent or self._asked - self._recognised > _RECOGNISED_SECONDS):
            return True
        self._recognised = self._asked
        return head_id(self.address) == self.id

    def _lost(self, why: str) -> OmniLoomError:
        self.gone = True
        return OmniLoomError(f"Ray's head (GCS) at {self.address} is gone: {why}; the next run goes on from here")


def head_id(address: str) -> str:
    """The id of the cluster whose GCS answers there; ConnectionError where none does."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of a compiled module
    from ray.exceptions import RayError

    try:
        return GcsClient(address=address).cluster_id.hex()
    except (RayError, RuntimeError) as error:
        raise ConnectionError(line(error)) from error


def reach(address: str, seconds: float) -> None:
    """Open and close a connection to HOST:PORT; OSError where nothing listens."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), seconds).close()
