"""Our own ledger as a trace: the requests that clients got an answer to, with the tokens that were counted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from sqlalchemy import Connection, Select, bindparam, func, select

from proxy.cli.replay_case import ReplayRefused, Traffic
from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.ledger.archived import first_day
from proxy.ledger.schema import requests
from proxy.ledger.store import reading
from proxy.replay.trace import Trace
from proxy.wire.endpoints import Endpoint

ROWS_MAX = 20_000_000
TOLD_EVERY = 20_000
INPUT = ("input_text", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "input_image")
OUTPUT = ("output_text", "reasoning", "output_audio")
FINAL = (requests.c.final == 1) & (requests.c.ended_ns >= bindparam("begin")) & (
    requests.c.started_ns >= bindparam("begin")) & (requests.c.started_ns < bindparam("end"))
SERVED = FINAL & requests.c.end_reason.in_(("complete", "client_abort", "limit")) & (requests.c.status < 400)
ANSWERED = SERVED & (requests.c.endpoint != Endpoint.EMBEDDINGS.value)  # which decode nothing
COUNT: Select[tuple[int]] = select(func.count()).select_from(requests)
ROWS = (select(requests.c.started_ns, sum((requests.c[bucket] for bucket in INPUT[1:]), requests.c[INPUT[0]]),
               sum((requests.c[bucket] for bucket in OUTPUT[1:]), requests.c[OUTPUT[0]]),
               requests.c.key_id, requests.c.route, requests.c.baseline_cached_tokens)
        .where(ANSWERED).order_by(requests.c.started_ns, requests.c.id))


def _first_ns(connection: Connection, from_ns: int, to_ns: int) -> int:
    """When the ledger's first request came, where it is in the period; else the period's beginning."""
    older = select(requests.c.id).where(requests.c.ended_ns < from_ns).limit(1)
    if first_day(connection, 0, from_ns) is not None or connection.execute(older).first() is not None:
        return from_ns
    first: int | None = connection.execute(select(func.min(requests.c.started_ns)).where(FINAL),
                                           {"begin": from_ns, "end": to_ns}).scalar()
    return from_ns if first is None else first


def ledger_traffic(url: str, from_ns: int, to_ns: int, route: str | None,
                   progress: Callable[[int, int], None] | None = None) -> Traffic:
    """The requests that came in [from, to), of one route or of all; their model is the route they came for.

    The GPUs are held for the whole period, but for what of it came before the ledger began: of that nothing is known,
    so its rent has nothing to stand against. ReplayRefused where nothing came, LedgerUnavailable for no ledger.
    """
    trace, cached = Trace([], [], [], [], []), []
    with reading(url) as connection:
        if (day := first_day(connection, from_ns, to_ns)) is not None:
            raise ReplayRefused(f"rows of {day} were archived; give another period with --from and --to, or a backup "
                                "of before")
        first_ns = _first_ns(connection, from_ns, to_ns)
        if first_ns - from_ns >= NS_PER_MINUTE:
            began = dt.datetime.fromtimestamp(first_ns // NS_PER_S, dt.UTC)
            trace.warnings.append(f"the ledger begins at {began:%Y-%m-%d %H:%M} UTC, later than asked for: so does "
                                  "this, and rent of before is left out")
            from_ns = first_ns
        period = {"begin": from_ns, "end": to_ns}
        final, served, answered = (connection.execute(COUNT.where(which), period).scalar_one()
                                   for which in (FINAL, SERVED, ANSWERED))
        count = answered if route is None else connection.execute(
            COUNT.where(ANSWERED & (requests.c.route == route)), period).scalar_one()
        if not count or count > ROWS_MAX:
            of = f" of route '{route}'" if route else ""
            raise ReplayRefused(f"the ledger has {count or 'no'} answered requests{of} in that period that write text; "
                                "give another with --from and --to")
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
    if final > served:
        trace.warnings.append(f"requests without an answer, left out: {final - served:,}")
    if served > answered:
        trace.warnings.append(f"requests for embeddings, which write no tokens, left out: {served - answered:,}")
    began = dt.datetime.fromtimestamp(from_ns // NS_PER_S, dt.UTC)
    return Traffic("ledger", Trace(trace.at_s, trace.prompt, trace.output, trace.client, trace.model, None,
                                   trace.warnings, began), to_ns, cached, (to_ns - from_ns) / NS_PER_S)
