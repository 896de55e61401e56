"""`make plan-check` says how many claims match, how far off the throughput is, what the week's sizing comes to."""

from __future__ import annotations

import json

from tests.bench import plan_check
from tests.support import economics


def test_the_last_line_has_the_figures_and_all_is_well(capsys):
    assert plan_check.main() == 0
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert told["claims"] == told["claims_matched"] == 27
    assert told["throughput_mae_percent"] <= 15 and abs(told["sizing_last_hour_percent"] - 84.2) <= 1
    assert list(told) == ["claims", "claims_matched", "throughput_mae_percent", "throughput_worst_percent",
                          "sizing_last_hour_percent", "sizing_forecast_percent"]
    assert told["sizing_forecast_percent"] >= 84.2


def test_a_claim_that_is_off_is_noticed(monkeypatch, capsys):
    monkeypatch.setitem(economics.EXPECTED, 17, economics.EXPECTED[17] | {"percent at 1:1": "10.2"})
    assert plan_check.main() == 1
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["claims_matched"] == 26
