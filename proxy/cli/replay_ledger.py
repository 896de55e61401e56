"""Our own ledger as a trace: the requests that clients got an answer to, with the tokens that were counted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from sqlalchemy import Select, bindparam, func, select

from proxy.cli.replay_case import ReplayRefused, Traffic
from proxy.core.money import NS_PER_S
from proxy.ledger.archived import first_day
from proxy.ledger.schema import requests
from proxy.ledger.store import reading
from proxy.replay.trace import Trace

ROWS_MAX = 20_000_000
TOLD_EVERY = 20_000
INPUT = ("input_text", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "input_image")
OUTPUT = ("output_text", "reasoning", "output_audio")
FINAL = (requests.c.final == 1) & (requests.c.ended_ns >= bindparam("begin")) & (
    requests.c.started_ns >= bindparam("begin")) & (requests.c.started_ns < bindparam("end"))
ANSWERED = FINAL & requests.c.end_reason.in_(("complete", "client_abort", "limit")) & (requests.c.status < 400)
COUNT: Select[tuple[int]] = select(func.count()).select_from(requests)
ROWS = (select(requests.c.started_ns, sum((requests.c[bucket] for bucket in INPUT[1:]), requests.c[INPUT[0]]),
               sum((requests.c[bucket] for bucket in OUTPUT[1:]), requests.c[OUTPUT[0]]),
               requests.c.key_id, requests.c.route, requests.c.baseline_cached_tokens)
        .where(ANSWERED).order_by(requests.c.started_ns, requests.c.id))


def ledger_traffic(url: str, from_ns: int, to_ns: int, route: str | None,
                   progress: Callable[[int, int], None] | None = None) -> Traffic:
    """The requests that came in [from, to), of one route or of all; their model is the route they came for.

    The GPUs are held for the whole period. ReplayRefused where nothing came, LedgerUnavailable for no ledger.
    """
    trace, cached = Trace([], [], [], [], []), []
    period = {"begin": from_ns, "end": to_ns}
    with reading(url) as connection:
        if (day := first_day(connection, from_ns, to_ns)) is not None:
            raise ReplayRefused(f"rows of {day} were archived; give another period with --from and --to, or a backup "
                                "of before")
        wanted = ANSWERED if route is None else ANSWERED & (requests.c.route == route)
        count = connection.execute(COUNT.where(wanted), period).scalar_one()
        lost = connection.execute(COUNT.where(FINAL), period).scalar_one() - connection.execute(
            COUNT.where(ANSWERED), period).scalar_one()
        if not count or count > ROWS_MAX:
            of = f" of route '{route}'" if route else ""
            raise ReplayRefused(f"the ledger has {count or 'no'} answered requests{of} in that period; give another "
                                "with --from and --to")
        rows = connection.execute(ROWS if route is None else ROWS.where(requests.c.route == route), period)
        for number, (at_ns, prompt, output, key, name, hit) in enumerate(rows):
            trace.at_s.append((at_ns - from_ns) / NS_PER_S)
            trace.prompt.append(max(1, prompt))
            trace.output.append(max(1, output))
            trace.client.append(key)
            trace.model.append(name)
            cached.append(min(hit, max(1, prompt)))
            if progress is not None and number % TOLD_EVERY == 0:
                progress(number, count)
    if lost:
        trace.warnings.append(f"requests without an answer, left out: {lost:,}")
    began = dt.datetime.fromtimestamp(from_ns // NS_PER_S, dt.UTC)
    return Traffic("ledger", Trace(trace.at_s, trace.prompt, trace.output, trace.client, trace.model, None,
                                   trace.warnings, began), to_ns, cached, (to_ns - from_ns) / NS_PER_S)
