"""Yes, no or unclear; the month and its interval; what would change it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from proxy.planner.names import PlanRefused
from proxy.planner.sizing import Terms, open_rules
from proxy.planner.sizing_answer import MONTH_H, Answer, Case, Overheads, Spot, answer, month_of
from proxy.planner.sizing_curves import Load


def case(usd_an_hour=12.0, days=7, **changes) -> Case:
    """Work for one replica in every hour, worth so much; a rent of 5; every day like the others."""
    slots = days * 96
    load = Load(np.arange(slots), np.full(slots, usd_an_hour / 4), np.full(slots, 900.0), slots, 900.0, usable=1.0)
    return replace(Case(load, Terms(5.0), Overheads()), **changes)


def test_a_month_is_730_hours_of_the_same():
    found = answer(case(), explain=False)
    assert found.best.name == "fixed, best" and found.best.sizes[0] == 1
    assert found.month.bill_usd == pytest.approx(12 * MONTH_H)
    assert found.month.net_usd == pytest.approx((12 - 5) * MONTH_H)
    assert (found.month.low_usd, found.month.high_usd) == (pytest.approx(found.month.net_usd),) * 2
    assert found.month.answer == "yes"


def test_overheads_come_off_and_the_set_up_pays_back():
    month = answer(case(overheads=Overheads(6000, 110, 12)), explain=False).month
    assert month.net_usd == pytest.approx(7 * MONTH_H - 110 - 500)
    assert month.payback_months == pytest.approx(6000 / (7 * MONTH_H - 110))


def test_no_where_the_rent_is_never_earned_and_nothing_is_held_then():
    found = answer(case(usd_an_hour=4.0, overheads=Overheads(6000, 100, 12)))
    assert found.best.sizes.max() == 0
    assert found.month.net_usd == pytest.approx(-600)
    assert found.month.answer == "no" and found.month.payback_months is None


def test_no_where_the_overheads_eat_what_is_earned():
    assert answer(case(overheads=Overheads(0, 7 * MONTH_H, 12)), explain=False).month.answer == "no"
    assert answer(case(overheads=Overheads(0, 6.9 * MONTH_H, 12)), explain=False).month.answer == "yes"


def test_unclear_where_days_differ_too_much():
    plain = case(days=7)
    usd = plain.load.usd.copy()
    usd[:6 * 96] = 5.1 / 4
    usd[6 * 96:] = 12.0 / 4
    found = answer(replace(plain, load=replace(plain.load, usd=usd), overheads=Overheads(0, 300, 12)), explain=False)
    assert found.month.net_usd > 0 and found.month.low_usd < 0
    assert found.month.answer == "unclear"


def test_the_interval_widens_with_the_days_spread_and_needs_three_days():
    few = answer(case(days=2), explain=False).month
    assert few.low_usd is None and few.net_usd > 0 and few.answer == "unclear"
    plain = case(days=98)
    usd = plain.load.usd * np.repeat(np.tile([0.8, 1.2], 49), 96)
    month = answer(replace(plain, load=replace(plain.load, usd=usd)), explain=False).month
    # a day nets 12 * 0.8 - 5 or 12 * 1.2 - 5 USD an hour: a deviation of 2.4, of the mean of 98 days 2.4 / sqrt(97)
    half = 1.96 * 2.4 / np.sqrt(97) * MONTH_H
    assert month.high_usd - month.net_usd == pytest.approx(half, rel=0.08)


def test_spot_is_cheaper_and_loses_time():
    spot = Spot(2.0, interruptions_per_hour=0.5, available=0.8, redone_s=60.0)
    terms = spot.terms(Terms(5.0, startup_s=300.0))
    assert terms.usd_per_hour == pytest.approx(0.8 * 2 + 0.2 * 5)
    assert terms.lost == pytest.approx(0.8 * 0.5 * 360 / 3600)
    found = answer(case(spot=spot), explain=False)
    assert found.best.name == "fixed, best, spot"
    assert found.best.rent_usd[0] == pytest.approx(2.6 * found.best.sizes[0])


@pytest.mark.parametrize("wrong", [Spot(-1.0), Spot(1.0, -1.0), Spot(1.0, 0.1, 1.5), Spot(1.0, 100.0)])
def test_impossible_spot_is_refused(wrong):
    with pytest.raises(PlanRefused):
        wrong.terms(Terms(5.0))


def test_impossible_overheads_are_refused():
    for wrong in ((-1, 0, 12), (0, -1, 12), (0, 0, 0)):
        with pytest.raises(PlanRefused, match="overheads"):
            Overheads(*wrong)


def test_a_rule_is_recommended_only_on_days_enough_to_judge_it():
    """By the clock, one day would be sized by itself; yesterday's rule begins with a day that nobody knew."""
    short, week, month = (answer(case(days=days), explain=False).curve for days in (1, 7, 30))
    assert set(open_rules(short)) == {"fixed, best", "off when idle", "last hour", "forecast"}
    assert set(open_rules(month)) - set(open_rules(week)) == {"yesterday"}


def turns(found: Answer) -> dict[str, float | None]:
    return {one.what: one.factor for one in found.turns}


def test_the_answer_turns_where_the_value_meets_the_rent():
    found = turns(answer(case()))
    assert found["API prices"] == pytest.approx(5 / 12, rel=0.01)
    assert found["GPU rent"] == pytest.approx(12 / 5, rel=0.01)
    assert found["traffic"] is None or found["traffic"] < 0.5  # a quarter of it cannot pay for a whole replica


def test_every_change_is_the_same_case_with_one_thing_otherwise():
    found = answer(case(overheads=Overheads(1200, 100, 12), spot=Spot(3.0)))
    changed = {f'{one.what} {one.how}': one.month for one in found.changes}
    assert changed["overheads doubled"].net_usd == pytest.approx(found.month.net_usd - 200)
    assert changed["overheads none"].net_usd == pytest.approx(found.month.net_usd + 200)
    assert changed["spot none"].net_usd == pytest.approx(7 * MONTH_H - 200)
    assert changed["API prices +25 %"].net_usd == pytest.approx(found.month.net_usd + 0.25 * 12 * MONTH_H, rel=0.02)
    assert changed["GPU rent +100 %"].net_usd < found.month.net_usd


def test_a_month_of_a_rule_is_its_own():
    whole = case()
    found = answer(whole, explain=False)
    assert month_of(whole, found.held["fixed, for the peak"]).net_usd == pytest.approx(found.month.net_usd)
