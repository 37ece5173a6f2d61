"""The courier: one thread in a process that carries its journals to MLflow.

In: the journals of this process's runs. Out: delivered events; `flush` to wait for them; `replay` for journals that
other processes left behind. It never raises into the caller and never makes it wait but in `flush`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from omniloom.infra.secrets import logger
from omniloom.infra.tracking.config import TrackingSettings
from omniloom.infra.tracking.failures import NotCreated, TryAgain, Unreachable, say_once, short
from omniloom.infra.tracking.journal import SUFFIX, Journal, run_folder
from omniloom.infra.tracking.sink import RUN_FILE, Sink

log = logger(__name__)

_INTERVAL = 1.0  # seconds between deliveries
_LONGEST_PAUSE = 30.0  # seconds between attempts while the store is away
_EXIT_SECONDS = 5.0  # patience at the exit of a process that did not finish its runs

_couriers: dict[tuple[int, TrackingSettings], Courier] = {}
_couriers_lock = threading.Lock()


def courier(settings: TrackingSettings) -> Courier:
    """This process's courier for these settings (a forked child gets its own)."""
    with _couriers_lock:
        found = _couriers.get((os.getpid(), settings))
        if found is None:
            found = _couriers[os.getpid(), settings] = Courier(settings)
        return found


class Courier:
    """Journals by run key, and the thread that delivers them. All methods are thread-safe."""

    def __init__(self, settings: TrackingSettings):
        self.settings = settings
        self.sink = Sink(settings)
        self._pid = os.getpid()
        self._journals: dict[str, Journal] = {}
        self._closing: set[str] = set()
        self._beats: dict[str, list] = {}  # run key -> [function, seconds between calls, time of the next]
        self._state = threading.Condition()
        self._delivery = threading.Lock()  # one delivery at a time, `replay` included
        self._wanted = self._done = 0  # flushes asked for; flushes answered
        self._clean = True  # the last delivery left nothing behind
        self._again = False  # ... but what a store that answers may take at the next attempt
        self.away = False
        self._thread: threading.Thread | None = None
        atexit.register(self._at_exit)

    def journal(self, key: str) -> Journal:
        """This process's journal of a run; created, and the thread started, on first use."""
        with self._state:
            self._closing.discard(key)  # a worker may log again after it closed
            if key not in self._journals:
                self._journals[key] = _created(self.settings.spool, key)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="omniloom-tracking", daemon=True)
                    self._thread.start()
            return self._journals[key]

    def flush(self, timeout: float) -> bool:
        """Deliver what is there now. True when all of it arrived within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (arrived := self._deliver_now(deadline - time.monotonic())):
            if not self._again or time.monotonic() + _INTERVAL > deadline:
                break
            time.sleep(_INTERVAL)  # an event that the store has not taken yet is tried again
        return arrived

    def _deliver_now(self, timeout: float) -> bool:
        with self._state:
            if self._thread is None:
                return True
            self._wanted += 1
            mine = self._wanted
            self._state.notify_all()
            return self._state.wait_for(lambda: self._done >= mine, timeout) and self._clean

    def retire(self, key: str) -> None:
        """The run is over for this process: its journal is removed once all of it is delivered."""
        with self._state:
            if key in self._journals:
                self._closing.add(key)
            self._beats.pop(key, None)

    def beat(self, key: str, function: Callable[[], None], seconds: float) -> None:
        """Call `function` every so many seconds until the run is retired."""
        with self._state:
            self._beats[key] = [function, seconds, time.monotonic() + seconds]

    def locate(self, key: str, timeout: float) -> tuple[str, str] | None:
        """(run id, experiment id) of a run by its key; None where that is not known within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        arrived = self.flush(timeout) if key in self._journals else not self.away
        folder = self._journals[key].path.parent if key in self._journals else Path(self.settings.spool) / key
        if found := self.sink.known(folder, key):
            return found
        if not arrived or not self._delivery.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return None
        try:
            return self.sink.find(folder, key)
        except Exception as error:  # whatever a store answers
            say_once(
                self.settings.uri, "tracking at %s does not tell a run's id: %s", self.settings.shown, short(error)
            )
            return None
        finally:
            self._delivery.release()

    def _work(self) -> None:
        pause = _INTERVAL
        while True:
            with self._state:
                self._state.wait_for(lambda: self._wanted > self._done, pause)
                wanted = self._wanted
            try:
                self._call_beats()
                clean = self._round()
            except Exception as error:  # whatever it is, tracking must not end the run, nor itself
                say_once(
                    self.settings.uri,
                    "tracking failed; the events stay in %s: %s: %s",
                    self.settings.spool,
                    type(error).__name__,
                    short(error),
                )
                clean = False
            pause = _INTERVAL if clean else min(2 * pause, _LONGEST_PAUSE)
            with self._state:
                self._done, self._clean = max(self._done, wanted), clean
                self._state.notify_all()

    def _call_beats(self) -> None:
        with self._state:
            due = [beat for key, beat in self._beats.items() if time.monotonic() >= beat[2]]
        for beat in due:
            beat[2] = time.monotonic() + beat[1]
            beat[0]()

    def _round(self) -> bool:
        """One delivery of every journal; False where something stays behind."""
        clean, self._again = True, False
        with self._state:
            journals = dict(self._journals)
        for key, journal in journals.items():  # a parent's journal is older than its children's
            with self._state:
                closing = key in self._closing
            if not self.deliver(journal):
                clean = False
                if self.away:
                    break
            elif closing:
                for orphan in _left_behind(journal.path.parent):
                    if self.deliver(orphan):
                        orphan.close(remove=True)
                    else:
                        orphan.close(remove=False)
                        clean = False
                with self._state:
                    if key not in self._closing or not journal.delivered():
                        continue  # used again meanwhile
                    del self._journals[key]
                    self._closing.discard(key)
                    journal.close(remove=True)
                _remove_if_done(journal.path.parent)
        return clean

    def deliver(self, journal: Journal) -> bool:
        """Send what a journal holds; False where something of it waits. What is wrong with one journal, or with the
        store's answer to it, stays with that journal."""
        with self._delivery:
            try:
                if journal.delivered():
                    return True
                # Closed at once: what waits in it holds the journal's lock, which another attempt asks for.
                with contextlib.closing(journal.pending()) as events:
                    self.sink.deliver(journal.key, journal.path.parent, events, journal.commit)
            except NotCreated:
                return False
            except TryAgain:
                self._again = True
                return False
            except Unreachable as error:
                if not self.away:
                    log.warning(
                        "tracking at %s is away; events wait in %s (%s)",
                        self.settings.shown,
                        self.settings.spool,
                        short(error),
                    )
                self.away = True
                return False
            except Exception as error:
                say_once(
                    str(journal.path),
                    "tracking could not deliver %s; it stays: %s: %s",
                    journal.path,
                    type(error).__name__,
                    short(error),
                )
                return False
            if self.away:
                log.warning("tracking at %s is back", self.settings.shown)
            self.away = False
            return not journal.waits_for_disk

    def _at_exit(self) -> None:
        # Threads can no longer start: a store that was never reached cannot be reached now.
        if os.getpid() != self._pid or self._thread is None or not self.sink.connected:
            return
        with self._state:
            self._closing.update(self._journals)
        self.flush(_EXIT_SECONDS)


