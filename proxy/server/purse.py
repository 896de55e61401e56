"""Budgets as a request meets them: what it may cost at most, whether that is there, and what the whole gateway may
still spend at APIs.

Nothing is sent that a budget does not hold. The hold is the most expensive attempt the plan may make: every byte of the
prompt a token, in the dearest bucket and tier of the price book, and as much output as the request may have. An API
whose price is not known is not used under a budget, because nothing can be held for it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Mapping
from dataclasses import replace

import orjson

from proxy.config.model import Settings
from proxy.core.budgets import GATEWAY, Budget, Hold, Line, Refused, Use, window_end_ns, window_start_ns
from proxy.core.entries import RequestEntry
from proxy.core.errors import QuotaExceeded
from proxy.core.money import NS_PER_S
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.keys import Principal
from proxy.ledger.treasury import Spending
from proxy.server.calls import Call
from proxy.server.dispatch import Placement
from proxy.server.offers import TIERS, Offer
from proxy.server.planning import Planner
from proxy.wire.endpoints import Endpoint
from proxy.wire.openai import WireRequest

log = logging.getLogger("breakeven.server")

HOLD_NS = 6 * 3600 * NS_PER_S  # a hold that nobody ended by then was forgotten
TEMPLATE_TOKENS = 1024  # what a chat template and a provider's own tool instructions may add to a prompt
FIELD_TOKENS = 16  # what a template may add to each message and each tool
IMAGE_TOKENS = 40_000  # more than any provider counts for one
MEDIUM_TOKENS = 1_000_000  # of sound, film or a document, which have no bound but the model's context
WORK_MARGIN = 8  # how far the estimate of an engine's speed may move before the request ends
NO_LIMITS: Mapping[str, int] = {}
FIELD_LISTS = ("messages", "tools", "functions", "input")
APPLYING_KEPT = 4096  # routes and tags whose budgets are remembered
UNLIMITED = 1 << 62
MOST_NANO = 2 * 10**18  # twice the largest budget: no budget holds more, and the ledger's columns do
WINDOWS_KEPT = 4  # of the governor's: requests wait across the turn of an hour


class Purse:
    """One per process. `governor` is there where the configuration has `api_spend_max`."""

    def __init__(self, settings: Settings, planner: Planner, journal: Journal) -> None:
        self._settings, self._planner, self._journal = settings, planner, journal
        self._budgets: dict[str, list[Budget]] = {line.spending.scope: [] for line in settings.budgets}
        for line in settings.budgets:
            self._budgets[line.spending.scope].append(line.spending)
        self._applying: dict[tuple[str, str], tuple[Budget, ...]] = {}
        self.tags = frozenset(line.tag for line in settings.budgets if line.tag is not None)
        self.governor = None if settings.api_spend_max is None else Governor(
            settings.api_spend_max.spending, settings.api_spend_max.then)
        planner.governor = self.governor
        self.used: dict[Budget, Use] = {}  # of the configuration's budgets, as last seen
        self._spending = Spending(journal.path)
        self._held: dict[str, dict[int, int]] = {}  # by request and attempt: what is held and not sent yet

    def opened(self, call: Call, principal: Principal) -> Call:
        """The call with its budgets, what each backend may cost at most, and the limit of its answer."""
        budgets = self._configured(call.route.name, call.tags) if self._budgets else ()
        if principal.budget is not None:
            budgets = (principal.budget, *budgets)
        if not budgets and self.governor is None:
            return call
        limits = self._limits(call)
        call.budgets, call.output_limits, call.most_nano = budgets, limits, self._most_nano(call, limits)
        return call

    def _configured(self, route: str, tags: str) -> tuple[Budget, ...]:
        """Of the budgets in the configuration, those that such a request belongs to."""
        found = self._applying.get((route, tags))
        if found is None:
            if len(self._applying) >= APPLYING_KEPT:
                self._applying.clear()
            scopes = (f"route:{route}", *(f"tag:{tag}" for tag in tags.split(",") if tag))
            found = self._applying[route, tags] = tuple(
                budget for scope in scopes for budget in self._budgets.get(scope, ()))
        return found

    def _limits(self, call: Call) -> Mapping[str, int]:
        """What each backend is told of a request that names no limit. An engine whose context is known needs none: that
        is its limit, and one that with the prompt is longer than the context would be refused."""
        if call.wire.max_tokens is not None or call.wire.endpoint is Endpoint.EMBEDDINGS:
            return NO_LIMITS
        known = self._planner.context_tokens
        return {offer.name: call.route.output_tokens_max for offer in call.lane.offers
                if not offer.on_gpu or offer.name not in known}

    def _most_nano(self, call: Call, limits: Mapping[str, int]) -> dict[str, int | None]:
        """By backend, an upper bound of what one attempt there is charged; None where no price is known."""
        wire, prompt_most, known = call.wire, prompt_tokens_most(call.wire), self._planner.context_tokens
        if call.held is not None:
            prompt_most += call.held.tokens
        found: dict[str, int | None] = {}
        for offer in call.lane.offers:
            if not offer.charges:
                found[offer.name] = 0
                continue
            prompt, context = prompt_most, known.get(offer.name)
            if context is not None and context * wire.prompt_count < prompt:
                prompt = context * wire.prompt_count
            output = output_tokens_most(wire, limits.get(offer.name, context or 0))
            most = _work_nano(offer, call, prompt, output) if offer.on_gpu else _bill_nano(offer, call, prompt, output)
            found[offer.name] = MOST_NANO if most is not None and most > MOST_NANO else most
        return found

    def look(self, at_ns: int) -> None:
        """See what the configuration's budgets have taken, whichever gateway took it. LedgerUnavailable."""
        windows = uses(self._settings, at_ns)
        if windows:
            found = self._spending.used(windows)
            self.used = {budget: found.get(window, Use()) for window, budget in windows.items()}
            if self.governor is not None:
                use = self.used[self.governor.budget]
                self.governor.seen(window_start_ns(self.governor.budget.per, at_ns),
                                   self.governor.budget.limit_nano - use.total + use.open_nano)

    def close(self) -> None:
        self._spending.close()

    async def open_windows(self, at_ns: int) -> None:
        """Count what the configuration's budgets have taken, before requests wait for it."""
        if windows := uses(self._settings, at_ns):
            await self._journal.open_windows(windows)

    async def reserve(self, call: Call) -> Call:
        """Hold the dearest attempt that any of the route's backends may make; where that does not fit, the dearest of
        our own GPUs', and the call returned knows no API any more. Raises QuotaExceeded."""
        if not call.budgets or call.most_nano is None:
            return call
        most = max(filter(None, call.most_nano.values()), default=0)
        refused = await self._hold(call, call.first_attempt, most, None)
        if refused is None:
            return call
        quota = quota_exceeded(refused)
        local = {name: amount for name, amount in call.most_nano.items()
                 if amount is not None and self._settings.backends[name].is_gpu}
        if not local or max(local.values()) >= refused.line.amount_nano or (
                await self._hold(call, call.first_attempt, max(local.values()), None)) is not None:
            raise quota
        return replace(call, most_nano=local, quota=quota)

    async def confirm(self, call: Call, placement: Placement, attempt_no: int) -> bool:
        """Before it is sent: its hold, if it has none yet or it turned out dearer, and its part of what the gateway may
        spend at APIs. False: that is used up, and no API may be asked. Raises QuotaExceeded."""
        if call.most_nano is None:
            return True
        most = call.most_nano.get(placement.attempt.backend) or 0
        governed = self.governor if placement.attempt.kind == "api" else None
        held = self._held.get(call.request_id, {}).get(attempt_no, -1)
        if governed is None and (held >= most or not call.budgets):
            return True
        refused = await self._hold(call, attempt_no, max(held, most), None if governed is None else most)
        if refused is None:
            return True
        if refused.line.budget.scope == GATEWAY:
            return False
        raise quota_exceeded(refused)

    async def _hold(self, call: Call, attempt_no: int, amount: int, api_most: int | None) -> Refused | None:
        """Does not wait where the process has leased so much of every budget."""
        at_ns, governor = call.arrived_ns, None if api_most is None else self.governor
        lines = [Line(budget, window_start_ns(budget.per, at_ns), amount) for budget in call.budgets]
        if governor is not None and api_most is not None:
            lines.append(governor.line(at_ns, api_most))
        hold = Hold(call.request_id, attempt_no, tuple(lines), at_ns + HOLD_NS)
        try:
            refused = (await self._journal.reserve(hold)).refused
        except (asyncio.CancelledError, LedgerUnavailable):  # the drain's deadline; a commit that failed once it was
            # written: it may be held all the same
            self._journal.void(hold.key)
            raise
        if refused is None:
            self._held.setdefault(call.request_id, {})[attempt_no] = amount
            if governor is not None:
                governor.took(lines[-1])
        elif refused.line.budget.scope == GATEWAY and governor is not None:
            governor.told(refused)
        return refused

    def settled(self, entry: RequestEntry) -> None:
        """What an API did not bill of what the gateway had set aside for it is there again."""
        if self.governor is not None and entry.backend_kind == "api":
            self.governor.gave_back(entry.started_ns, (entry.hold_nano or 0) - entry.api_most_nano)

    def sent(self, request_id: str, attempt_no: int) -> None:
        """From here on only its settlement ends its hold."""
        if (held := self._held.get(request_id)) is not None:
            held.pop(attempt_no, None)
            if not held:
                del self._held[request_id]

    def release(self, call: Call) -> None:
        """The request is over: void what it held and never sent."""
        for attempt_no in self._held.pop(call.request_id, {}):
            self._journal.void((call.request_id, attempt_no))


