"""The dashboard over real HTTP: who gets in, what a page may do in a browser, what it says when things are amiss."""

import asyncio
import csv
import datetime as dt
import io
import json
import re
import socket
import threading
import time
from decimal import Decimal

import pytest
import yaml

from proxy.config import load
from proxy.core.errors import Unavailable
from proxy.ledger.keys import KeyStore
from proxy.main import Gateway
from proxy.reports.closing import close
from proxy.reports.dashboard.words import REASONS
from proxy.server import desk as desk_module
from proxy.server import live, sessions
from proxy.server.dashboard import HEADERS
from tests.support.patience import PATIENCE_S, until
from tests.support.world import configuration, world
from tests.support.world import served as serving

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
HTML = {"accept": "text/html"}
SAME_SITE = {"sec-fetch-site": "same-origin"}
PAGES = ("/dashboard", "/dashboard?range=7d&group=key", "/dashboard/request/none", "/dashboard/csv?table=groups",
         "/dashboard/live")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Pages wait for their figures, however slow the machine is just now."""
    monkeypatch.setattr(desk_module, "PATIENCE_S", PATIENCE_S)


@pytest.fixture
async def there(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, keys={"required": True}) as one:
        store = KeyStore(one.ledger)
        one.keys = {role: store.create(role, role=role)[1] for role in ("application", "reader", "admin")}
        one.gateway.keys.refresh()
        yield one


async def signed_in(there, key, **headers):
    """(status, cookie header to send, body) of the form."""
    async with there.session.post(there.url + "/dashboard/login", data={"key": key, "to": "/dashboard?range=7d"},
                                  headers={**HTML, **SAME_SITE, **headers}, allow_redirects=False) as answer:
        cookie = answer.headers.get("set-cookie", "")
        return answer.status, cookie, await answer.text(), answer.headers


def cookie_of(set_cookie):
    return {"cookie": set_cookie.partition(";")[0]}


async def test_without_a_key_a_browser_gets_the_form_and_a_program_an_error(there):
    for path in PAGES:
        async with there.session.get(there.url + path, headers=HTML) as answer:
            page = await answer.text()
            assert answer.status == 401 and 'action="/dashboard/login"' in page, path
        status, body = await there.get(path)
        assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key", path
        status, body = await there.get(path, authorization=f"Bearer {there.keys['application']}")
        assert status == 403 and json.loads(body)["error"]["code"] == "permission_denied", path


async def test_a_reader_signs_in_looks_and_signs_out(there):
    for role in ("reader", "admin"):
        status, cookie, _, headers = await signed_in(there, there.keys[role])
        assert status == 303 and headers["location"] == "/dashboard?range=7d"
        assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/dashboard", "Max-Age=43200"))
        assert "Secure" not in cookie and there.keys[role] not in str(headers)
        async with there.session.get(there.url + "/dashboard", headers={**HTML, **cookie_of(cookie)}) as answer:
            page = await answer.text()
            assert answer.status == 200 and "Net loss" in page and there.keys[role] not in page
        status, _ = await there.get("/admin/status", **cookie_of(cookie))
        assert status == 401, "the cookie opens the dashboard alone"
    async with there.session.post(there.url + "/dashboard/logout", headers={**SAME_SITE, **cookie_of(cookie)},
                                  allow_redirects=False) as answer:
        assert answer.status == 303 and "Max-Age=0" in answer.headers["set-cookie"]
    status, _ = await there.get("/dashboard", authorization=f"Bearer {there.keys['reader']}")
    assert status == 200, "a program sends its key"


@pytest.mark.parametrize("sent", [{"origin": "https://gateway.example"}, {"x-forwarded-proto": "https"}])
async def test_behind_tls_the_cookie_is_for_tls_alone(there, sent):
    _, cookie, _, _ = await signed_in(there, there.keys["reader"], **sent)
    assert cookie.endswith("; Secure")


async def test_a_session_ends_with_its_key_with_its_time_and_with_any_change(there, monkeypatch):
    store = KeyStore(there.ledger)
    key_id, key = store.create("gone", role="reader")
    there.gateway.keys.refresh()
    _, cookie, _, _ = await signed_in(there, key)
    value = cookie_of(cookie)["cookie"].partition("=")[2]

    async def status_with(sent):
        return (await there.get("/dashboard", cookie=f"{sessions.COOKIE}={sent}"))[0]

    assert await status_with(value) == 200
    kept, end, signature = value.split(".")
    other = there.gateway.keys.authenticate(there.keys["admin"]).id
    for forged in (f"{kept}.{int(end) + 1}.{signature}", f"{other}.{end}.{signature}", f"{kept}.{end}.{'0' * 64}", "",
                   f"{kept}.{end}", "." * 9, f"{kept}.x.{signature}", value + "0", value[:-1], "\u00e9" * 8,
                   "x" * 5000):
        assert await status_with(forged) == 401, forged
    now = time.time()
    assert sessions.opened(there.gateway.keys, value, now + sessions.SESSION_S + 1) is None
    store.revoke(key_id)
    there.gateway.keys.refresh()
    assert await status_with(value) == 401


@pytest.fixture
def within_a_moment(monkeypatch):
    """For wrong keys the clock stands, however slow the machine is."""
    wrong = sessions.Attempts.wrong
    monkeypatch.setattr(sessions.Attempts, "wrong", lambda attempts, address, _: wrong(attempts, address, 0.0))


@pytest.mark.usefixtures("within_a_moment")
async def test_wrong_keys_wait_for_one_another_and_right_ones_for_none(there):
    for _ in range(sessions.WRONG_PER_MINUTE):
        status, cookie, page, _ = await signed_in(there, "bk-wrong")
        assert status == 401 and not cookie and "not valid" in page and "bk-wrong" not in page
    for _ in range(2):
        status, cookie, page, headers = await signed_in(there, "bk-wrong")
        assert status == 429 and not cookie and int(headers["retry-after"]) >= 1 and "Too many" in page
        status, cookie, _, _ = await signed_in(there, there.keys["reader"])
        assert status == 303 and cookie, "from the same address"
    assert (await signed_in(there, there.keys["application"]))[0] == 403, "somebody's key is no guess"


@pytest.mark.usefixtures("within_a_moment")
async def test_wrong_keys_that_come_at_once_are_answered_at_once_and_hold_nothing(there):
    many = 4 * sessions.WRONG_PER_MINUTE
    answers = await asyncio.gather(*(signed_in(there, f"bk-{number}") for number in range(many)),
                                   signed_in(there, there.keys["reader"]))
    statuses = [status for status, *_ in answers]
    assert statuses.pop() == 303
    assert statuses.count(401) == sessions.WRONG_PER_MINUTE and statuses.count(429) == many - statuses.count(401)


def test_wrong_keys_from_everywhere_are_bounded_and_so_is_what_is_remembered_of_them():
    attempts, taken = sessions.Attempts(), 0
    for number in range(2 * sessions.ADDRESSES_MAX):
        taken += not attempts.wrong(f"10.0.{number >> 8}.{number & 255}", 0.0)
    assert taken == sessions.WRONG_PER_MINUTE_ALL and len(attempts._of) == sessions.ADDRESSES_MAX
    assert attempts.wrong("10.9.9.9", 0.0) > 0 and not attempts.wrong("10.9.9.9", 1.0)


async def test_an_applications_key_is_told_so_and_another_sites_form_is_refused(there):
    status, cookie, page, _ = await signed_in(there, there.keys["application"])
    assert status == 403 and not cookie and "for applications" in page
    for headers in ({"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "none"}):
        status, cookie, page, _ = await signed_in(there, there.keys["reader"], **headers)
        assert status == 403 and not cookie, headers
    for origin, expected in (("https://evil.example", 403), ("null", 403), (there.url, 303)):
        async with there.session.post(there.url + "/dashboard/login", data={"key": there.keys["reader"]},
                                      headers={"origin": origin}, allow_redirects=False) as answer:
            assert answer.status == expected, origin


@pytest.mark.parametrize("to", ["https://evil.example", "//evil.example", "/\\evil", "/dashboard@evil", "javascript:x",
                                "/dashboard\r\nx: y", "/admin/status", "/dashboardx", "", "/dashboard?a=" + "x" * 5000])
async def test_a_form_leads_nowhere_but_to_the_dashboard(there, to):
    async with there.session.post(there.url + "/dashboard/login", data={"key": there.keys["reader"], "to": to},
                                  headers=SAME_SITE, allow_redirects=False) as answer:
        assert answer.status == 303 and answer.headers["location"] == "/dashboard"


async def test_every_answer_ties_the_browsers_hands(there):
    key = {"authorization": f"Bearer {there.keys['reader']}"}
    for path, headers in [*((path, {**key, **HTML}) for path in PAGES[:-1]), *((path, HTML) for path in PAGES),
                          ("/dashboard?from=x", {**key, **HTML})]:
        async with there.session.get(there.url + path, headers=headers) as answer:
            page = await answer.text()
            for name, value in HEADERS.items():
                assert answer.headers[name] == value, (path, name)
            assert not re.search(r"<script(?![^>]*(src=|application/json))|\son\w+=|style=|https?://(?!this-gateway|www)",
                                 page.replace("http://www.w3.org", "")), path
    async with there.session.get(there.url + "/dashboard/static/dashboard.css") as answer:
        assert answer.status == 200 and "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("nothing.js", "..", "dashboard.css.map"):
        assert (await there.get(f"/dashboard/static/{name}"))[0] == 404


async def test_it_belongs_to_the_operators_listener(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, server={"admin": {"port": 9000}}) as there:
        async with there.session.get(there.admin_url + "/dashboard") as answer:
            assert answer.status == 200
        for path in (*PAGES, "/dashboard/static/dashboard.css"):
            assert (await there.get(path))[0] == 404, "applications have no dashboard"


@pytest.mark.parametrize(("query", "words"), [
    ("from=2010-01-01", "longer than 3,660 days"), ("from=soon", "is not a date"),
    ("before=2026-01-01", "no beginning"),
    ("from=2999-01-01", "has not begun"), ("from=2026-11-02&before=2026-11-01", "ends before it begins"),
    ("from=1969-01-01&before=1970-01-01", "before 1970"), ("range=ever", "no such period"),
    ("group=salary", "no such grouping"), ("group=route:x", "no such grouping"), ("older=x", "no such page"),
    ("group=" + "x" * 200, "more than a period")])
async def test_what_cannot_be_meant_is_said_in_words(tmp_path, monkeypatch, query, words):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        status, page = await there.get(f"/dashboard?{query}", **HTML)
        assert status == 400 and words in page.decode(), page.decode()
        status, body = await there.get(f"/dashboard?{query}")
        assert status == 400 and words in json.loads(body)["error"]["message"]


async def served(there, count, **headers):
    for _ in range(count):
        status, _, body = await there.post(CHAT, **headers)
        assert status == 200, body
    await there.settled(count)


async def test_from_the_month_down_to_a_request(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        await served(there, 3, x_breakeven_tags="team=search")

        async def links(path, label):
            status, page = await there.get(path, **HTML)
            assert status == 200, page.decode()
            section = page.decode().partition(f'id="{label}"')[2]
            return [link.replace("&amp;", "&") for link in re.findall(r'href="(/dashboard[^"]*)"', section)
                    if "csv" not in link]

        day = (await links("/dashboard?range=month&group=tag:team", "h-time"))[0]
        assert "group=tag%3Ateam" in day and "from=" in day
        hour = (await links(day, "h-time"))[0]
        calls = await links(hour, "h-time")
        assert len(calls) == 3 and all(call.startswith("/dashboard/request/req_") for call in calls)
        for row in there.rows():
            status, page = await there.get(f"/dashboard/request/{row['request_id']}", **HTML)
            text = page.decode()
            assert status == 200
            assert all(word in text for word in (row["request_id"], REASONS[row["reason"]], "Who could have answered",
                                                 "What was known of the GPUs", "Baseline by", "gpt-4o", "team=search"))
        status, page = await there.get("/dashboard/request/req_nobody", **HTML)
        assert status == 404 and "No such request" in page.decode()


async def test_the_csv_is_what_is_shown_to_the_nano_dollar(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        await served(there, 3)
        for table in ("groups", "time", "traffic", "waterfall", "backends", "budgets", "decisions"):
            async with there.session.get(f"{there.url}/dashboard/csv?range=24h&table={table}") as answer:
                assert answer.status == 200 and answer.headers["content-type"].startswith("text/csv"), table
                assert re.fullmatch(r'attachment; filename="breakeven-[a-z]+-[0-9-]+\.csv"',
                                    answer.headers["content-disposition"])
                rows = list(csv.reader(io.StringIO(await answer.text())))
                assert all(len(row) == len(rows[0]) for row in rows)
            if table == "groups":
                named = {row[3]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
                booked = sum(row["baseline_nano"] for row in there.rows())
                assert named["total"]["baseline"] == f"{booked / 1e9:.9f}"
        status, body = await there.get("/dashboard/csv?range=24h&table=secrets")
        assert status == 400 and "no such table" in json.loads(body)["error"]["message"]
        assert (await there.get("/dashboard/csv?range=1h&table=requests"))[0] == 200
        assert (await there.get("/dashboard/csv?range=7d&table=requests"))[0] == 400


async def test_a_name_is_never_markup_nor_a_formula(tmp_path, monkeypatch):
    """As a tag it cannot even be spelt; as a route, a backend or a model it can."""
    async with world(tmp_path, monkeypatch, engines=0) as there:
        store = KeyStore(there.ledger)
        _, key = store.create("=HYPERLINK(\"http://x\";\"y\")<script>alert(1)</script>", role="application")
        entry_key = store.list()[0].id
        await served(there, 2)
        hostile = "<script>alert(1)</script>"
        await _booked(there, route=hostile, backend="=cmd|' /C calc'!A0", tags="team=<b>x", key_id=entry_key,
                      client_model=hostile, model="@SUM(1)", request_id="req_<i>")
        for group in ("route", "backend", "key", "model", "tag", "tag:team"):
            status, page = await there.get(f"/dashboard?range=1h&group={group}", **HTML)
            assert status == 200 and "<script>alert" not in page.decode() and "<b>x" not in page.decode(), group
            _, text = await there.get(f"/dashboard/csv?range=1h&group={group}&table=groups")
            for row in csv.reader(io.StringIO(text.decode())):
                assert not row[3].startswith(("=", "@", "+", "-")), row[3]
        _, text = await there.get("/dashboard/csv?range=1h&table=requests")
        cells = [cell for row in csv.reader(io.StringIO(text.decode())) for cell in row]
        assert "'=cmd|' /C calc'!A0" in cells and not any(cell.startswith(("=", "@", "+")) for cell in cells)
        status, page = await there.get("/dashboard/request/req_%3Ci%3E", **HTML)
        assert status == 400 and b"<i>" not in page, "the guard lets no such path pass"
        assert key not in page.decode()


async def _booked(there, **changes):
    """One more row like the last, but for what is changed."""
    from dataclasses import replace

    from proxy.ledger.rows import entry_of

    entry = replace(entry_of(there.rows()[-1]), **changes)
    await there.gateway.journal.settle(entry)


async def test_states_that_are_not_as_they_should_be(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        _, page = await there.get("/dashboard", **HTML)
        assert b"No traffic in this period" in page and b"Net loss" in page and b"No requests yet" in page
        await served(there, 1)
        there.gateway.switch("all-api")
        there.gateway.drain("llama", True)

        async def told():
            _, page = await there.get("/dashboard?range=1h", **HTML)
            return b"switch sends everything to the API" in page and b"Draining" in page

        await there.until(told)


async def test_an_engine_that_was_never_read_is_shown_and_its_requests_are(tmp_path, monkeypatch):
    monkeypatch.setenv("SIM_API_KEY", "sk-sim")
    with socket.socket() as nobody:  # bound, so that nobody else listens there, and not listening
        nobody.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        async with world(tmp_path, monkeypatch, engines=0) as there:
            (tmp_path / "two.yaml").write_text(yaml.safe_dump(configuration(
                f"sqlite:///{tmp_path}/two.db", [gone], there.gateway.settings.backends["api"].urls[0])))
            async with serving(Gateway(load(tmp_path / "two.yaml"))) as (url, _):
                async def page(path):
                    async with there.session.get(url + path, headers=HTML) as answer:
                        return answer.status, await answer.text()

                async with there.session.post(url + "/v1/chat/completions", json=CHAT) as answer:
                    assert answer.status == 200 and answer.headers["x-breakeven-backend"] == "api"
                    request_id = answer.headers["x-request-id"]

                async def told():
                    status, text = await page("/dashboard?range=1h")
                    assert status == 200, text
                    return "Down" in text

                await there.until(told)
                status, text = await page(f"/dashboard/request/{request_id}")
                assert status == 200 and "llama 0" in text, text


async def test_a_period_that_is_over_says_whether_it_may_still_change(tmp_path, monkeypatch):
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first, last, after = (f"{today - dt.timedelta(days=days):%Y-%m-%d}" for days in (20, 10, 5))
    paid = {"type": "A100-80GB", "usd_per_hour": 1.39, "from": first}
    async with world(tmp_path, monkeypatch, engine={"gpu": paid}) as there:
        await served(there, 1)

        async def said(query):
            _, page = await there.get(f"/dashboard?{query}", **HTML)
            (line,) = re.findall("<p class=.soft small.>((?:Not closed|Closed)[^<]*)</p>", page.decode()) or [""]
            return line

        assert await said(f"from={first}&before={last}") == "Not closed: these figures may still change."
        assert await said("range=1h") == await said(f"from={first}") == "", "that it goes on is seen"
        end = int(dt.datetime.fromisoformat(f"{last}T00:00Z").timestamp()) * 10**9
        await asyncio.to_thread(close, there.ledger, end, who="Ada <b>")

        async def final():
            return re.fullmatch("Closed on 2[0-9-]{9} by Ada &lt;b&gt;: these figures are final.",
                                await said(f"from={first}&before={last}"))

        await there.until(final)  # a page is kept for seconds
        assert await said(f"from={first}&before={after}") == (
            f"Closed in part: what is not between {first}T00:00 and {last}T00:00 may still change.")


async def test_while_the_ledger_cannot_be_read_the_rest_goes_on(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        (tmp_path / "ledger.db").rename(tmp_path / "away.db")
        status, page = await there.get("/dashboard", **HTML)
        text = page.decode()
        assert status == 503 and "The ledger cannot be read" in text and "Healthy" in text and "Net saving" in text
        status, body = await there.get("/dashboard/csv?table=groups")
        assert status == 503 and json.loads(body)["error"]["code"] == "ledger_unavailable"
        assert (await there.get("/dashboard/request/req_1"))[0] == 503
        (tmp_path / "away.db").rename(tmp_path / "ledger.db")

        async def read():
            return (await there.get("/dashboard", **HTML))[0] == 200

        await there.until(read)


# ---------------------------------------------------------------- the stream
async def test_a_period_without_an_exchange_rate_says_which_is_missing(tmp_path, monkeypatch):
    """Figures of one with a rate are in the currency, bid prices and budgets stay in USD."""
    today = dt.datetime.now(dt.UTC).date()
    rates = [{"from": today, "per_usd": "2", "source": "made up"}]
    async with world(tmp_path, monkeypatch, report={"currency": "EUR", "exchange_rates": rates}) as there:
        await served(there, 1)
        status, page = await there.get("/dashboard?range=30d", **HTML)
        words = "report.exchange_rates: no rate of EUR holds at "
        assert status == 400 and words in page.decode() and "Backends now" in page.decode()
        assert str(tmp_path) not in page.decode(), "a reader need not know what files there are"
        status, body = await there.get("/dashboard/csv?range=30d&table=groups")
        assert status == 400 and words in json.loads(body)["error"]["message"]
        status, page = await there.get(f"/dashboard?from={today}", **HTML)
        text = page.decode()
        assert status == 200 and f"Booked in USD; at 2 EUR per USD from {today} (made up)." in text
        assert "<small>EUR</small>" in text and "USD per GPU-hour" in text
        (row,) = there.rows()
        _, text = await there.get(f"/dashboard/csv?from={today}&table=groups")
        named = {one["group"]: one for one in csv.DictReader(io.StringIO(text.decode()))}
        assert Decimal(named["total"]["baseline"]).scaleb(9) == 2 * row["baseline_nano"]
        for asked, names in (("table=waterfall", ["step", "amount", "currency"]), ("table=backends", None),
                             ("range=1h&table=requests", None)):
            _, text = await there.get(f"/dashboard/csv?{'' if 'range' in asked else f'from={today}&'}{asked}")
            one = next(csv.DictReader(io.StringIO(text.decode())))
            assert one["currency"] == "EUR" and names in (None, [*one])
            assert not [name for name in one if "usd" in name or "eur" in name], "the currency is said once"
        status, page = await there.get(f"/dashboard/request/{row['request_id']}", **HTML)
        assert status == 200 and f"{2 * row['baseline_nano'] / 1e9:.6f} <small>EUR" in page.decode()


async def test_a_request_without_an_exchange_rate_is_not_shown_at_another(tmp_path, monkeypatch):
    rates = [{"from": dt.datetime.now(dt.UTC).date() + dt.timedelta(days=3), "per_usd": "2", "source": "made up"}]
    async with world(tmp_path, monkeypatch, report={"currency": "EUR", "exchange_rates": rates}) as there:
        await served(there, 1)
        status, page = await there.get(f"/dashboard/request/{there.rows()[0]['request_id']}", **HTML)
        assert status == 400 and "no rate of EUR holds at " in page.decode() and "<small>EUR" not in page.decode()


async def events(there, count, path="/dashboard/live?range=1h", **headers):
    """The parts of the first so many events."""
    found = []
    async with there.session.get(there.url + path, headers=headers) as answer:
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.content:
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
                if len(found) == count:
                    break
    return found


async def test_the_stream_begins_with_all_and_goes_on_with_what_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK_S", 0.1)
    monkeypatch.setattr(desk_module, "NOW_S", 0.1)
    monkeypatch.setattr(desk_module, "KEPT_S", 0.1)
    async with world(tmp_path, monkeypatch) as there:
        reading = asyncio.create_task(events(there, 3))
        while not reading.done():
            await there.post(CHAT)
            await asyncio.sleep(0.05)
        first, second, _ = await reading
        assert {"headline", "backends", "decisions", "groups", "plots"} <= set(first)
        assert second and set(second) < set(first), "only what moved"
        assert "budgets" not in second


async def test_streams_are_few_end_with_the_key_and_with_the_gateway(there, monkeypatch):
    monkeypatch.setattr(live, "TICK_S", 0.1)
    monkeypatch.setattr(live, "STREAMS_MAX", 1)
    store = KeyStore(there.ledger)
    key_id, key = store.create("short", role="reader")
    there.gateway.keys.refresh()
    sent = {"authorization": f"Bearer {key}"}
    async with there.session.get(there.url + "/dashboard/live", headers=sent) as answer:
        await answer.content.readline()
        async with there.session.get(there.url + "/dashboard/live", headers=sent) as second:
            assert second.status == 503 and (await second.json())["error"]["code"] == "overloaded"
        store.revoke(key_id)
        await answer.read()
    reader = {"authorization": f"Bearer {there.keys['reader']}"}
    async with there.session.get(there.url + "/dashboard/live", headers=reader) as answer:
        await answer.content.readline()
        there.gateway.handler.draining = True
        await answer.read()


async def test_a_viewer_who_leaves_frees_his_place_and_one_who_does_not_read_is_hung_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK_S", 0.01)
    monkeypatch.setattr(live, "STALL_S", 0.3)
    async with world(tmp_path, monkeypatch) as there:
        counts = []
        opened = live.Live.stream

        def counted(self, *given):
            counts.append(self)
            return opened(self, *given)

        monkeypatch.setattr(live.Live, "stream", counted)
        await events(there, 1)
        await there.until(lambda: counts[0].open == 0)
        monkeypatch.setattr(live.Stream, "_event", _large)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(there.url.rpartition(":")[2]), limit=1024)
        writer.write(b"GET /dashboard/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        await there.until(lambda: len(counts) == 2 and counts[1].open == 0)
        writer.close()


async def _large(self):
    return b"data: {}" + b" " * 1_000_000 + b"\n\n"


async def test_one_question_is_asked_once_for_all_who_want_it(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        desk, goes_on, asked, came = there.gateway.desk, threading.Event(), [], []
        whole, ask = desk.pages.account, desk.ask
        monkeypatch.setattr(desk.pages, "account", lambda *given: (
            asked.append(given), goes_on.wait(PATIENCE_S), whole(*given))[2])
        monkeypatch.setattr(desk, "ask", lambda query: (came.append(query), ask(query))[1])
        viewers = [asyncio.create_task(there.get("/dashboard", **HTML)) for _ in range(8)]
        await there.until(lambda: len(came) == 8)
        goes_on.set()
        assert [status for status, _ in await asyncio.gather(*viewers)] == [200] * 8 and len(asked) == 1


async def test_a_page_does_not_wait_long_for_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(desk_module, "PATIENCE_S", 0.1)
    async with world(tmp_path, monkeypatch, engines=0) as there:
        pages, goes_on = there.gateway.desk.pages, threading.Event()
        whole = pages.account
        monkeypatch.setattr(pages, "account", lambda *given: (goes_on.wait(PATIENCE_S), whole(*given))[1])
        status, page = await there.get("/dashboard", **HTML)
        assert status == 200 and b"Adding up the books" in page
        goes_on.set()
        monkeypatch.setattr(desk_module, "PATIENCE_S", PATIENCE_S)
        assert "headline" in (await events(there, 1, "/dashboard/live"))[0], "the stream has them first"
        _, page = await there.get("/dashboard", **HTML)
        assert b"Adding up" not in page and b"Net saving" in page


async def test_too_many_questions_are_refused_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(desk_module, "WAITING_MAX", 2)
    async with world(tmp_path, monkeypatch) as there:
        pages, goes_on = there.gateway.desk.pages, threading.Event()
        monkeypatch.setattr(pages, "account", lambda *given: goes_on.wait(PATIENCE_S) and TimeoutError("too long"))
        asked = [asyncio.create_task(there.get(f"/dashboard?from=2026-11-0{day}")) for day in range(1, 6)]
        await there.until(lambda: sum(one.done() for one in asked) == 3)
        assert (await there.post(CHAT))[0] == 200
        goes_on.set()
        statuses = [status for status, _ in await asyncio.gather(*asked)]
        assert statuses.count(503) == 5, "two that took too long, three that found no place"
        bodies = [body for _, body in await asyncio.gather(*asked)]
        assert sum(b"overloaded" in body for body in bodies) == 3
        assert sum(b"more than could be read in time" in body for body in bodies) == 2


async def test_too_many_pages_to_write_are_refused_and_none_is_piled_up(tmp_path, monkeypatch):
    """Figures that are there are written into a page for each who asks: as many may wait for that as for them."""
    monkeypatch.setattr(desk_module, "WAITING_MAX", 3)
    async with world(tmp_path, monkeypatch) as there:
        assert (await there.get("/dashboard"))[0] == 200
        desk, goes_on, began = there.gateway.desk, threading.Event(), []
        monkeypatch.setattr(desk.pages, "overview", lambda *given: (
            began.append(given), goes_on.wait(PATIENCE_S), "x")[2])
        asked = [asyncio.create_task(there.get("/dashboard")) for _ in range(12)]
        await there.until(lambda: sum(one.done() for one in asked) == 9)
        assert (await there.post(CHAT))[0] == 200
        goes_on.set()
        statuses = [status for status, _ in await asyncio.gather(*asked)]
        assert (statuses.count(200), statuses.count(503), len(began)) == (3, 9, 3)
        assert (await there.get("/dashboard"))[0] == 200


async def test_whoever_leaves_a_thread_of_the_desk_makes_no_room_before_it_has_been_there(monkeypatch):
    monkeypatch.setattr(desk_module, "WAITING_MAX", 2)
    desk, goes_on = desk_module.Desk(None, None), threading.Event()
    for do in (desk.written, desk.beside):
        goes_on.clear()
        first, second = asyncio.create_task(do(goes_on.wait, PATIENCE_S)), asyncio.create_task(do(len, ()))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        with pytest.raises(Unavailable):
            await do(len, ())
        goes_on.set()
        assert await first
        await until(lambda do=do: desk._reader._waiting == desk._writer._waiting == 0)
        assert await do(len, ()) == 0
    desk.close()


def test_every_reason_has_plain_words():
    from tests.test_docs import first_codes, page, section

    assert first_codes(section(page("docs/operating.md"), "## Reasons")) == set(REASONS)


