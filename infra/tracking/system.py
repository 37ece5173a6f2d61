"""System metrics of one machine. In: a function that logs metrics. Out: `system/...` metrics at regular times.

MLflow's own monitors read the values; they go through the journal like any metric, so an outage loses none.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class SystemSampler:
    """A thread that samples CPU, memory, disk, network and GPUs every `seconds`, from the start until `stop`."""

    def __init__(self, log_metrics: Callable[[dict, int], None], seconds: float, node: str | None = None):
        self._log_metrics, self._seconds = log_metrics, seconds
        self._prefix = f"system/{node}/" if node else "system/"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="omniloom-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end; waits for that at most two seconds."""
        self._over.set()
        self._thread.join(2.0)

    def _work(self) -> None:
        try:
            monitors = _monitors()
            step = 0
            while True:
                over = self._over.wait(self._seconds)
                values: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    values.update(monitor.aggregate_metrics())
                    monitor.clear_metrics()
                self._log_metrics({self._prefix + name: value for name, value in values.items()}, step)
                step += 1
                if over:
                    return
        except Exception:  # a sensor that fails must not trouble the run
            log.warning("system metrics ended early", exc_info=True)


def _monitors() -> list:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception as error:  # no NVIDIA GPU, or no pynvml: the kinds of error differ by version
        log.debug("no GPU to sample: %s", error)
    return monitors