def _bill_nano(offer: Offer, call: Call, prompt: int, output: int) -> int | None:
    """The most that an API may bill for so many tokens; None where no price is known, or not the one asked for."""
    wire, tier = call.wire, call.wire.service_tier
    if wire.paid_extras or (TIERS.get(tier) is None and offer.price(wire.model, call.arrived_ns, tier) is None):
        return None
    return offer.dearest_nano(wire.model, call.arrived_ns, prompt, output)


def _work_nano(offer: Offer, call: Call, prompt: int, output: int) -> int:
    """The most that serving so many tokens on our own GPUs may be charged."""
    most = offer.internal.most_nano(prompt, output) if offer.internal else 0
    if not offer.varying.usd_per_s(call.arrived_ns):
        return most
    seconds = WORK_MARGIN * max(replica.capacity.work_s(prompt, output, 1) for replica in offer.replicas)
    return most + offer.varying.most_nano(seconds, call.arrived_ns)


class Governor:
    """The gateway's own budget for API bills, as far as this process knows it; the ledger decides."""

    def __init__(self, budget: Budget, then: str) -> None:
        self.budget, self.then = budget, then
        self._unlimited = replace(budget, limit_nano=UNLIMITED)
        self._left_nano: dict[int, int] = {}  # by where the window begins; the newest few
        self._said = False

    def left_nano(self, at_ns: int) -> int:
        """What may still be spent in the window of `at_ns`; may be negative where the limit only alerts."""
        return self._left_nano.get(window_start_ns(self.budget.per, at_ns), self.budget.limit_nano)

    def refuses(self, most_nano: int, at_ns: int) -> bool:
        """Whether an API attempt of that much must not be planned for a request that arrived then: its window is the
        one that is asked when it is held, or an attempt would be planned and refused without end."""
        return self.then != "alert" and most_nano > self.left_nano(at_ns)

    def over(self, at_ns: int) -> bool:
        """The limit is reached: somebody must be told."""
        return self.left_nano(at_ns) <= 0

    def line(self, at_ns: int, most_nano: int) -> Line:
        """What is held for it. Where the limit only alerts, nothing is refused, whatever is held already."""
        start_ns = window_start_ns(self.budget.per, at_ns)
        if self.then == "alert":
            return Line(self._unlimited, start_ns, min(most_nano, self.budget.limit_nano))
        return Line(self.budget, start_ns, most_nano)

    def took(self, line: Line) -> None:
        """So much is held; what others hold meanwhile is seen within a second."""
        self.seen(line.start_ns, self._left_nano.get(line.start_ns, self.budget.limit_nano) - line.amount_nano)

    def told(self, refused: Refused) -> None:
        """What the ledger said is left."""
        self.seen(refused.line.start_ns, refused.left_nano)

    def gave_back(self, at_ns: int, nano: int) -> None:
        """So much of a hold in the window of `at_ns` was not spent; until `seen` says it exactly."""
        start_ns = window_start_ns(self.budget.per, at_ns)
        if start_ns in self._left_nano:
            self._left_nano[start_ns] += nano

    def seen(self, start_ns: int, left_nano: int) -> None:
        """What is left of the window that began then."""
        newest = max(self._left_nano, default=-1)
        if start_ns > newest:
            self._said = False
        if start_ns not in self._left_nano and len(self._left_nano) >= WINDOWS_KEPT:
            del self._left_nano[min(self._left_nano)]
        self._left_nano[start_ns] = left_nano
        if left_nano <= 0 and start_ns >= newest and not self._said:
            self._said = True
            log.error("api_spend_max: all of %s is spent or held; %s", self.budget, self.then)


