"""GPU prices from a rate card: which lines count, times how many GPUs, and what is refused, with its line."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from proxy.config import ConfigError, load, warnings
from proxy.config.fields import epoch_ns
from proxy.signals.minutes import rate_card

CONFIG = """\
backends:
  llama:
    kind: vllm
    url: http://10.0.0.5:8000
    model: llama-8b
    gpu:
      type: H100
      count: 3
      usd_per_hour: {{card: {0}/gpus.csv, {1}}}
      {2}
  api: {{kind: openai, model: gpt-4o, api_key: env:X}}
routes:
  chat: {{backends: [llama, api], baseline: api}}
"""
CARD = """\
# comment
gpu,provider,usd_per_hour,kind,from,region,source
H100,there,2.00,spot,2026-01-01,,feed

H100,there,3.00,reserved,2026-01-01,,contract
H100,there,1.10,spot,2026-02-01T12:00Z,,feed
H100,there,1.10,spot,2026-02-01T13:00Z,,feed
H100,there,1.30,spot,2026-02-01T15:00+01:00,,feed
H100,there,9,spot,2026-01-01,eu,"feed, of Europe"
A100,there,1,spot,2026-01-01,,feed
"""


def ns(text: str) -> int:
    return epoch_ns(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC))


def settings(tmp_path, which="provider: there, kind: spot", more="from: 2026-01-15", card=CARD):
    (tmp_path / "gpus.csv").write_text(card)
    (tmp_path / "c.yaml").write_text(CONFIG.format(tmp_path, which, more))
    return load(tmp_path / "c.yaml", {"X": "x"})


def test_the_cards_lines_hold_from_the_day_the_gpus_are_paid_for_all_of_them(tmp_path):
    found = settings(tmp_path)
    assert [(rate.from_ns, rate.until_ns, rate.usd_per_hour) for rate in found.backends["llama"].gpu.rates] == [
        (ns("2026-01-15"), ns("2026-02-01T12:00"), Decimal("6.00")),
        (ns("2026-02-01T12:00"), ns("2026-02-01T14:00"), Decimal("3.30")),  # two lines that say the same are one
        (ns("2026-02-01T14:00"), None, Decimal("3.90"))]
    assert [line.usd for line in rate_card(found) if line.kind == "gpu"] == [Decimal("6.00"), Decimal("3.30"),
                                                                            Decimal("3.90")]
    assert warnings(found) == []


def test_they_end_when_the_gpus_are_given_back(tmp_path):
    found = settings(tmp_path, more="from: 2026-01-15\n      until: 2026-02-01T13:30:00Z")
    assert [(rate.from_ns, rate.until_ns) for rate in found.backends["llama"].gpu.rates] == [
        (ns("2026-01-15"), ns("2026-02-01T12:00")), (ns("2026-02-01T12:00"), ns("2026-02-01T13:30"))]


@pytest.mark.parametrize(("which", "usd"), [
    ("provider: there, kind: reserved", "9.00"), ("provider: there, kind: spot, region: eu", "27"),
    ("provider: there, kind: spot, gpu: A100", "3"),
])
def test_kind_region_and_name_choose_the_lines(tmp_path, which, usd):
    assert [rate.usd_per_hour for rate in settings(tmp_path, which).backends["llama"].gpu.rates] == [Decimal(usd)]


@pytest.mark.parametrize(("which", "more", "said"), [
    ("provider: ther, kind: spot", "from: 2026-01-15", "c.yaml:9: backends.llama.gpu.usd_per_hour: {card} has no spot "
     "price of H100 at ther (did you mean 'H100 there spot'?)"),
    ("provider: there, kind: spot", "from: 2025-12-31", "c.yaml:9: backends.llama.gpu.usd_per_hour: {card}:3: the "
     "first spot price of H100 at there begins after gpu.from (on 2026-01-01)"),
    ("provider: there, kind: spot", "billing: spot", "c.yaml:6: backends.llama.gpu.from: is missing: of a rate card it "
     "says which price is the first"),
    ("provider: there, kind: sport", "from: 2026-01-15", "c.yaml:9: backends.llama.gpu.usd_per_hour.kind: 'sport' is "
     "not one of reserved, on-demand, spot (did you mean 'spot'?)"),
    ("kind: spot", "from: 2026-01-15", "c.yaml:9: backends.llama.gpu.usd_per_hour.provider: provider is missing"),
    ("provider: there, kind: spot, zone: a", "from: 2026-01-15", "c.yaml:9: backends.llama.gpu.usd_per_hour.zone: "
     "unknown key 'zone'"),
])
def test_a_reference_that_finds_nothing_is_refused_with_its_line(tmp_path, which, more, said):
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, which, more)
    assert said.format(card=f"{tmp_path}/gpus.csv") in str(caught.value)


HEAD = "gpu,provider,usd_per_hour,kind,from,region,source\n"


@pytest.mark.parametrize(("card", "said"), [
    (HEAD + "H100,there,two,spot,2026-01-01,,feed\n", ":2: usd_per_hour: must be a number"),
    (HEAD + "H100,there,-1,spot,2026-01-01,,feed\n", ":2: usd_per_hour: must be from 0 to 1,000 (USD per hour for one"),
    (HEAD + "H100,there,nan,spot,2026-01-01,,feed\n", ":2: usd_per_hour: must be a number"),
    (HEAD + "H100,there,1,spot,2026-13-01,,feed\n", ":2: from: must be a date"),
    (HEAD + "H100,there,1,sport,2026-01-01,,feed\n", ":2: kind: 'sport' is not one of reserved, on-demand, spot"),
    (HEAD + "H100,there,1,spot,2026-01-01,,\n", ":2: source: is empty"),
    (HEAD + "H100,there,1,spot,2026-01-01,feed\n", ":2: has 6 values for 7 columns"),
    (HEAD + '#\nH100,"there,1,spot\n', ":3: cannot be read"),
    (HEAD + "H100,there,1,spot,2026-01-01,,a\nH100,there,2,spot,2026-01-01,,b\n",
     ":3: from: begins at the same time as another price of the same (line 2)"),
    ("gpu,provider,usd_per_hour,kind,from\n", ":1: column source is missing"),
    ("gpu,gpu,provider,usd_per_hour,kind,from,source\n", ":1: a column is given twice"),
    ("gpu,provider,usd_per_hr,kind,from,source\n", ":1: unknown column 'usd_per_hr' (did you mean 'usd_per_hour'?)"),
    ("# nothing\n", ": is empty"),
])
def test_a_card_that_cannot_be_meant_is_refused_with_its_line(tmp_path, card, said):
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, card=card)
    assert f"{tmp_path}/gpus.csv{said}" in str(caught.value)


def test_a_card_that_is_not_there_is_said(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG.format(tmp_path, "provider: there, kind: spot", "from: 2026-01-15"))
    with pytest.raises(ConfigError, match=r"gpus\.csv: cannot be read: No such file"):
        load(tmp_path / "c.yaml", {"X": "x"})
