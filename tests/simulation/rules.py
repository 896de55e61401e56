"""What must hold, whatever happens: looked at in every commit, every few events, at every decision and answer, and when
everything has come to rest.

A rule that is broken stops the run: `Broken` says which, and what was seen. `note` keeps what happened, hashed, so that
two runs of a seed can be compared, and the last of it, to be read when something broke.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy import select

from proxy.core.budgets import GATEWAY, scopes_of
from proxy.core.fleet import ReplicaState
from proxy.core.routing import Plan, Switch, effective_policy
from proxy.ledger import store
from proxy.ledger.schema import holds, requests
from proxy.ledger.verify import verify
from proxy.server.calls import Call
from proxy.server.dispatch import Placement
from proxy.signals.inflight import Load
from tests.simulation.clients import Client
from tests.simulation.disk import SteppedWriter
from tests.simulation.fleet import Ask, SimUpstream

UPSTREAMS_MAX = 2
LAST_EVENTS = 40
HEALTHS = frozenset({"draining", "asleep", "paused", "wedged", "unreachable", "ejected", "probation", "suspect"})
WINDOWS = "SELECT scope, per, start_ns, posted_nano, pending_nano FROM budget_use"
HELD = "SELECT scope, per, start_ns, sum(amount_nano) FROM holds GROUP BY 1, 2, 3"
HOLDERS = "SELECT DISTINCT request_id, attempt FROM holds WHERE attempt > 0"
LEASES = "SELECT scope, per, start_ns, sum(amount_nano) FROM holds WHERE attempt < 1 AND owner = ? GROUP BY 1, 2, 3"
Key = tuple[str, int]


class Broken(Exception):
    """`rule` names what did not hold."""

    def __init__(self, rule: str, seen: object) -> None:
        super().__init__(f"{rule}: {seen}")
        self.rule = rule


class Rules:
    """Of one seed, over all lives of its process."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.broken: Broken | None = None
        self.limits: dict[tuple[str, str], int] = {}  # nano-USD, by scope and window
        self.settled: set[Key] = set()  # of which a commit has returned
        self.sent: dict[str, list[Key]] = {}  # marks of what upstreams were asked, by request
        self.whole: set[str] = set()  # requests whose client has seen the end of an answer
        self.lied: set[str] = set()  # requests whose upstream claimed more than could be
        self.excess: Counter[str] = Counter()  # what those posted beyond their holds, by scope
        self._upstreams: dict[str, set[str]] = {}  # asked for a request that has not ended
        self._begun: set[str] = set()  # clients that have seen bytes of an answer, and not its end
        self._claims: dict[str, Placement] = {}
        self._held: set[Key] = set()  # at the last commit
        self._recovering = False
        self.last: deque[str] = deque(maxlen=LAST_EVENTS)
        self._digest = hashlib.blake2b(digest_size=12)
        self.looks = 0

    def holds(self, true: object, rule: str, seen: object = "") -> None:
        if not true and self.broken is None:
            self.broken = Broken(rule, seen)

    def note(self, *what: object) -> None:
        line = f"{self._now():.6f} " + " ".join(map(str, what))
        self._digest.update(line.encode())
        self.last.append(line)

    @property
    def trace(self) -> str:
        return self._digest.hexdigest()

    # ---- a request's way

    def decided(self, call: Call, plan: Plan, switch: Switch) -> None:
        """The decision and its reason are those of its own snapshot."""
        self.looks += 1
        self.note("decided", call.request_id, plan.reason, *(attempt.backend for attempt in plan.attempts))
        seen = {(state.backend, state.replica): state for state in plan.seen}
        if not plan.attempts:
            return
        first, policy = plan.attempts[0], effective_policy(replace(call.limits, switch=switch))
        self.holds(first.reason == plan.reason, "reason_differs", (first.reason, plan.reason))
        self.holds(first.backend in call.route.backends, "foreign_backend", first.backend)
        if first.kind == "api":
            self.holds(policy != "self-hosted-only", "api_on_a_local_route", call.route.name)
        else:
            self.holds(policy not in ("api-only", "observe"), "engine_on_an_api_route", call.route.name)
            state = seen.get((first.backend, first.replica or 0))
            self.holds(state is not None and state.health == "ok", "sent_to_the_sick", state)
        if plan.reason == "failover":
            self.holds(call.request_id in self._upstreams, "failover_from_nowhere", call.request_id)
        if plan.room is None:  # of one that waited, the refusals are of when it came
            for refusal in plan.refusals:
                if refusal.replica is not None and (refusal.backend, refusal.replica) in seen:
                    self._reason(refusal.code, seen[refusal.backend, refusal.replica], refusal)

    def _reason(self, code: str, state: ReplicaState, refusal: object) -> None:
        if code in HEALTHS:
            self.holds(state.health == code, "reason_against_snapshot", (refusal, state))
        elif code == "congested":
            self.holds(state.congested or state.overdue, "reason_against_snapshot", (refusal, state))
        elif code == "in_flight_max":
            full = state.in_flight_max is not None and state.in_flight >= state.in_flight_max
            self.holds(full, "reason_against_snapshot", (refusal, state))
        elif code == "slow_start":
            self.holds(state.share < 1, "reason_against_snapshot", (refusal, state))

    def placed(self, call: Call, placement: Placement) -> None:
        before = self._claims.get(call.request_id)
        self.holds(before is None or before.claim.released, "placed_twice", call.request_id)
        self.holds(not placement.claim.released, "placed_on_a_released_claim", call.request_id)
        self._claims[call.request_id] = placement

    def asked(self, upstream: SimUpstream, ask: Ask) -> None:
        """Nothing is sent without a mark, more than twice, or after the client has seen bytes of an answer."""
        name, rid = f"{ask.upstream} {upstream.target.url}", ask.outgoing.request_id
        self.note("asked", rid, name, ask.fault)
        marks = {key for journal in upstream.sim.journals for key in journal._marks._open if key[0] == rid}
        new = sorted(marks - set(self.sent.get(rid, ())))
        self.holds(len(new) == 1, "asked_without_a_mark", (rid, new))
        self.sent.setdefault(rid, []).extend(new)
        self.holds(rid not in self._begun, "asked_again_after_bytes", rid)
        asked = self._upstreams.setdefault(rid, set())
        if ask.fault != "stream_options_400":  # asked again without the question, wherever there is room
            asked.add(name)
        self.holds(len(asked) <= UPSTREAMS_MAX, "asked_too_many", asked)
        if ask.fault == "usage_absurd":
            self.lied.add(rid)

    def began(self, client: Client) -> None:
        self.note("began", client.request_id, client.status)
        if client.status < 400:
            self._begun.add(client.request_id)

    def ended(self, client: Client) -> None:
        """The end of an answer is in the ledger before its client sees it."""
        self.note("ended", client.request_id, client.done, client.status)
        if client.done == "answered":
            self.whole.add(client.request_id)
            self.holds(any(key in self.settled for key in self.sent.get(client.request_id, ())),
                       "ended_before_it_was_settled", client.request_id)
            text = b"".join(client.answer)
            if client.stream:
                self.holds(text.count(b"[DONE]") == 1 and b'"error"' not in text, "odd_end", text[-300:])
        elif client.done == "cut":
            self.holds(b"[DONE]" not in b"".join(client.answer), "cut_answer_looks_whole", client.request_id)

    def over(self, client: Client) -> None:
        """Its request is over, whatever came of it."""
        self._begun.discard(client.request_id)
        self._upstreams.pop(client.request_id, None)

    # ---- all the time

    def committed(self, writer: SteppedWriter, batch: Iterable[Any]) -> None:
        """Budgets hold, to the nano-dollar, after every commit; what is pending is what is held."""
        self.looks += 1
        for item in batch:
            if item.entry is not None and item.key not in self.settled:
                self.settled.add(item.key)
                self._posted(item.entry)
        holders = set(writer.rows.execute(HOLDERS))
        ended = {item.key for item in batch if item.hold is None}
        gone = self._held - holders - ended - self.settled
        self.holds(self._recovering or not gone, "hold_vanished", gone)
        self._held = holders
        held = {tuple(row[:3]): row[3] for row in writer.rows.execute(HELD)}
        for scope, per, start_ns, posted, pending in writer.rows.execute(WINDOWS):
            self.holds(held.pop((scope, per, start_ns), 0) == pending, "pending_is_not_what_is_held", (scope, per))
            limit = self.limits.get((scope, per))
            if limit is not None:
                self.holds(posted + pending <= limit + self.excess[scope], "budget_overrun",
                           (scope, per, posted, pending, limit, self.excess[scope]))
        self.holds(not held, "held_in_no_window", held)
        self._covered(writer)

    def _covered(self, writer: SteppedWriter) -> None:
        """What attempts hold out of leases is in the leases' rows."""
        rows = {tuple(row[:3]): row[3] for row in writer.rows.execute(LEASES, (writer._marks.token,))}
        used: Counter[tuple[str, str, int]] = Counter()
        for lines in writer.leases.held.values():
            for line in lines:
                used[line.window] += line.amount_nano
        for window, lease in writer.leases.of.items():
            self.holds(used[window] == lease.used_nano, "lease_does_not_add_up", (window, used[window], lease))
            self.holds(lease.used_nano <= lease.row_nano <= rows.get(window, 0), "lease_overdrawn",
                       (window, lease.used_nano, lease.row_nano, rows.get(window, 0)))

    def _posted(self, entry: Any) -> None:
        if entry.hold_nano is not None and entry.posted_nano > entry.hold_nano:
            more = entry.posted_nano - entry.hold_nano
            self.holds(entry.request_id in self.lied, "cost_above_its_hold", entry)
            for scope in (GATEWAY, *scopes_of(entry.key_id, entry.route, entry.tags)):
                self.excess[scope] += more
        self.holds(entry.started_ns <= entry.sent_ns <= entry.ended_ns, "time_runs_back", entry)

    def look(self, gateways: Iterable[Any]) -> None:
        """Sums are those of the claims; who waits is nowhere else."""
        self.looks += 1
        for one in gateways:
            for load in loads(one):
                claims = load.claims
                self.holds(all(not claim.released for claim in claims), "released_claim_counts")
                self.holds(load.sequences == sum(claim.sequences for claim in claims), "sequences_do_not_add_up")
                prefill = [claim.uncached for claim in claims if not claim.decoding]
                decode = [claim.prompt + claim.delivered for claim in claims if claim.decoding]
                self._near(load.backlog_tokens, sum(prefill), "backlog")
                self._near(load.kv_tokens, sum(decode), "kv")
                self._near(load.kv_reserved, sum(claim.prompt + claim.expected for claim in claims), "kv_reserved")
                self._paid(load)
            for pool in one.planner.pools:
                for job in pool.market.line:
                    owner = job.owner
                    self.holds(owner is not None and (not owner.future.done() or owner.future.cancelled()),
                               "waits_and_is_placed", owner and owner.call.request_id)

    def _paid(self, load: Load) -> None:
        """Of the time that prefill may take, nobody is given what another has paid for."""
        for claim in load.claims:
            if load.room is not None and claim.paid is not None:
                self.holds(load.room.sent_until >= claim.paid.at + claim.paid.seconds - 1e-6, "prefill_given_twice",
                           (load.room.sent_until, claim.paid))

    def _near(self, sum_: float, parts: float, what: str) -> None:
        self.holds(abs(sum_ - parts) <= 1e-6 * max(1.0, abs(parts)) + 1e-3, f"{what}_does_not_add_up", (sum_, parts))

    def recovers(self) -> None:
        """A new life begins: what the one before held is given up, or posted."""
        self._recovering = True

    # ---- at rest

    def at_rest(self, one: Any, upstreams: Iterable[SimUpstream]) -> None:
        """Nothing of any request is left in memory."""
        handler = one.handler
        for load in loads(one):
            self.holds(not load.claims and not load.sequences and not load.pending, "claims_left", load.claims)
        self.holds(handler.in_flight == 0, "requests_left", handler.in_flight)
        self.holds(not handler._afterwards, "tasks_left", handler._afterwards)
        self.holds(one.dispatcher.waiting == 0, "waiting_left", one.dispatcher.waiting)
        self.holds(not one.purse._held, "unsent_holds_left", one.purse._held)
        leases = one.journal._writer.leases
        self.holds(not leases.held and not leases.holding, "holds_left", (leases.held, leases.holding))
        self.holds(one.journal.in_flight == 0, "marks_left", one.journal._marks and list(one.journal._marks._open))
        self.holds(all(not ticket.in_flight for ticket in one.handler._do.repeats._tickets), "tickets_left")
        for upstream in upstreams:
            self.holds(not upstream.answers, "answers_left_open", [answer.ask for answer in upstream.answers])

    def books(self, url: str, empty: bool) -> None:
        """The ledger is true and complete. `empty`: nothing is on its way, so nothing may be held."""
        problems = verify(url)
        self.holds(not problems, "books_do_not_balance", problems[:3])
        with store.reading(url) as connection:
            rows = connection.execute(select(requests.c.request_id, requests.c.attempt, requests.c.final,
                                             requests.c.baseline_nano, requests.c.sent_ns, requests.c.ended_ns,
                                             requests.c.backend)).all()
            held = connection.execute(select(holds)).all()
        there = {(row.request_id, row.attempt) for row in rows}
        sent = {key for keys in self.sent.values() for key in keys}
        self.holds(sent <= there, "sent_and_not_booked", sorted(sent - there)[:3])
        unsent = [row for row in rows if not row.backend and (row.request_id, row.attempt) in sent]
        self.holds(not unsent, "sent_and_booked_as_unsent", unsent[:1])
        self.holds(self.settled <= there, "acknowledged_and_lost", sorted(self.settled - there)[:3])
        finals = Counter(row.request_id for row in rows if row.final)
        self.holds(self.whole <= finals.keys(), "finished_and_not_booked", sorted(self.whole - finals.keys())[:3])
        twice = [name for name, count in finals.items() if count > 1]
        self.holds(not twice, "final_twice", [row for row in rows if row.request_id in twice[:1]])
        baselines = Counter(row.request_id for row in rows if row.baseline_nano is not None)
        self.holds(all(count == 1 for count in baselines.values()), "two_baselines", baselines.most_common(1))
        self.holds(all(row.ended_ns >= row.sent_ns for row in rows), "negative_duration")
        if empty:
            self.holds(not held, "held_for_ever", held[:2])
        self.settled |= there
        self._held = {(row.request_id, row.attempt) for row in held}
        self._recovering = False


def loads(one: Any) -> list[Load]:
    return [replica.load for replica in one.board.every_replica()] + [api.load for api in one.board.apis.values()]
