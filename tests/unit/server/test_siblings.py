"""One page of many: counters add up, also a dead worker's; gauges that all know are said once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Counted

from proxy.server import siblings
from proxy.server.siblings import Exposition, Pages, Siblings, add_totals, totals_json
from proxy.server.status import Totals
from proxy.signals.crew import Crew


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Who waits for one that is dead waits for ever, and whoever lives is waited for."""
    monkeypatch.setattr(siblings, "PATIENCE_S", 3600)


def page(requests, waiting, healthy, ttfts=()):
    registry = CollectorRegistry()
    counter = Counted("breakeven_requests", "Attempts", ("route",), registry=registry)
    for route, count in requests.items():
        counter.labels(route).inc(count)
    Gauge("breakeven_waiting_requests", "Waiting", registry=registry).set(waiting)
    Gauge("breakeven_ledger_healthy", "Healthy", registry=registry).set(healthy)
    Gauge("breakeven_bid_price_usd_per_gpu_second", "lambda", registry=registry).set(0.5)
    histogram = Histogram("breakeven_time_to_first_token_seconds", "TTFT", buckets=(0.1, 1.0), registry=registry)
    for seconds in ttfts:
        histogram.observe(seconds)
    return generate_latest(registry).decode()


def values(text):
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
            if not line.startswith("#") and "_created" not in line}


def test_pages_add_up_by_what_a_figure_means():
    found = Exposition(page({"a": 3}, 2, 1, [0.05]))
    found.add(Exposition(page({"a": 4, "b": 1}, 5, 0, [0.5, 5.0])), now=True)
    found.add(Exposition(page({"c": 9}, 7, 0, [0.5])), now=False)
    assert values(found.text) == {
        'breakeven_requests_total{route="a"}': 7, 'breakeven_requests_total{route="b"}': 1,
        'breakeven_requests_total{route="c"}': 9, "breakeven_waiting_requests": 7, "breakeven_ledger_healthy": 0,
        "breakeven_bid_price_usd_per_gpu_second": 0.5,
        'breakeven_time_to_first_token_seconds_bucket{le="0.1"}': 1,
        'breakeven_time_to_first_token_seconds_bucket{le="1.0"}': 3,
        'breakeven_time_to_first_token_seconds_bucket{le="+Inf"}': 4,
        "breakeven_time_to_first_token_seconds_count": 4, "breakeven_time_to_first_token_seconds_sum": 6.05}
    assert found.text.count("# TYPE") == found.text.count("# HELP") == page({}, 0, 0).count("# TYPE") + 1  # _created


def test_a_page_that_nothing_is_added_to_stays_what_it_was():
    text = page({"a": 3}, 2, 1, [0.05])
    assert values(Exposition(text).text) == values(text)


def test_totals_of_several_are_those_of_one():
    first, second, both = Totals(), Totals(), Totals()
    for one, count in ((first, 2), (second, 3), (both, 5)):
        one.requests = one.timed = count
        one.api_nano, one.by_backend = 10 * count, Counter(api=count)
        one.by_reason = Counter({("api", "hopeless"): count})
    add_totals(first, totals_json(second))
    assert first == both


async def test_whoever_asks_is_answered_by_all_and_waits_for_nobody_that_is_dead():
    pages, crew = Pages(3), Crew(3)
    asked = Counter()

    def render(me):
        def counted():
            asked[me] += 1
            return {"worker": me, "asked": asked[me]}
        return {kind: counted for kind in ("metrics", "status", "decisions")}

    made = {me: Siblings(pages, crew, me, render(me)) for me in (1, 2, 3)}
    crew.ring = lambda worker: asyncio.get_running_loop().call_soon(made[worker].answer)
    for me in (1, 2, 3):
        crew.begins(me)
        crew.says_ready(me)
    both = await asyncio.gather(made[1].gather("status"), made[2].gather("status"))
    assert [[(now, one["worker"]) for now, one in found] for found in both] == [[(True, 2), (True, 3)],
                                                                                 [(True, 1), (True, 3)]]
    made[3].leave("metrics")
    crew.died(3)
    del made[3]
    crew.ring = lambda worker: worker in made and asyncio.get_running_loop().call_soon(made[worker].answer)
    found = await made[1].gather("metrics")
    assert [(now, one["worker"]) for now, one in found] == [(True, 2), (False, 3)]
    assert Siblings(pages, crew, 3, render(3)).left("metrics")["worker"] == 3


async def test_a_page_that_is_being_written_is_waited_for():
    pages, crew = Pages(2), Crew(2)
    made = {me: Siblings(pages, crew, me, {kind: lambda me=me: me for kind in ("metrics", "status", "decisions")})
            for me in (1, 2)}
    crew.ring = lambda worker: asyncio.get_running_loop().call_soon(made[worker].answer)
    for me in (1, 2):
        crew.begins(me)
        crew.says_ready(me)
    assert await made[1].gather("metrics") == [(True, 2)]
    answer = made[2].answer

    def leaves():
        """It answers, and is in the middle of leaving its page once more."""
        answer()
        pages.of(2, "metrics")._head[0] |= 1
        asyncio.get_running_loop().call_later(0.01, made[2].leave, "metrics")

    made[2].answer = leaves
    assert await made[1].gather("metrics") == [(True, 2)]
