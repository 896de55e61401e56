"""Metered energy: a DCGM exporter read, shown, accepted as a threshold, and priced in the report."""

from __future__ import annotations

import datetime as dt
import time

from proxy.core.money import NS_PER_MINUTE
from proxy.demo.serving import serve
from proxy.reports.statement import build
from proxy.server import chores
from tests.support.world import world

PAGE = """# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{{gpu="0",UUID="GPU-1",modelName="NVIDIA A100 80GB PCIe"}} {util}
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{{gpu="0",UUID="GPU-1",modelName="NVIDIA A100 80GB PCIe"}} 250.5
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{gpu="0",UUID="GPU-1",modelName="NVIDIA A100 80GB PCIe"}} {millijoules}
"""


class Exporter:
    """The text a DCGM exporter serves."""

    def __init__(self) -> None:
        self.util, self.millijoules = 30, 1_000_000_000

    async def __call__(self, scope, receive, send):
        body = PAGE.format(util=self.util, millijoules=self.millijoules).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})


async def test_measured_energy_is_priced_and_gpu_util_is_accepted_as_a_threshold(tmp_path, monkeypatch):
    monkeypatch.setattr(chores, "TICK_S", 3600)  # the test says what time it is
    exporter = Exporter()
    async with serve(exporter) as url:
        began = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0)
        gpu = {"type": "A100-80GB", "usd_per_hour": 1.39, "from": began.isoformat(), "energy": "metered",
               "dcgm_url": url + "/metrics", "watts": 300, "idle_watts": 60}
        async with world(tmp_path, monkeypatch, engine={"gpu": gpu}, electricity={"usd_per_kwh": 0.36, "pue": 1.5},
                         route={"thresholds": {"gpu_util_max": 0.9}}) as there:
            (replica,) = there.gateway.board.every_replica()
            await there.until(lambda: replica.gpu_util is not None)
            assert (replica.gpu_util, replica.power_w) == (0.3, 250.5)
            status, headers, _ = await there.post({"model": "gpt-4o", "max_tokens": 4,
                                                   "messages": [{"role": "user", "content": "hi"}]})
            assert status == 200 and headers["x-breakeven-backend"] == "llama"
            assert float(headers["x-breakeven-cost-usd"]) > 0  # energy above idle, at the margin

            book = there.gateway.chores._minutes  # three minutes go by; the exporter counts 36 kJ in the second
            now_ns = time.time_ns() // NS_PER_MINUTE * NS_PER_MINUTE
            book._watches.clear()
            book.tick(now_ns, 0.0)
            exporter.millijoules += 36_000_000
            await there.until(lambda: replica.energy_j == 1_036_000)
            book.tick(now_ns + 30 * 10**9, 0.0)
            (minute,) = book.tick(now_ns + NS_PER_MINUTE, 0.0)
            assert minute.energy_nano == 5_400_000  # 0.01 kWh at 0.36 USD and PUE 1.5
            await there.gateway.journal.book_gpu_minutes([minute])

            exporter.util = 99
            await there.until(lambda: replica.gpu_util == 0.99)
            _, headers, _ = await there.post({"model": "gpt-4o", "max_tokens": 4,
                                              "messages": [{"role": "user", "content": "hi"}]})
            assert (headers["x-breakeven-backend"], headers["x-breakeven-reason"]) == ("api", "gpu_util_max")
            await there.settled(2)
            statement = build(there.ledger, now_ns, now_ns + NS_PER_MINUTE)
            assert statement.total.energy >= minute.energy_nano > 0
