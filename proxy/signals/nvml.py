"""GPU readings from the driver of this machine (NVML), for operators who run no exporter.

`nvidia-ml-py` is imported only where a backend sets `gpu.nvml`; it is not among the gateway's own
dependencies, because most gateways run on machines without a GPU.
"""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.core.errors import Unavailable
from proxy.wire.engine_metrics import DcgmGauges

MILLI = 1e-3
LOOK_S = 2.0


class Nvml:
    """Every GPU of this machine, summed (power, energy) or averaged (utilisation). Calls take microseconds;
    a driver in trouble may not answer at all."""

    def __init__(self) -> None:
        self._looking: asyncio.Future[DcgmGauges] | None = None
        try:
            import pynvml
        except ImportError:
            raise Unavailable("gpu.nvml is set, but the package nvidia-ml-py is not installed; "
                              "run: pip install nvidia-ml-py") from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            raise Unavailable(f"gpu.nvml is set, but this machine's driver cannot be read: {error}") from None

    async def look(self) -> DcgmGauges:
        """`read` in a thread; TimeoutError after LOOK_S. However long the driver hangs, one thread waits for it."""
        looking = self._looking = self._looking or asyncio.ensure_future(asyncio.to_thread(self.read))
        done, _ = await asyncio.wait({looking}, timeout=LOOK_S)
        if not done:
            raise TimeoutError("the driver does not answer")
        if self._looking is looking:
            self._looking = None
        return looking.result()

    def read(self) -> DcgmGauges:
        """One look. What a card does not tell is None."""
        nvml = self._nvml
        util = [value for gpu in self._gpus
                if (value := self._ask(lambda gpu=gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)) is not None]
        return DcgmGauges(
            gpu_util=sum(util) / len(util) if util else None,
            power_w=self._sum(lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) * MILLI),
            energy_j=self._sum(lambda gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * MILLI))

    def _sum(self, of: Any) -> float | None:
        values = [self._ask(lambda gpu=gpu: of(gpu)) for gpu in self._gpus]
        return None if not values or None in values else float(sum(values))

    def _ask(self, question: Any) -> float | None:
        try:
            return float(question())
        except self._nvml.NVMLError:
            return None
