"""Each cause by itself and with others: named, where it is, and adding up to the difference to the nano-dollar."""

from dataclasses import replace
from decimal import Decimal

import pytest

from proxy.core.pricing import Price, Tier
from proxy.core.usage import BUCKETS
from proxy.reports.reconcile.bill import Bill, ChargeLine, Tokens, UsageLine, Where, second_of
from proxy.reports.reconcile.causes import ADVICE
from proxy.reports.reconcile.compare import compare
from proxy.reports.reconcile.ours import Metered, Ours, Part

DAY, NEXT = "2026-11-03", "2026-11-04"
HERE = Where("bill.csv", 7)


def price(model, usd_input="2.50", cached="1.25", output="10", tier="default", version=""):
    rates = {"input_text": Decimal(usd_input), "cache_read": Decimal(cached), "output_text": Decimal(output)}
    return Price("openai", model, (Tier(rates),), version=version or f"{model}-{tier}", service_tier=tier)


PRICES = {one.version: one for one in (price("gpt-4o"), price("gpt-4o", "5", "2.5", "20", "priority"), price("mini"),
                                       price("gpt-4o-2024-05-13", "5", "5", "15"))}


def part(model="gpt-4o", requests=10, plain=7_000, cached=3_000, output=1_000, sort="plain", day=DAY, version=None,
         most=0):
    version = version or f"{model}-default"
    buckets = {"input_text": plain, "cache_read": cached, "output_text": output}
    tier = PRICES[version].tiers[0]
    nano = 0 if sort == "unknown" else int(sum(tier.of(name) * 1000 * count for name, count in buckets.items()))
    tokens = tuple(buckets.get(name, 0) for name in BUCKETS)
    return Part(day, model, "openai", version, sort, requests, tokens, nano, most)


def metered(*parts):
    cells = {}
    for one in parts:
        cells.setdefault((one.day, one.model), Ours()).parts.append(one)
    return Metered(cells, PRICES, {})


def usage(model="gpt-4o", requests=10, plain=7_000, cached=3_000, output=1_000, tier="default", project="", day=DAY):
    return UsageLine(day, model, Tokens(requests, plain, cached, 0, output), HERE, tier, project)


def charges(line, usd_input="2.50", cached="1.25", output="10", tier=None, places=9):
    made = []
    for kind, rate in (("input", usd_input), ("cached", cached), ("output", output)):
        usd = round(Decimal(rate) * getattr(line.tokens, kind) / 10**6, places)
        if usd:
            made.append(ChargeLine(line.day, line.model, usd, HERE, kind, tier or line.tier or "default", line.project,
                                   f"{line.model}, {kind}"))
    return made


def bill(usages, charged, days=1):
    first = second_of(DAY)
    return Bill(list(usages), list(charged), provider="openai", first=first, beyond=first + days * 86_400)


def found(of, ours=None, **options):
    result = compare(of, metered(part()) if ours is None else ours, **options)
    for cell in result.counted:
        if cell.nano_theirs is not None:
            assert cell.difference == cell.nano_theirs - cell.nano_ours, "causes do not add up to the difference"
    return result


def causes(*args, **options):
    return found(*args, **options).causes


def test_what_agrees_differs_by_nothing():
    result = found(bill([usage()], charges(usage())))
    assert (result.ours, result.theirs, result.causes, result.within) == (31_250_000, 31_250_000, {}, True)


MORE = usage(requests=12, plain=9_000, output=1_500)
CASES = {
    "missing_requests": (bill([MORE], charges(MORE)), 2_000 * 2_500 + 500 * 10_000),
    "not_billed_yet": (bill([usage(requests=9, plain=6_000)], charges(usage(plain=6_000))), -1_000 * 2_500),
    "price": (bill([usage()], charges(usage(), output="12")), 1_000 * 2_000),
    "cached_tokens": (bill([usage(plain=8_000, cached=2_000)], charges(usage(plain=8_000, cached=2_000))), 1_250_000),
    "tier": (bill([usage(tier="priority")], charges(usage(), "5", "2.5", "20", "priority")), 31_250_000),
    "rounding": (bill([usage()], charges(usage(), places=3)), 31_000_000 + 1_000_000 - 31_250_000),
    "outside_traffic": (bill([usage(), usage("o3", 2)], charges(usage()) + charges(usage("o3", 2))), 31_250_000),
    "duplicated_charge": (bill([usage()], charges(usage()) + charges(usage())[:1]), 17_500_000),
    "token_counts": (bill([usage(output=1_100)], charges(usage(output=1_100))), 1_000_000),
    "unexplained": (bill([], charges(usage(), output="12")), 2_000_000),
}


@pytest.mark.parametrize("name", CASES)
def test_each_cause_alone_is_named_with_its_amount(name):
    of, nano = CASES[name]
    if name == "rounding":
        nano = sum(int(line.usd * 10**9) for line in of.charges) - 31_250_000
    assert causes(of) == {name: nano} and nano
    assert name in ADVICE


def test_several_causes_in_one_cell_are_told_apart():
    more = usage(requests=13, plain=9_000, output=1_200)
    charged = charges(more, output="12")
    assert causes(bill([more], [*charged, charged[0]])) == {
        "duplicated_charge": 22_500_000, "missing_requests": 2_000 * 2_500 + 200 * 10_000, "price": 1_200 * 2_000}