def _created(spool: str, key: str) -> Journal:
    try:
        return Journal.create(run_folder(spool, key))
    except FileNotFoundError:  # another process removed the folder as it was done with
        return Journal.create(run_folder(spool, key))


def _left_behind(folder: Path) -> list[Journal]:
    """The journals of a run whose writers are gone, locked for this process, oldest first; one that cannot be opened
    is told of and left."""
    found: list[tuple[float, Journal]] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            if (journal := Journal.adopt(path)) is not None:
                found.append((path.stat().st_mtime, journal))
        except OSError as error:
            say_once(str(path), "tracking cannot open %s; it stays: %s", path, error)
    return [journal for _, journal in sorted(found, key=lambda pair: pair[0])]


def _remove_if_done(folder: Path) -> None:
    """Remove a run's folder once no journal is left in it."""
    try:
        if not any(folder.glob(f"*{SUFFIX}")):
            for note in (folder / RUN_FILE, *folder.glob(".tmp-*")):
                note.unlink(missing_ok=True)
            folder.rmdir()  # refuses where something has come in meanwhile
    except OSError as error:
        log.debug("%s stays: %s", folder, error)


def replay(settings: TrackingSettings, timeout: float | None = None) -> int:
    """Send what earlier processes could not. Returns how many journals still wait; never raises.

    Journals whose writers live are left alone. `timeout` in seconds (default: the settings' `flush_seconds`).
    """
    deadline = time.monotonic() + (settings.flush_seconds if timeout is None else timeout)
    try:
        messenger, spool = courier(settings), Path(settings.spool)
        folders = sorted(path for path in spool.iterdir() if path.is_dir()) if spool.is_dir() else []
    except Exception as error:
        say_once(settings.spool, "tracking could not look for what waits in %s: %s", settings.spool, short(error))
        return 0
    waiting, away = 0, False
    for folder in folders:  # keys begin with the time: parents come before their children
        left, away = _replay_folder(messenger, folder, deadline, away)
        waiting += left
    return waiting


def _replay_folder(messenger: Courier, folder: Path, deadline: float, away: bool) -> tuple[int, bool]:
    """Send one run's journals; returns how many of them still wait, and whether the store is away."""
    waiting = 0
    try:
        for journal in _left_behind(folder):
            done = False
            if not away and time.monotonic() < deadline:
                done = messenger.deliver(journal)
                away = messenger.away
            waiting += not done
            journal.close(remove=done)
        _remove_if_done(folder)
    except Exception as error:
        waiting += 1
        say_once(str(folder), "tracking could not replay %s; it stays: %s", folder, short(error))
    return waiting, away
