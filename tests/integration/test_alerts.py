"""Alerts against a real receiver: once when it begins, once when it is over, never again after a restart."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import sqlite3
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from aiohttp import web
from typer.testing import CliRunner

from proxy.cli import app
from proxy.config.alerts import Alerts
from proxy.demo.children import Child
from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.reconciliations import Reconciled, record
from proxy.server import webhooks
from proxy.server.alerts import FORGOTTEN_NS, TRIES_MAX, Alerter
from proxy.server.webhooks import Message, post
from tests.support.patience import PATIENCE_S, until

NOW = 1_795_000_000_000_000_000


@dataclass
class Receiver:
    """Answers as it is told to, and keeps what it got."""

    status: int = 200
    wait_s: float = 0.0
    opened: asyncio.Event | None = None  # not answered before
    got: list = field(default_factory=list)
    url: str = ""

    async def take(self, request):
        self.got.append((await request.read(), dict(request.headers)))
        await asyncio.sleep(self.wait_s)
        if self.opened is not None:
            await self.opened.wait()
        return web.Response(status=self.status, headers={"location": "/elsewhere"} if self.status == 302 else None)

    @property
    def said(self):
        return [json.loads(body) for body, _ in self.got]


@contextlib.asynccontextmanager
async def receives():
    one = Receiver()
    site = web.Application()
    site.router.add_post("/{any:.*}", one.take)
    runner = web.AppRunner(site, shutdown_timeout=0.1)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield one
    await runner.cleanup()


@pytest.fixture
async def receiver():
    async with receives() as one:
        yield one


@pytest.fixture
async def other():
    async with receives() as one:
        yield one


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_gateway_tells_what_its_books_say_once_however_many_workers(tmp_path, receiver, workers):
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with Journal(url):
        pass
    bill = Reconciled("api", "openai", 0, 86_400 * 10**9, [], "0.005", False, 1, 2, 1, {"price": 1}, [], "finance")
    record(url, bill)
    path = tmp_path / "gateway.yaml"
    path.write_text(f"""
