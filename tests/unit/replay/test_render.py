"""What is shown of a replay: one table, one JSON object, one CSV that is whole, one page that runs nobody's code."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from proxy.replay.figures import money, percent, seconds, span
from proxy.replay.files import replacing
from proxy.replay.outcome import Assumption, Outcome, Replay, Row, Sample
from proxy.replay.page import to_html
from proxy.replay.render import SIMULATED, print_table, to_json, write_decisions

HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&{{ 7 * 7 }}"


def outcome(policy="marginal-cost", *, bill=100.0, api=40.0, avoided=60.0, gpu=24.0, bound=80.0, **changes):
    samples = tuple(Sample(at, 0.5, 0.001, 3, api * at / 60, avoided * at / 60) for at in range(0, 61, 6))
    facts = {"requests": 1000, "span_s": 60.0, "local": 600, "breaches": 2, "breaches_percent": 0.2, "utilization": 0.5,
             "mean_wait_s": 0.71, "samples": samples, "rows": ()} | changes
    return Outcome(policy, api_bill_usd=bill, api_usd=api, avoided_usd=avoided, gpu_usd=gpu, bound_usd=bound, **facts)


LOSS = outcome("self-hosted-only", api=0.0, avoided=70.0, gpu=130.0, bound=None)
BOTH = Replay("conv.csv", (outcome(), LOSS), (Assumption("API's first token", "0.5 s", "a constant"),), ("no zone",),
              datetime(2023, 11, 16, 18, 15, 46, tzinfo=UTC))


def table(replay, width=150):
    out = io.StringIO()
    print_table(replay, out, width=width)
    return out.getvalue()


def test_savings_are_the_bill_less_what_was_paid():
    one = outcome()
    assert (one.savings_usd, one.savings_percent, one.percent_of_bound, one.local_percent) == (36, 36, 75, 60)
    assert (LOSS.savings_usd, LOSS.percent_of_bound) == (-30, None)
    nothing = outcome(bill=0.0, bound=0.0, requests=0)
    assert nothing.savings_percent is nothing.percent_of_bound is nothing.local_percent is None
    assert Sample(0, 0, 0, 0, 2.0, 3.0).pure_api_usd == 5 and Sample(0, 0, 0, 0, 2.0, 3.0, 7.0).pure_api_usd == 7


def test_figures_hide_nothing():
    assert (money(-0.001), money(1234.5), money(None), money(float("nan"))) == ("0.00", "1,234.50", "-", "-")
    assert (percent(0.0), percent(0.001), percent(99.96), percent(None)) == ("0.0 %", "<0.1 %", "100.0 %", "-")
    assert (seconds(0.0123), seconds(1.5), seconds(7200), seconds(None)) == ("12 ms", "1.50 s", "2 h", "-")
    assert (span(0.4), span(3502), span(604799.6), span(90000)) == ("0.4 s", "58 min 22 s", "7 d", "1 d 1 h")


def test_the_table_has_a_line_per_policy_and_says_that_it_is_a_simulation():
    text = table(BOTH)
    line = next(line.split() for line in text.splitlines() if line.startswith(" marginal-cost"))
    assert line == "marginal-cost 1,000 60.0 % 40.00 24.00 36.00 36.0 % 75.0 % 0.20 % 0.71 s 50.0 %".split()
    assert "-30.00" in text and SIMULATED in text and "! no zone" in text and "API's first token" in text


def test_a_narrow_table_has_a_column_per_policy_and_cuts_nothing():
    text = table(BOTH, 80)
    assert re.search(r"savings USD +36\.00 +-30\.00", text) and "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_no_control_character_and_no_markup_reaches_the_terminal():
    assumed = Assumption("[red]a", "\x1b]0;b", "c")
    text = table(Replay("\x1b[31mx", (outcome("[bold]\x07policy"),), (assumed,), ("\x1b[2J",)))
    assert "\x1b" not in text and "\x07" not in text and "[bold]?policy" in text and "[red]a" in text


def test_json_is_one_object_with_every_figure_and_no_nan():
    odd = Sample(0.0, float("nan"), float("inf"), 0, 0.0, 0.0)
    said = json.loads(to_json(Replay("t", (outcome(samples=(odd,), bound=None), LOSS))), parse_constant=pytest.fail)
    first, second = said["policies"]
    assert (said["simulation"], first["policy"], second["policy"]) == (True, "marginal-cost", "self-hosted-only")
    assert first["savings_usd"] == 36 and first["percent_of_bound"] is None and first["breaches"] == 2
    assert first["samples"]["bid_price"] == first["samples"]["utilization"] == [None]
    assert json.loads(to_json(BOTH))["began"] == "2023-11-16T18:15:46+00:00"


# ---------------------------------------------------------------- decisions

ROWS = [Row(0, 0.0, "llama", 0.25, 0.5, 2.0, 0.000012, "cheaper"),
        Row(1, 1.5, "=cmd()", None, None, None, None, "@late")]


def test_decisions_have_a_line_per_request_and_no_formula(tmp_path):
    write_decisions(ROWS, tmp_path / "out.csv")
    first, second = csv.DictReader((tmp_path / "out.csv").open(newline=""))
    assert first == {"index": "0", "at_s": "0.000000", "backend": "llama", "wait_s": "0.250000",
                     "first_token_s": "0.500000", "finish_s": "2.000000",
                     "cost_usd": "0.000012000", "reason": "cheaper"}
    assert second["backend"] == "'=cmd()" and second["reason"] == "'@late"
    assert second["wait_s"] == second["cost_usd"] == ""


def test_a_csv_that_fails_midway_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "out.csv"

    def failing():
        yield ROWS[0]
        raise RuntimeError("midway")

    for there in (None, "old"):
        if there is not None:
            path.write_text(there)
        with pytest.raises(RuntimeError, match="midway"):
            write_decisions(failing(), path)
        assert [one.read_text() for one in tmp_path.iterdir()] == ([] if there is None else [there])


def test_a_csv_is_not_seen_before_it_is_whole(tmp_path):
    path = tmp_path / "out.csv"
    with replacing(path) as out:
        out.write("half")
        out.flush()
        assert not path.exists()
    assert path.read_text() == "half" and [one.name for one in tmp_path.iterdir()] == ["out.csv"]


def test_a_link_keeps_pointing_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as out:
        out.write("x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "x"
    with replacing("/dev/null") as out:
        out.write("x")


# ---------------------------------------------------------------- the page

class Tags(HTMLParser):
    """Elements with their attributes, and the text between, script and style apart."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.scripts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        (self.scripts if self.tags and self.tags[-1][0] == "script" else self.words).append(data)


