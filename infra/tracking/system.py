"""System metrics of one machine. In: a function that logs metrics. Out: `system/...` metrics at regular times.

The names are MLflow's own, so that its UI shows them among its system metrics; the values go through the journal
like any metric, so an outage loses none, and sampling needs no mlflow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_MEGABYTE = 1e6


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
        import psutil

        try:
            gpus = _gpus()
            psutil.cpu_percent()  # the first call only sets the start of the interval
            network, step, over = psutil.net_io_counters(), 0, False
            while not over:
                over = self._over.wait(self._seconds)
                values = _machine(network) | _gpu_values(gpus)
                self._log_metrics({self._prefix + name: value for name, value in values.items()}, step)
                step += 1
        except Exception:  # a sensor that fails must not trouble the run
            log.warning("system metrics ended early", exc_info=True)


def _machine(network_before) -> dict[str, float]:
    """CPU in percent since the last call, memory and disk in use, network traffic since the start in megabytes."""
    import psutil

    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": disk.used / _MEGABYTE,
        "disk_available_megabytes": disk.free / _MEGABYTE,
    }
    if network is not None and network_before is not None:  # a container may have no interface
        values["network_receive_megabytes"] = (network.bytes_recv - network_before.bytes_recv) / _MEGABYTE
        values["network_transmit_megabytes"] = (network.bytes_sent - network_before.bytes_sent) / _MEGABYTE
    return values


def _gpus() -> Sequence:
    """NVML handles of the machine's NVIDIA GPUs; none where there is no driver or no pynvml."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception as error:  # pynvml.NVMLError, which cannot be named where the import failed
        log.debug("no GPU to sample: %s", error)
        return []


def _gpu_values(gpus: Sequence) -> dict[str, float]:
    if not gpus:
        return {}
    import pynvml

    values: dict[str, float] = {}
    for index, gpu in enumerate(gpus):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        values |= {
            f"gpu_{index}_memory_usage_megabytes": memory.used / _MEGABYTE,
            f"gpu_{index}_memory_usage_percentage": 100 * memory.used / memory.total,
            f"gpu_{index}_utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            f"gpu_{index}_power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        }
    return values
