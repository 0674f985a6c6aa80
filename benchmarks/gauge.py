"""Clock, power and temperature of a GPU while something runs on it, from the driver's own counters."""

from __future__ import annotations

import threading
from statistics import median
from types import TracebackType
from typing import Any

import torch

PERIOD = 0.02


class Gauge:
    """Samples the device's state inside a `with` block; `report` has medians, and the reasons why the clock was low.

    Without NVIDIA's driver, or for a block too short for a sample, the report is empty.
    """

    def __init__(self, device: torch.device):
        self.samples: list[tuple[int, float, int, int]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle = _handle(device)

    def __enter__(self) -> Gauge:
        if self._handle is not None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._stop.set()
        if self._thread:
            self._thread.join()

    def report(self) -> dict[str, Any]:
        """SM clock in MHz, watts, degrees Celsius; `capped` is the share of samples with the clock under the power cap."""
        if not self.samples:
            return {}
        clocks, watts, degrees, reasons = zip(*self.samples, strict=True)
        return {
            "mhz": median(clocks), "mhz_least": min(clocks), "watts": median(watts), "celsius": median(degrees),
            "capped": sum(bool(reason & POWER_CAP) for reason in reasons) / len(reasons),
            "reasons": sorted({hex(reason) for reason in reasons}), "samples": len(self.samples),
        }  # fmt: skip

    def _watch(self) -> None:
        import pynvml  # pyright: ignore[reportMissingImports]

        while not self._stop.wait(PERIOD):
            self.samples.append(
                (
                    pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM),
                    pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000,
                    pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU),
                    pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle),
                )
            )


POWER_CAP = 0x4  # nvmlClocksEventReasonSwPowerCap


def _handle(device: torch.device) -> Any:
    """NVML's handle of the device that PyTorch means (it counts visible ones only), or None."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception:
        return None