def test_the_page_says_what_it_is_and_shows_every_policy():
    words = " ".join(" ".join(Tags(to_html(BOTH)).words).split())
    assert SIMULATED in words and "figures assumed" in words and "a constant" in words and "no zone" in words
    assert "2023-11-16 18:15:46 UTC" in words and "36.00" in words and "-30.00" in words and "75.0 %" in words
    for name in ("Cost so far", "GPU utilisation", "Bid price", "Savings by policy", "self-hosted-only"):
        assert name in words


def test_the_page_loads_nothing():
    tags = Tags(to_html(BOTH)).tags
    assert {"src", "srcset", "data", "action"} & {name for _, attributes in tags for name in attributes} == set()
    assert [attributes["href"] for _, attributes in tags if "href" in attributes] == ["#assumed"]
    policy = next(attributes["content"] for _, attributes in tags if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "url(" not in to_html(BOTH)


def test_hostile_names_stay_text():
    hostile = Replay(HOSTILE, (outcome(HOSTILE),), (Assumption(HOSTILE, HOSTILE, HOSTILE),), (HOSTILE,))
    harmless = Replay("t", (outcome("p"),), (Assumption("a", "b", "c"),), ("w",))
    page, plain = Tags(to_html(hostile)), Tags(to_html(harmless))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in "".join(page.words)
    data = next(text for text in page.scripts if text.startswith('{"began"'))
    assert "<" not in data and json.loads(data)["policies"][0]["name"] == HOSTILE


def test_plots_count_gpu_time_in_and_show_the_bid_price_by_the_hour():
    data = json.loads(next(text for text in Tags(to_html(BOTH)).scripts if text.startswith('{"began"')))
    first = data["policies"][0]
    assert (first["cost"][0], first["cost"][-1], first["bill"][-1]) == (0, 64, 100)
    assert (first["bid"][0], first["busy"][0]) == (3.6, 50)


def test_bars_stay_within_their_track_and_start_at_zero():
    bars = [dict(re.findall(r"(left|width):([\d.]+)%", attributes["style"]))
            for tag, attributes in Tags(to_html(BOTH)).tags if attributes.get("class", "").startswith("bar ")]
    (gain, loss) = [(float(bar["left"]), float(bar["left"]) + float(bar["width"])) for bar in bars]
    assert gain[0] == pytest.approx(loss[1]) and loss[0] == 0 and gain[1] <= 100


@pytest.mark.parametrize("replay", [
    Replay("t", ()), Replay("t", (outcome(samples=()),)),
    Replay("t", (outcome(bill=0.0, api=0.0, gpu=0.0, requests=0),)),
    Replay("t", (outcome(samples=(Sample(0.0, float("nan"), float("inf"), 0, 0.0, 0.0),) * 2),)),
    Replay("t", tuple(outcome(f"p{number}") for number in range(12)))])
def test_odd_replays_have_a_page_and_a_table(replay):
    assert "NaN" not in to_html(replay).split('id="data"')[-1][:5000] and "Infinity" not in to_html(replay)
    assert SIMULATED in table(replay) and SIMULATED in " ".join(table(replay, 60).split())


def test_what_is_not_ours_comes_with_its_licence():
    assert "Copyright (c) 2022 Leon Sorokin" in to_html(BOTH)
    assert "</script" not in (files("proxy") / "vendored/uplot/uPlot.iife.min.js").read_text().lower()
