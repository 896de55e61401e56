"""The report in a real browser: it fetches nothing, runs nothing, and a month prints on two pages, nothing cut."""

from decimal import Decimal
from io import BytesIO

import pytest
from axe_playwright_python.sync_playwright import Axe
from pypdf import PdfReader

from proxy.cli import pdf
from proxy.core.currency import Currency, Rate
from proxy.core.money import NS_PER_HOUR
from proxy.ledger.closing import ClosedPeriod
from proxy.reports import page, view
from proxy.reports.standing import Standing
from tests.support import report_month
from tests.support.ledgers import open_books

A4 = (595, 842)  # points
WIDEST, HIGHEST = 1280, 900
PAGE_PX = (297 - 22) / 25.4 * 96  # less its margins


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('month')}/ledger.db"
    report_month.make(url, 5000)
    return open_books(url, report_month.BEGAN, report_month.ENDED)


@pytest.fixture(scope="module")
def file(books, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.to_html(books, generated_ns=report_month.ENDED, ledger="ledger.db"), encoding="utf-8")
    return path


@pytest.fixture
def shown(chromium, file):
    """The page as opened, and all that it asked for or complained of."""
    tab = chromium.new_page(viewport={"width": WIDEST, "height": HIGHEST})
    asked, said = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(file.as_uri(), wait_until="networkidle")
    yield tab, asked, said
    tab.close()


def test_it_asks_for_nothing_but_itself_and_complains_of_nothing(shown, file):
    _, asked, said = shown
    assert asked == [file.as_uri()] and said == []


def test_its_style_sheet_is_the_one_its_policy_allows(shown):
    tab, _, _ = shown
    assert tab.evaluate("getComputedStyle(document.querySelector('.figure')).fontSize") == "36px"
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=document.title=1>')")
    assert tab.title() == "Savings, November 2026"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDEST, 820, 360])
def test_nothing_sticks_out_sideways_and_text_can_be_read(shown, width, scheme):
    tab, _, _ = shown
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": HIGHEST})
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert abs(_luminance(ink) - _luminance(paper)) > 0.7


def _luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(","))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


@pytest.mark.parametrize("look", ["light", "dark"])
def test_axe_finds_nothing_serious(shown, found, look):
    tab, _, _ = shown
    tab.emulate_media(color_scheme=look)
    violations = Axe().run(tab).response["violations"]
    bad = [f"{one['id']}: {one['help']}; {node['target']} {node['html'][:80]}" for one in violations
           if one["impact"] in ("serious", "critical") for node in one["nodes"]]
    found["axe_serious"] += len(bad)
    assert not bad


def test_a_bar_is_as_long_as_its_amount(shown, books):
    tab, _, _ = shown
    widths = tab.evaluate("[...document.querySelectorAll('.fall')[0].querySelectorAll('rect')]"
                          ".map(one => one.getBoundingClientRect().width)")
    total = books.statement.total
    assert widths[-1] / widths[0] == pytest.approx(total.savings / total.baseline_list, rel=0.01)


def test_a_month_prints_on_two_pages_with_everything_that_belongs_on_them(file):
    printed = PdfReader(BytesIO(pdf.to_pdf(file.read_text(encoding="utf-8"))))
    assert [(round(one.mediabox.width), round(one.mediabox.height)) for one in printed.pages] == [A4, A4]
    first, second = (one.extract_text() for one in printed.pages)
    for words in ("November 2026", "Net saving, fully loaded", "Marginal saving", "From the baseline", "How sure"):
        assert words in first, words
    for words in ("Backends", "2026-11-30", "By team", "By key", "How it is counted", "Signature", "SHA-256"):
        assert words in second, words


def test_no_chart_is_cut_by_the_end_of_a_page(chromium, file):
    """In print, both sheets are no higher than a page, so what is in them is on one page each."""
    heights = _sheets(chromium, file)
    assert len(heights) == 2 and max(heights) <= PAGE_PX, heights


def _sheets(chromium, path):
    """Their heights in print, in pixels."""
    tab = chromium.new_page(viewport={"width": int((210 - 24) / 25.4 * 96), "height": 1000})
    tab.goto(path.as_uri())
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the browser would shrink it"
    heights = tab.evaluate("[...document.querySelectorAll('.sheet')].map(one => one.getBoundingClientRect().height)")
    tab.close()
    return heights