def test_a_part_billed_in_another_tier_is_told_by_its_tokens_and_a_price_change_beside_it_too():
    rest = usage(requests=6, plain=4_000, cached=2_000, output=600)
    moved = usage("gpt-4o", 4, 3_000, 1_000, 400, "flex")
    charged = charges(rest) + charges(moved, "1.25", "0.625", "5", "flex")
    assert causes(bill([rest, moved], charged)) == {"tier": -(3_000 * 1_250 + 1_000 * 625 + 400 * 5_000)}
    dearer = charges(rest, output="11") + charges(moved, "1.25", "0.625", "5", "flex")
    assert causes(bill([rest, moved], dearer))["price"] == 600 * 1_000


def test_a_tier_that_our_answers_said_is_no_difference():
    ours = metered(part(), part(version="gpt-4o-priority", requests=2, plain=100, cached=0, output=10))
    fast = usage(requests=2, plain=100, cached=0, output=10, tier="priority")
    assert causes(bill([usage(), fast], charges(usage()) + charges(fast, "5", "2.5", "20")), ours) == {}
    untold = [replace(usage(requests=12, plain=7_100, output=1_010), tier="")]
    assert causes(bill(untold, charges(usage()) + charges(fast, "5", "2.5", "20")), ours) == {}


def test_a_tier_that_only_the_charges_tell_is_a_tier():
    line = replace(usage(), tier="")
    assert causes(bill([line], charges(line, "5", "2.5", "20", tier="priority"))) == {"tier": 31_250_000}


def test_requests_of_a_dead_gateway_explain_what_the_provider_has_more():
    unknown = part(sort="unknown", requests=2, plain=500, cached=0, output=0)
    assert causes(bill([MORE], charges(MORE)), metered(part(), unknown)) == {"unknown_usage": 10_000_000}
    assert causes(bill([usage()], charges(usage())), metered(part(), unknown)) == {}


def test_estimates_and_second_attempts_of_ours_are_named():
    guessed = part(sort="estimated", requests=2, plain=900, cached=0, output=0)
    estimated = metered(part(requests=8, plain=6_000), guessed)
    assert causes(bill([usage()], charges(usage())), estimated) == {"estimated_usage": 100 * 2_500}
    repeated = metered(part(), part(sort="retry", requests=1, plain=50, cached=0, output=5))
    assert causes(bill([usage()], charges(usage())), repeated) == {"own_repeats": -(50 * 2_500 + 5 * 10_000)}


def test_a_project_without_which_the_rest_is_ours_is_outside_traffic():
    mine, other = usage(project="mine"), usage(requests=3, plain=100, cached=0, output=9, project="other")
    of = bill([mine, other], charges(mine) + charges(other))
    assert causes(of) == {"outside_traffic": 100 * 2_500 + 9 * 10_000}
    chosen = found(of, projects=["mine"])
    assert chosen.causes == {} and chosen.ignored == {"other": 340_000}


def test_dated_snapshots_are_the_name_we_sent_and_others_are_their_own():
    dated = usage("gpt-4o-2024-08-06")
    assert causes(bill([dated], charges(dated))) == {}
    both = metered(part(), part("gpt-4o-2024-05-13", requests=1, plain=100, cached=0, output=0))
    old = usage("gpt-4o-2024-05-13", 1, 100, 0, 0)
    assert causes(bill([dated, old], charges(dated) + charges(old, "5", "5", "15")), both) == {}
    named = usage("their name")
    assert causes(bill([named], charges(named)), aliases={"their name": "gpt-4o"}) == {}


def test_what_ended_at_midnight_is_on_the_day_beside():
    lines = [usage(requests=11, plain=7_100), usage(day=NEXT, requests=9, plain=6_900)]
    ours = metered(part(), part(day=NEXT))
    assert causes(bill(lines, [one for line in lines for one in charges(line)], days=2), ours) == {"day_boundary": 0}


def test_usage_without_costs_is_compared_at_our_prices():
    result = found(bill([MORE], []))
    assert result.causes == {"missing_requests": 10_000_000} and result.theirs == 41_250_000


def test_costs_that_say_for_how_many_tokens_need_no_usage():
    charged = [replace(line, quantity=getattr(usage().tokens, line.kind)) for line in charges(usage(), output="12")]
    assert causes(bill([], charged)) == {"price": 2_000_000}


def test_costs_of_a_day_as_a_whole_are_explained_by_the_tokens_of_its_models():
    whole = [ChargeLine(DAY, "", Decimal("0.04125"), HERE)]
    result = found(bill([MORE], whole))
    assert result.causes == {"missing_requests": 10_000_000}
    assert (result.ours, result.theirs) == (31_250_000, 41_250_000)
    assert causes(bill([usage()], [ChargeLine(DAY, "", Decimal("0.05"), HERE)])) == {"unexplained": 18_750_000}


def test_opposite_errors_do_not_hide_each_other():
    ours = metered(part(), part("mini"))
    lines = [usage(), usage("mini")]
    of = bill(lines, charges(lines[0], output="11") + charges(lines[1], output="9"))
    result = found(of, ours)
    assert result.ours == result.theirs and not result.within and result.apart == 2_000_000
    assert found(of, ours, tolerance=Decimal("0.04")).within


def test_a_mean_rate_over_long_and_short_prompts_is_what_the_rows_cost():
    tiers = (Tier({"input_text": Decimal(1), "output_text": Decimal(1)}),
             Tier({"input_text": Decimal(2), "output_text": Decimal(2)}, 1_000))
    PRICES["tiered"] = Price("openai", "tiered", tiers, version="tiered")
    row = Part(DAY, "tiered", "openai", "tiered", "plain", 2, (1_500, *[0] * 8), 2_500_000, 0)
    line = replace(usage("tiered", 3, 2_100, 0, 0))
    charged = [ChargeLine(DAY, "tiered", Decimal("0.0035"), HERE, "input", "default", "", "tiered, input")]
    assert causes(bill([line], charged), metered(row)) == {"missing_requests": 1_000_000}