def prompt_tokens_most(wire: WireRequest) -> int:
    """More tokens than the prompt can have: a token is at least a byte, of whatever field an upstream reads, and no
    text is longer than its JSON. Media have no bytes that mean tokens."""
    given, fields = wire.document.get, wire.prompt_count
    for name in FIELD_LISTS:
        if isinstance(value := given(name), list):
            fields += len(value)
    text = max(len(wire.body) - wire.media_bytes, wire.prompt_chars + wire.prompt_token_ids)
    most = text + TEMPLATE_TOKENS + FIELD_TOKENS * fields
    if wire.media_count:
        medium = IMAGE_TOKENS if wire.features.isdisjoint(("audio", "video", "files")) else MEDIUM_TOKENS
        most += medium * wire.media_count
    return most


def output_tokens_most(wire: WireRequest, limit: int) -> int:
    """More tokens than the answer can have; `limit` holds where the request has none of its own. Of a predicted answer,
    what was predicted wrongly is billed as well."""
    if wire.endpoint is Endpoint.EMBEDDINGS:
        return 0
    most, predicted = limit if wire.max_tokens is None else wire.max_tokens, wire.document.get("prediction")
    if predicted is not None:
        most += len(orjson.dumps(predicted))
    return most * wire.n * wire.prompt_count


