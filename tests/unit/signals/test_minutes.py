"""Minutes: energy counts as measured only while somebody measures; a backend's second costs what is in force then."""

from __future__ import annotations

import time

import pytest

from proxy.config import load
from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.signals.board import Board
from proxy.signals.minutes import MinuteBook

T0_NS = 1_793_491_200 * NS_PER_S  # 2026-11-01T00:00Z
CONFIG = """\
electricity: {{usd_per_kwh: 0.36, pue: 1.5}}
backends:
  llama:
    kind: vllm
    urls: [http://a:1, http://a:2, http://a:3, http://a:4]
    model: llama-8b
    gpu: {gpu}
  api: {{kind: openai, model: gpt-4o, api_key: env:KEY}}
routes:
  chat: {{backends: [llama, api], baseline: api}}
"""
METERED = "{type: L4, count: 4, usd_per_hour: 8, from: 2026-01-01, energy: metered, watts: 300, idle_watts: 60}"
ELASTIC = "{type: L4, count: 4, usd_per_hour: 8, from: 2026-01-01, billing: elastic}"
DEARER = ("{type: L4, count: 4, billing: elastic, usd_per_hour: [{from: 2026-01-01, usd_per_hour: 8}, "
          "{from: 2099-01-01, usd_per_hour: 80}]}")


def settings(tmp_path, gpu):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(gpu=gpu))
    return load(path, {"KEY": "sk-x"})


def minutes(tmp_path, read):
    """A book's minutes, ticked each second for three of them. `read(second)`: the counter, None where nobody reads."""
    told = settings(tmp_path, METERED)
    board = Board(told, lambda: 0.0)
    book, ended = MinuteBook(told, board), []
    for second in range(181):
        if (joules := read(second)) is not None:
            for replica in board.every_replica():
                replica.energy_j, replica.gpu_read_at = joules, float(second)
        ended += book.tick(T0_NS + second * NS_PER_S, float(second))
    return [one.energy_nano for one in ended]


def test_energy_is_priced_from_one_minutes_edge_to_the_next_and_nothing_falls_between(tmp_path):
    per_minute = 6_000 * 150  # 6 kJ are 1/600 kWh at 0.36 USD and PUE 1.5
    assert minutes(tmp_path, lambda second: 1e6 + 100.0 * second) == [per_minute] * 3


@pytest.mark.parametrize(("read", "measured"), [
    (lambda second: 1e6 + 100.0 * second if second < 90 else None, [True, False, False]),
    (lambda second: 1e6 + 100.0 * second if second > 30 else None, [False, True, True]),
    (lambda second: 1e6 + 100.0 * second if second in (70, 80) else None, [False, False, False]),
    (lambda second: 100.0 * second if second < 90 else 1.0 * second, [True, False, True])],
    ids=["it died", "it came late", "a glimpse", "it began anew"])
def test_a_minute_that_nobody_measured_to_its_end_is_left_to_the_given_watts(tmp_path, read, measured):
    assert [energy is not None for energy in minutes(tmp_path, read)] == measured


def test_flushing_tells_the_running_minute_once(tmp_path):
    told = settings(tmp_path, METERED)
    board = Board(told, lambda: 0.0)
    book = MinuteBook(told, board)
    for replica in board.every_replica():
        replica.read_at = 10.0
    book.tick(T0_NS, 10.0)
    book.tick(T0_NS + 2 * NS_PER_S, 10.0)
    (minute,) = book.flush(T0_NS + 3 * NS_PER_S, 10.0)
    assert (minute.minute, minute.observed_ns) == (T0_NS // NS_PER_MINUTE, 3 * NS_PER_S)
    assert minute.energy_nano is None
    assert book.flush(T0_NS + 3 * NS_PER_S, 10.0)[0].observed_ns == 0  # begun anew


def test_a_clock_that_is_set_back_takes_nothing_from_what_was_seen(tmp_path):
    told = settings(tmp_path, METERED)
    board = Board(told, lambda: 0.0)
    book = MinuteBook(told, board)
    for replica in board.every_replica():
        replica.read_at = 10.0
    for second in (0, 2, 1, -3600, -3599):
        ended = book.tick(T0_NS + second * NS_PER_S, 10.0)
        assert all(minute.observed_ns == 2 * NS_PER_S for minute in ended)
    assert [minute.observed_ns for minute in book.flush(T0_NS - 3599 * NS_PER_S, 10.0)] == [NS_PER_S]


@pytest.mark.parametrize("gpu", [ELASTIC, DEARER])
def test_an_elastic_backend_of_four_replicas_is_booked_to_the_nano_at_the_rate_of_the_time(tmp_path, gpu):
    told = settings(tmp_path, gpu)
    ten_seconds_of_one_replica_ns = 10 * NS_PER_S // 4  # as settlement counts: of the whole backend
    board = Board(told, lambda: 0.0)
    booked = board.varying["llama"].nano(ten_seconds_of_one_replica_ns, T0_NS)
    assert booked == 5_555_556  # 2 USD an hour for each replica
    assert next(iter(board.every_replica())).energy_usd_per_s == pytest.approx(2 / 3600)


def test_the_decision_sees_a_new_rate_from_the_minute_it_comes_into_force(tmp_path):
    told = settings(tmp_path, DEARER)
    board = Board(told, lambda: 0.0)
    book = MinuteBook(told, board)
    book.tick(time.time_ns(), 0.0)
    book.tick(4_070_908_800 * NS_PER_S, 0.0)  # 2099-01-01
    assert next(iter(board.every_replica())).energy_usd_per_s == pytest.approx(20 / 3600)