server: {{workers: {workers}, drain_s: 1}}
ledger: {url}
backends: {{api: {{kind: openai, model: m, url: 'http://127.0.0.1:9', provider: openai}}}}
routes: {{m: {{backends: [api], baseline: api}}}}
keys: {{required: false}}
alerts: {{check_s: 1, webhooks: [{{name: ops, url: '{receiver.url}'}}]}}
""")
    gateway = await Child.start("gateway", "proxy.cli", ["serve", "--config", str(path), "--port", "0"], None)
    try:
        home = await gateway.url()
        await until(lambda: receiver.got)
        await asyncio.sleep(2.5)  # it looks again, and again
        assert [(one["state"], one["kind"]) for one in receiver.said] == [("firing", "reconciliation")]

        async def counted():
            async with aiohttp.ClientSession() as session, session.get(f"{home}/metrics") as answer:
                return 'breakeven_alerts_total{outcome="sent",webhook="ops"} 1.0' in await answer.text()

        await until(counted)
        record(url, replace(bill, within=True))
        await until(lambda: len(receiver.got) == 2)
        assert receiver.said[-1]["state"] == "recovered"
    finally:
        await gateway.stop(patience_s=8.0)


@dataclass
class Holds:
    alert: str
    kind: str = "budget"
    text: str = "The budget of tag team=search is used to 80.0 %."
    figures: dict = field(default_factory=lambda: {"spent": "8.00"})
    until_ns: int | None = None
    over: str = ""


class Place:
    """An alerter over a real ledger, whose conditions the test decides."""

    def __init__(self, tmp_path, receiver, **more):
        self.url = f"sqlite:///{tmp_path}/ledger.db"
        webhook = {"name": "finance", "url": f"{receiver.url}/hook", **more}
        self.settings = Alerts.model_validate({"webhooks": [webhook]})
        self.holds, self.counted, self.leads = [], [], True

    @contextlib.asynccontextmanager
    async def process(self):
        async with Journal(self.url) as journal:
            alerter = Alerter(self.url, self.settings, journal, lambda now: self.holds, lambda: self.leads,
                              lambda name, outcome: self.counted.append((name, outcome)))
            yield alerter
            await alerter.told(0.0)

    async def rounds(self, count=1, now_ns=NOW):
        """A process that lives for so many rounds, each webhook being as quick as it is."""
        async with self.process() as alerter:
            for _ in range(count):
                await alerter.round(now_ns)
                await alerter.told()


async def test_an_alert_is_sent_once_and_so_is_its_end_also_across_restarts(tmp_path, receiver):
    place = Place(tmp_path, receiver)
    place.holds = [Holds("budget a")]
    await place.rounds(3)
    await place.rounds(2)
    assert [(one["state"], one["alert"]) for one in receiver.said] == [("firing", "budget a")]
    place.holds = []
    await place.rounds(2)
    await place.rounds()
    assert [one["state"] for one in receiver.said] == ["firing", "recovered"]
    place.holds = [Holds("budget a")]
    await place.rounds(2)
    assert [one["state"] for one in receiver.said] == ["firing", "recovered", "firing"], "a new occurrence"
    assert len({one["id"] for one in receiver.said}) == 3
    assert place.counted == [("finance", "sent")] * 3


async def test_what_has_a_window_is_not_over_inside_it_and_then_says_that_the_window_is(tmp_path, receiver):
    place = Place(tmp_path, receiver)
    place.holds = [Holds("budget a", until_ns=NOW + 10, over="The month is over.")]
    await place.rounds()
    place.holds = []
    await place.rounds(2, NOW + 9)
    assert [one["state"] for one in receiver.said] == ["firing"], "whatever was given back meanwhile"
    await place.rounds(2, NOW + 10)
    assert [(one["state"], one["text"]) for one in receiver.said[1:]] == [("recovered", "The month is over.")]


async def test_what_was_not_taken_is_tried_again_also_after_a_restart_and_given_up_at_last(tmp_path, receiver):
    place = Place(tmp_path, receiver)
    place.holds, receiver.status = [Holds("budget a")], 503
    await place.rounds(2)
    await place.rounds(1)
    assert len(receiver.got) == 3 and len({one["id"] for one in receiver.said}) == 1
    receiver.status = 200
    await place.rounds(2)
    assert len(receiver.got) == 4
    receiver.status, place.holds = 500, []
    await place.rounds(TRIES_MAX + 5)
    assert len(receiver.got) == 4 + TRIES_MAX and place.counted.count(("finance", "given_up")) == 1
    assert place.counted.count(("finance", "failed")) == 3 + TRIES_MAX


def two(place, slow, other, check_s=60):
    place.settings = Alerts.model_validate({"check_s": check_s, "webhooks": [
        {"name": "slow", "url": slow.url}, {"name": "other", "url": other.url}]})


async def test_a_webhook_that_hangs_holds_up_neither_the_others_nor_the_next_round(tmp_path, receiver, other,
                                                                                   monkeypatch):
    monkeypatch.setattr(webhooks.post, "__defaults__", (300.0,))
    place = Place(tmp_path, receiver)
    two(place, receiver, other)
    receiver.opened = asyncio.Event()
    async with place.process() as alerter:
        for count, name in enumerate(("budget a", "budget b", "budget c"), 1):
            place.holds.append(Holds(name))
            await alerter.round(NOW)
            await until(lambda count=count: place.counted.count(("other", "sent")) == count)
        await until(lambda: receiver.got)
        assert [one["alert"] for one in other.said] == ["budget a", "budget b", "budget c"]
        assert [one["alert"] for one in receiver.said] == ["budget a"], "it is still at the first"
        receiver.opened.set()
        await alerter.told()
        await alerter.round(NOW)
        await alerter.told()
        assert [one["alert"] for one in receiver.said] == ["budget a", "budget b", "budget c"], "each once"
        assert len(other.got) == 3
    assert sorted(set(place.counted)) == [("other", "sent"), ("slow", "sent")] and len(place.counted) == 6


async def test_a_webhook_that_is_slow_has_a_rounds_time_and_the_rest_waits_and_is_counted(tmp_path, receiver, other):
    place = Place(tmp_path, receiver)
    two(place, receiver, other, check_s=1)
    receiver.wait_s = 0.6
    place.holds = [Holds(f"budget {number}") for number in range(5)]
    await place.rounds()
    delayed = place.counted.count(("slow", "delayed"))
    assert len(receiver.got) + delayed == 5 and delayed >= 3, "two take longer than the round"
    receiver.wait_s = 0.0
    two(place, receiver, other)
    await place.rounds()
    assert [one["alert"] for one in receiver.said] == [one.alert for one in place.holds] and len(other.got) == 5


async def test_what_nobody_took_in_a_day_is_given_up_and_said_and_a_new_webhook_is_not_told_of_it(
        tmp_path, receiver, other, caplog):
    place = Place(tmp_path, receiver)
    two(place, receiver, other)
    place.settings = place.settings.model_copy(update={"webhooks": place.settings.webhooks[:1]})
    place.holds = [Holds("budget a")]
    await place.rounds()
    receiver.status = 503
    place.holds.append(Holds("budget b"))
    await place.rounds()
    two(place, receiver, other)
    receiver.status = 200
    await place.rounds(2, NOW + FORGOTTEN_NS + 1)
    assert [one["alert"] for one in receiver.said] == ["budget a", "budget b"] and not other.got
    assert place.counted == [("slow", "sent"), ("slow", "failed"), ("slow", "given_up")]
    assert "webhook slow could not be told of 1 alerts within a day: given up" in caplog.text


async def test_what_was_taken_is_not_sent_again_where_the_ledger_could_not_note_it(tmp_path, receiver, monkeypatch):
    place = Place(tmp_path, receiver)
    place.holds, failures = [Holds("budget a")], [LedgerUnavailable("the disk is full")]
    ended = Journal.alert_ended

    async def failing(*arguments):
        if failures:
            raise failures.pop()
        await ended(*arguments)

    monkeypatch.setattr(Journal, "alert_ended", failing)
    await place.rounds(2)
    await place.rounds()
    assert len(receiver.got) == 1 and place.counted == [("finance", "sent")]


async def test_a_round_reads_what_is_new_however_long_the_history(tmp_path, receiver, monkeypatch):
    place, steps, rounds = Place(tmp_path, receiver), [], 5000
    reading = store.reading

    @contextlib.contextmanager
    def counted(url):
        with reading(url) as connection:
            connection.connection.dbapi_connection.set_progress_handler(lambda: steps.append(100), 100)
            yield connection

    monkeypatch.setattr(store, "reading", counted)
    async with place.process() as alerter:
        place.holds = [Holds("budget a")]
        await alerter.round(NOW)
        await alerter.told()
        with sqlite3.connect(tmp_path / "ledger.db") as ledger:
            ledger.executemany(
                "INSERT INTO alert_events (at_ns, alert, event, webhook, detail) VALUES (?, ?, ?, ?, ?)",
                [(NOW, f"budget {row // 4}", ("fired", "delivered", "recovered", "delivered")[row % 4],
                  ("", "finance")[row % 2], json.dumps({"of": 2 + row} if row % 2 else vars(Holds(""))))
                 for row in range(4 * rounds)])
        await alerter.round(NOW)
        await alerter.told()
        steps.clear()
        place.holds = [Holds("budget b")]
        await alerter.round(NOW)
        await alerter.told()
    assert sum(steps) < rounds, "instructions of the database"
    assert [(one["state"], one["alert"]) for one in receiver.said] == [
        ("firing", "budget a"), ("firing", "budget b"), ("recovered", "budget a")]


async def test_of_many_alerts_so_many_are_told_in_a_round_and_the_rest_in_their_order(
        tmp_path, receiver, monkeypatch):
    monkeypatch.setattr("proxy.ledger.alerts.ROUND_MAX", 3)
    place = Place(tmp_path, receiver)
    place.holds = [Holds(f"budget {number}") for number in range(5)]
    await place.rounds()
    assert len(receiver.got) == 3
    await place.rounds(2)
    assert [one["alert"] for one in receiver.said] == [one.alert for one in place.holds]


async def test_what_cannot_even_be_written_down_is_counted_and_said_and_given_up(tmp_path, receiver, caplog):
    place = Place(tmp_path, receiver)
    place.holds = [Holds("budget a", figures={"requests": 10**30}), Holds("budget b")]  # no JSON of the web's
    await place.rounds(TRIES_MAX + 1)
    assert [one["alert"] for one in receiver.said] == ["budget b"]
    assert place.counted == [("finance", "failed")] * TRIES_MAX + [("finance", "given_up"), ("finance", "sent")]
    said = [one.getMessage() for one in caplog.records if "internal error" in one.getMessage()]
    assert len(said) == TRIES_MAX and not any("10000000" in one for one in said)


MESSAGE = Message(7, NOW, "firing", "budget x", "budget", "5 < 6 & <!channel> \x1b[31mred\n", {"spent": "1.00"})


async def told(receiver, within_s=PATIENCE_S, **webhook):
    hook = Alerts.model_validate({"webhooks": [{"name": "x", "url": receiver.url, **webhook}]},
                                 context={"env": {"KEY": "s3cret"}}).webhooks[0]
    async with aiohttp.ClientSession() as session:
        return await post(session, hook, MESSAGE, within_s)


async def test_the_body_is_signed_and_says_all_in_json(receiver):
    assert await told(receiver, secret="env:KEY") is None
    (body, headers), = receiver.got
    assert headers["x-breakeven-signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    said = json.loads(body)
    assert set(said) == {"id", "at", "state", "alert", "kind", "text", "figures"} and b"s3cret" not in body
    assert said["text"].isprintable() and said["at"] == "2026-11-18T11:06:40+00:00"


async def test_slacks_form_is_text_with_its_three_characters_written_as_entities(receiver):
    assert await told(receiver, format="slack") is None
    (said,) = receiver.said
    assert set(said) == {"text"} and "5 &lt; 6 &amp; &lt;!channel&gt;" in said["text"] and "<" not in said["text"]


@pytest.mark.parametrize(("status", "why"), [(302, "a redirect, which is not followed"), (404, "answered 404"),
                                             (429, "answered 429")])
async def test_only_2xx_is_delivered_and_redirects_are_not_followed(receiver, status, why):
    receiver.status = status
    assert why in await told(receiver)
    assert len(receiver.got) == 1


async def test_a_failure_never_tells_the_address(receiver):
    receiver.wait_s = 5
    problems = [await told(receiver, 0.2), await told(receiver, url="http://127.0.0.1:1/services/SECRET"),
                await told(receiver, url="https://no-such-host.invalid/services/SECRET")]
    assert all(problem and "SECRET" not in problem and "127.0.0.1" not in problem for problem in problems)


def test_the_command_sends_a_test_to_each_webhook(tmp_path):
    received = []

    async def main():
        one = Receiver()
        site = web.Application()
        site.router.add_post("/{any:.*}", one.take)
        runner = web.AppRunner(site)
        await runner.setup()
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        port = runner.addresses[0][1]
        path = tmp_path / "gateway.yaml"
        text = ("backends: {api: {kind: openai, model: m, url: 'http://127.0.0.1:9', provider: openai}}\n"
                "routes: {m: {backends: [api], baseline: api}}\n"
                f"alerts: {{webhooks: [{{name: ops, url: 'http://127.0.0.1:{port}/x'}}, "
                "{name: dead, url: 'http://127.0.0.1:1'}]}\n")
        path.write_text(text)
        result = await asyncio.to_thread(CliRunner().invoke, app, ["alerts", "test", "--config", str(path)])
        path.write_text(text.split("alerts:")[0])
        none = await asyncio.to_thread(CliRunner().invoke, app, ["alerts", "test", "--config", str(path)])
        received.extend(one.said)
        await runner.cleanup()
        return result, none

    result, none = asyncio.run(main())
    assert result.exit_code == 1 and "ops: taken" in result.output and "dead: cannot be reached" in result.output
    assert [one["state"] for one in received] == ["test"]
    assert none.exit_code == 1 and "nobody is told" in none.output