@pytest.mark.parametrize("days", [1, 28, 31, 200, 900])
def test_other_periods_print_on_two_pages_too(tmp_path, days):
    url = f"sqlite:///{tmp_path}/ledger.db"
    report_month.make(url, 300)
    books = open_books(url, report_month.BEGAN, report_month.BEGAN + days * 24 * NS_PER_HOUR)
    html = page.to_html(books, generated_ns=report_month.ENDED, ledger="ledger.db")
    assert len(PdfReader(BytesIO(pdf.to_pdf(html))).pages) == 2


def test_a_month_in_another_currency_prints_on_two_pages_too(tmp_path, chromium):
    """A rate for every day, from a source with a long name; amounts of millions."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    report_month.make(url, 300)
    rates = [Rate(f"2026-11-{day:02}", report_month.BEGAN + (day - 1) * report_month.DAY, Decimal(1400 + day),
                  "the central rate of the day before, as the treasury keeps it") for day in range(1, 31)]
    books = open_books(url, report_month.BEGAN, report_month.ENDED, currency=Currency.since("KRW", rates))
    path = tmp_path / "won.html"
    path.write_text(page.to_html(books, generated_ns=report_month.ENDED, ledger="ledger.db"), encoding="utf-8")
    assert len(PdfReader(BytesIO(pdf.to_pdf(path.read_text(encoding="utf-8")))).pages) == 2
    assert max(_sheets(chromium, path)) <= PAGE_PX


@pytest.mark.parametrize("full", [False, True])
def test_in_print_the_rows_of_every_table_add_up_to_its_total(file, tmp_path, chromium, full):
    if full:
        url = f"sqlite:///{tmp_path}/ledger.db"
        report_month.make_full(url)
        books = open_books(url, report_month.BEGAN, report_month.ENDED)
        file = tmp_path / "full.html"
        file.write_text(page.to_html(books, generated_ns=report_month.ENDED, ledger="ledger.db"), encoding="utf-8")
    tab = chromium.new_page()
    tab.goto(file.as_uri())
    tab.emulate_media(media="print")
    tables = tab.evaluate("""[...document.querySelectorAll('.groups')].map(one => [...one.querySelectorAll('tbody tr')]
        .filter(row => row.offsetHeight).map(row => [row.className, row.querySelector('th').textContent,
                                                     row.querySelector('td.strong data').value]))""")
    tab.close()
    assert len(tables) == 4
    for rows in tables:
        *parts, nobodys, (how, name, total) = rows
        assert (how, name, nobodys[1]) == ("sum", "total", "nobody's: idle, overheads")
        assert sum(Decimal(amount) for *_, amount in (*parts, nobodys)) == Decimal(total)


def test_the_fullest_month_prints_on_two_pages(tmp_path, chromium):
    """All steps, all doubts, more of everything than has room, and no name shorter than may be."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    report_month.make_full(url)
    books = open_books(url, report_month.BEGAN, report_month.ENDED)
    shut = ClosedPeriod(1, report_month.BEGAN, report_month.ENDED, report_month.ENDED, "UTC", None, "why " * 100,
                        "finance", "", "5ea1" * 16)
    days = tuple(f"2026-11-{day:02}" for day in range(1, 31))
    final = Standing("closed", (shut,), (), tuple((day, "openai") for day in days), (), days, "2026-12-01")
    html = page.to_html(books, generated_ns=report_month.ENDED, ledger="a-ledger-with-a-long-name-of-its-own.db",
                        standing=final)
    assert len(view.waterfall(books.statement)) >= 14 and len(view.spread(books).doubts) == 5
    printed = PdfReader(BytesIO(pdf.to_pdf(html)))
    assert len(printed.pages) == 2
    assert "How sure" in printed.pages[0].extract_text() and "Signature" in printed.pages[1].extract_text()
    path = tmp_path / "full.html"
    path.write_text(html, encoding="utf-8")
    assert len(html.encode()) < 2**20
    assert max(_sheets(chromium, path)) <= PAGE_PX
