"""Pages of metrics: `read_metrics` of every engine, `read_dcgm`.

- Every number is None or finite and not negative; fractions are at most 1, capacities and pages have a limit.
- Bytes and text are read alike; lines that are none of ours change nothing.
"""

from __future__ import annotations

from dataclasses import astuple
from math import isfinite

from proxy.wire.engine_metrics import KV_TOKENS_MAX, LINES_MAX, DcgmGauges, EngineGauges, read_dcgm, read_metrics
from proxy.wire.engine_names import ENGINE_NAMES
from tests.fuzz.draw import Draw
from tests.fuzz.watch import timed

KINDS = (*sorted(ENGINE_NAMES), "unknown")
NOISE = b'\n# HELP other vllm:num_requests_running\n\r\nother_metric{vllm:x="1"} 7\nvllm:num_requests_running_x 9\n'

NAMES = sorted({name.encode() for names in ENGINE_NAMES.values() for table in (
    names.gauges, names.counters, names.histograms) for candidates in table.values() for name in candidates})
WORDS = (
    *NAMES,
    b"vllm:cache_config_info", b"block_size=", b"num_gpu_blocks=", b"kv_cache_size_tokens=", b"_total", b"_sum",
    b"_count", b'{engine="0"} ', b'tp_rank="0"', b'sleep_state="awake"', b'reason="capacity"', b"DCGM_FI_DEV_GPU_UTIL",
    b"1e308", b"DCGM_FI_DEV_XID_ERRORS", b'{gpu="0",UUID="GPU-a"} ', b"NaN", b"+Inf", b"# ",
    b"process_start_time_seconds")


def run(data: bytes) -> None:
    draw = Draw(data)
    kind, gpus = KINDS[draw.option(len(KINDS))], (None, frozenset({"0", "GPU-a"}))[draw.option(2)]
    page = draw.body

    gauges = timed(read_metrics, page, kind)
    numbers_are_numbers(gauges)
    assert gauges.kv_fraction is None or gauges.kv_fraction <= 1
    assert gauges.kv_tokens_capacity is None or 0 <= gauges.kv_tokens_capacity <= KV_TOKENS_MAX
    if kind == "unknown":
        assert gauges == EngineGauges()

    readings = timed(read_dcgm, page, gpus)
    numbers_are_numbers(readings)
    assert readings.gpu_util is None or readings.gpu_util <= 1

    if draw.long:
        return
    if page.count(b"\n") + NOISE.count(b"\n") <= LINES_MAX:
        assert read_metrics(NOISE + page, kind) == gauges, "a line that is none of ours changes the reading"
        assert read_metrics(page + NOISE, kind) == gauges, "a line that is none of ours changes the reading"
    try:
        text = page.decode()
    except UnicodeDecodeError:
        return
    assert read_metrics(text, kind) == gauges and read_dcgm(text, gpus) == readings


def numbers_are_numbers(gauges: EngineGauges | DcgmGauges) -> None:
    for value in astuple(gauges):
        for one in value if isinstance(value, tuple) else (value,):
            assert one is None or type(one) is bool or (isfinite(one) and one >= 0), gauges
