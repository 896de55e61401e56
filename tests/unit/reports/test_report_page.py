"""The page: one file that fetches and runs nothing, says every figure, and lets no name do anything."""

import json
import re
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from importlib.resources import files
from zoneinfo import ZoneInfo

import pytest
from test_report_statement import DAY, T0
from test_report_statement import url as url  # the ledger of those tests

from proxy.core.money import nano
from proxy.ledger.closing import ClosedPeriod
from proxy.reports import charts, page, pricebook, view
from proxy.reports.figures import Amount
from proxy.reports.period import parse
from proxy.reports.render import to_json
from proxy.reports.standing import Standing
from proxy.reports.view import Step
from tests.support import report_month
from tests.support.ledgers import open_books

UTC, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The URL of a ledger with a month in it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('month')}/ledger.db"
    report_month.make(url, 5000)
    return url


@pytest.fixture(scope="module")
def month(filled):
    return open_books(filled, report_month.BEGAN, report_month.ENDED)


@pytest.fixture(scope="module")
def html(month):
    return page.to_html(month, generated_ns=report_month.ENDED, ledger="ledger.db")


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_in_it_runs_or_is_fetched(html):
    elements = Elements(html).found
    assert not {tag for tag, _ in elements} & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    names = {name for _, attributes in elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href", "style", "srcset", "action")]
    (policy,) = (one["content"] for tag, one in elements if one.get("http-equiv") == "Content-Security-Policy")
    (css,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert policy == (f"default-src 'none'; style-src 'sha256-{page._sha256_of(css)}'; base-uri 'none'; "
                      "form-action 'none'")
    assert "url(" not in css.replace("url(#stripes)", "") and "@import" not in css and "</" not in css
    assert not re.search(r"https?:|//[a-z]", html.replace("https://example.org/?", ""))


def test_names_are_words_and_nothing_else(html):
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    text = "".join(Elements(html).text)
    assert '=HYPERLINK("https://example.org/?"&A1)' in text, "a page has no formulas"
    assert not set(text) & set("\x1b\u202e\u2066\x00") and "ops?[31m" in text and "?תמיכה?" in text
    assert "<bdi>?תמיכה?</bdi>" in html


def test_it_is_small_and_the_same_every_time(month, html):
    assert len(html.encode()) < 120 * 1024
    assert html == page.to_html(month, generated_ns=report_month.ENDED, ledger="ledger.db")


def test_both_savings_stand_side_by_side_each_with_what_it_means(month, html):
    text = re.sub(r"\s+", " ", "".join(Elements(html).text))
    total = month.statement.total
    assert f"Net saving, fully loaded {Amount(total.savings)} USD" in text and view.NET in text
    assert f"Marginal saving {Amount(month.marginal.saving)} USD" in text and view.MARGINAL in text
    assert "A loss." not in text


def test_a_period_in_which_nothing_happened_says_so(filled):
    books = open_books(filled, report_month.BEGAN - 9 * report_month.DAY, report_month.BEGAN - report_month.DAY)
    html = page.to_html(books, generated_ns=report_month.ENDED, ledger="ledger.db")
    assert "Nothing was booked in this period." in html and ">0.00</data> <small>" in html
    assert [(tick.at, tick.text) for tick in charts.columns(books.spans).cost_ticks] == [("100", "0"), ("0", "1")]


def test_a_loss_is_said_plainly_and_in_red(url):
    books = open_books(url, T0, T0 + 3 * DAY)
    html = page.to_html(books, generated_ns=T0 + 3 * DAY, ledger="ledger.db")
    total = books.statement.total
    assert total.savings < 0 and 'class="figure loss"' in html and 'class="of net loss"' in html
    assert f"would have cost {Amount(-total.savings).__html__()} USD less" in re.sub(r"\s+", " ", html)


def test_every_day_and_every_group_is_there(month, html):
    text = Elements(html).text
    for span in month.spans:
        assert span.name in text and str(Amount(span.statement.total.savings)) in text
    for by in month.by.values():
        for row in by.rows:
            assert str(Amount(row.savings)) in text, (by.by, row.group)
    assert len(month.spans) == 30 and min(span.statement.total.savings for span in month.spans) < 0


def test_a_long_list_is_short_in_print_and_bounded_on_the_screen(month, monkeypatch):
    keys = [row for row in month.by["key"].rows if row.allocated]
    table = page._table(month, "key", "key", "By key")
    shown = page.PRINT_ROWS["key"] - 1
    assert len(table.rows) == shown and table.others.label == f"{len(keys) - shown} others" and table.rest is None
    assert [*table.rows, *table.more] == view.lines(month.by["key"])[:-1]
    monkeypatch.setattr(page, "PAGE_ROWS_MAX", 9)
    table = page._table(month, "key", "key", "By key")
    assert len(table.rows) + len(table.more) == 8 and table.rest.label == f"{len(keys) - 8} others"
    assert sum(one.savings.nano for one in (*table.rows, *table.more, table.rest, table.nobodys)) == (
        table.total.savings.nano)


def test_every_version_of_a_price_is_named_with_its_share(month, html):
    found = {one.version: one for one in view.prices(month)}
    known = (report_month.OPENAI, report_month.DEARER, report_month.ANTHROPIC)
    assert found.keys() == {one.version for one in known}
    assert sum(one.baseline.nano for one in found.values()) == month.statement.total.baseline
    assert sum(one.api.nano for one in found.values()) == month.statement.total.api
    assert all(one.version[:10] in html and one.source in html for one in known)
    assert "2.78 USD per hour" in html and "0.21 USD per kWh" in html
    assert {line.name for line in month.card} == {line.name for line in report_month.CARD}


def test_another_price_is_another_fingerprint(month):
    first = pricebook.fingerprint(month.prices, month.card)
    assert first == pricebook.fingerprint(month.prices[::-1], month.card)
    assert len({first, pricebook.fingerprint(month.prices[1:], month.card),
                pricebook.fingerprint(month.prices, month.card[1:])}) == 3


def test_what_another_model_answered_is_told_apart(month, html):
    text = re.sub(r"\s+", " ", "".join(Elements(html).text))
    total = month.statement.total
    assert 0 < total.substituted < total.succeeded
    assert f"{total.substituted:,} of {total.succeeded:,} answers" in text and "from another model" in text


def test_a_rate_card_of_thousands_of_lines_is_bounded(month):
    hourly = [replace(month.card[-1], from_ns=report_month.BEGAN + hour) for hour in range(5000)]
    many = [replace(month.prices[0], version=f"{number:064}") for number in range(1000)]
    html = page.to_html(replace(month, card=tuple(hourly), prices=tuple(many)), generated_ns=report_month.ENDED,
                        ledger="ledger.db")
    hidden = 5000 - page.CARD_ROWS_MAX + 1000 - page.PAGE_ROWS_MAX
    assert f"{hidden:,} more" in html and f"{1000 - page.PRINT_ROWS['price']} others" in html
    assert len(html.encode()) < 250 * 1024


def test_backends_that_cost_most_come_first(month):
    found = page._dearest(view.backend_lines(month))
    assert [one.name for one in found] == ["llama-70b", "qwen-32b", "openai", "anthropic"]


def test_a_closed_period_says_who_closed_it_and_is_signed_by_its_hash(month, html):
    at = report_month.ENDED + 5 * report_month.DAY
    period = ClosedPeriod(1, report_month.BEGAN, report_month.ENDED, at, "UTC", None, "", "Ada <b>\u202e", "{}",
                          "5ea1" * 16)
    standing = Standing("closed", (period,), (), ())
    closed = page.to_html(month, generated_ns=at, ledger="ledger.db", standing=standing)
    assert "Ada &lt;b&gt;?" in closed and "5ea15ea15ea15ea1…" in closed and "6 December 2026, 00:00" in closed
    assert "Closed on 2026-12-06 by Ada" in closed and "Status" not in html
    half = page.to_html(month, generated_ns=at, ledger="ledger.db", standing=replace(standing, status="partly closed"))
    assert "Partly closed" in half and "5ea15ea1" not in half


def test_the_fingerprint_is_of_the_figures(month):
    total = month.statement.total
    other = replace(month.statement, total=replace(total, api_retries=total.api_retries + 1))
    assert page.fingerprint(month) == page.fingerprint(replace(month, spans=()))
    assert page.fingerprint(replace(month, by={**month.by, "route": other})) != page.fingerprint(month)


def test_what_is_signed_can_be_had_again_by_machine(filled, html):
    """Whatever tag or grouping a form shows."""
    (signed,) = re.findall("SHA-256 of the figures <code>([0-9a-f]{64})</code>", html)
    for more in ({"by_day": True}, {"tag": "tag:nothing"}, {"time_zone": "Europe/Berlin"}):
        books = open_books(filled, report_month.BEGAN, report_month.ENDED, **more)
        assert json.loads(to_json(books.statement, books=books))["figures_sha256"] == signed
    other = open_books(filled, report_month.BEGAN, report_month.ENDED - 60 * 10**9)
    assert page.fingerprint(other) != signed


def test_the_page_says_that_metering_is_no_invoice(html):
    assert "API: the tokens that providers reported, at the price in force; not an invoice." in html
    assert "API, as metered" in html and ">paid<" not in html


@pytest.mark.parametrize(("began", "ended", "zone", "title"), [
    ("2026-11-01", "2026-12-01", UTC, "November 2026"), ("2026-12-01", "2027-01-01", BERLIN, "December 2026"),
    ("2026-11-01", "2026-11-02", UTC, "1 November 2026"),
    ("2026-11-01", "2027-01-01", UTC, "1 November 2026 to 31 December 2026"),
    ("2026-11-01", "2026-11-26T12:30", UTC, "1 to 26 November 2026"),
    ("2026-10-31T23:00Z", "2026-11-30T23:00Z", BERLIN, "November 2026")])
def test_the_title_is_the_period(began, ended, zone, title):
    assert page.title(parse(began, zone), parse(ended, zone), zone) == title


def test_apis_and_gpus_have_the_dashboards_colours():
    def colours(name, path):
        text = files("proxy.reports").joinpath(*path).read_text(encoding="utf-8")
        return set(re.findall(rf"--{name}: (#[0-9a-f]+);", text))

    report, dashboard = ("static", "report.css"), ("dashboard", "static", "dashboard.css")
    assert colours("api", report) == colours("api", dashboard) and len(colours("api", report)) == 2
    assert colours("serving", report) == colours("own", dashboard)


def test_a_bar_begins_where_the_one_before_ended():
    steps = [Step(name, name, Amount(nano(usd)), kind) for name, usd, kind in (
        ("baseline", 100, "total"), ("api", -150, "cost"), ("corrections", 30, "gain"), ("net", -20, "total"))]
    found, zero = charts.bars(steps)
    assert [(bar.at, bar.size) for bar in found] == [("33.333", "66.667"), ("0", "100"), ("0", "20"), ("20", "13.333")]
    assert zero == "33.333"
    assert charts.bars([Step("net", "net", Amount(0), "total")]) == ([charts.Bar("net", "0", "0")], "0")


def test_columns_stand_on_one_axis_and_stay_in_it(month):
    found = charts.columns(month.spans)
    assert [column.label for column in found.columns if column.label] == [
        "1 Nov", "5", "9", "13", "17", "21", "25", "29"]
    for ticks in (found.cost_ticks, found.net_ticks):
        assert 2 <= len(ticks) <= charts.TICKS_MAX + 2 and sum(tick.zero for tick in ticks) == 1
        assert (ticks[0].at, ticks[-1].at) == ("100", "0")
    for column, span in zip(found.columns, month.spans, strict=True):
        whole = sum(Decimal(bar.size) for bar in column.costs)
        top, cost = Decimal(column.costs[-1].at), span.statement.total.actual
        assert 0 <= top and abs(top + whole - 100) < Decimal("0.01")
        assert (top < Decimal(column.baseline)) == (cost > span.statement.total.baseline)
        assert (column.net.css == "loss") == (span.statement.total.savings < 0)
        assert 0 <= Decimal(column.net.at) <= Decimal(column.net.at) + Decimal(column.net.size) <= Decimal("100.001")
