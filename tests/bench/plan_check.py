"""`make plan-check`: the planner against what is known: an article's claims, published throughput, a production week.

Claims match when every figure rounds to the one that the economics reference has for it (tests/support/economics.py).
Throughput errors are of configurations that were left out of the fit. The last line is JSON; exit 1 where something is
off: a claim, a configuration beyond 15 %, the sizing of the week beyond a point, the better of the rules that know no
future below what is published of last hour's.
"""

from __future__ import annotations

import json
import sys

from proxy.cli.plan_print import print_table
from proxy.planner import article, published, sizing_check
from tests.bench import plan_sizing
from tests.support.economics import EXPECTED, VERDICTS, matches

ERROR_MAX, OFF_MAX, ONLINE_MIN = 0.15, 1.0, 84.2
LAST_HOUR, FORECAST = ("gpt-5", "last hour"), ("gpt-5", "forecast")  # they know what has passed, and no more


def claims_that_match() -> list[int]:
    """Numbers of the claims whose figures, all of them, and verdict are the reference's."""
    return [claim.number for claim in article.claims()
            if claim.found.keys() == EXPECTED[claim.number].keys()
            and claim.verdict.startswith(VERDICTS.get(claim.number, "right"))
            and all(matches(claim.found[name], printed) for name, printed in EXPECTED[claim.number].items())]


def main() -> int:
    matched = claims_that_match()
    print(f"{len(matched)} of {len(EXPECTED)} claims match: "
          f"{sorted(set(EXPECTED) - set(matched)) or 'none is off'}\n")
    checks = published.left_out()
    each = published.by_configuration(checks)
    print_table("configuration|>points|>mean error|>worst", [
        [published.configuration(of), str(len(mine)), f"{100 * published.mean_error(mine):.1f} %",
         f"{100 * published.worst(mine).error:+.1f} %"] for of, mine in each.items()])
    worst = published.worst(checks)
    print(f"\nworst point: {worst.point.name}, {100 * worst.error:+.1f} %\n")
    sized = plan_sizing.rows()
    rows = [row for row in sized if row.published is not None]
    print_table("API|rule|>net savings, %|>published|>off by", [
        [row.api, row.held.name, f"{row.held.percent:.2f}", f"{row.published:.1f}", f"{row.off:+.2f}"] for row in rows])
    last_hour, forecast = (sizing_check.percent(sized, *rule) for rule in (LAST_HOUR, FORECAST))
    print("\n" + json.dumps({
        "claims": len(EXPECTED), "claims_matched": len(matched),
        "throughput_mae_percent": round(100 * published.mean_error(checks), 2),
        "throughput_worst_percent": round(100 * abs(worst.error), 2),
        "sizing_last_hour_percent": round(last_hour, 2), "sizing_forecast_percent": round(forecast, 2)}))
    good = (len(matched) == len(EXPECTED) and all(published.mean_error(mine) <= ERROR_MAX for mine in each.values())
            and all(abs(row.off or 0.0) <= OFF_MAX for row in rows) and max(last_hour, forecast) >= ONLINE_MIN)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