def quota_exceeded(refused: Refused) -> QuotaExceeded:
    """What the caller hears: whose budget does not hold how much, when it begins anew, and what helps before that.

    A route's or a tag's budget is others' too: what they may spend and have spent is nobody's to read here."""
    line, now_ns = refused.line, time.time_ns()
    kind, _, name = line.budget.scope.partition(":")
    end_ns = window_end_ns(line.budget.per, line.start_ns)
    resets = "It does not reset." if end_ns is None else (
        f"It resets at {dt.datetime.fromtimestamp(end_ns // NS_PER_S, dt.UTC).isoformat().replace('+00:00', 'Z')}.")
    if kind != "key":
        left = f"the budget of {kind} {name} does not hold that. {resets}"
    elif line.amount_nano > line.budget.limit_nano:
        left = f"the whole budget of this key is {line.budget} USD."
    else:
        left = (f"{max(0, refused.left_nano) / 1e9:.6f} USD of this key's budget ({line.budget}) are neither spent nor "
                f"set aside for requests in flight. {resets}")
    message = (f"This request may cost up to {line.amount_nano / 1e9:.6f} USD; {left} A smaller max_tokens lowers what "
               "it may cost.")
    return QuotaExceeded(message, None if end_ns is None else max(1.0, (end_ns - now_ns) / NS_PER_S))


def uses(settings: Settings, at_ns: int) -> Mapping[tuple[str, str, int], Budget]:
    """The windows, now, of the budgets that stand in the configuration."""
    budgets = [line.spending for line in settings.budgets]
    if settings.api_spend_max is not None:
        budgets.append(settings.api_spend_max.spending)
    return {(one.scope, one.per, window_start_ns(one.per, at_ns)): one for one in budgets}
