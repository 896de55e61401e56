"""What a field cannot know of itself: small checks over whole settings, each yielding problems.

All of these refuse; what works but is probably not meant is told by `cautions.py`. Nothing is contacted.
A check skips what was refused already (`broken`), so that one mistake is told once.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from proxy.config.address import url_fault
from proxy.config.alerts import webhook_fault
from proxy.config.backend import COMMERCIAL, ENGINES, Backend, CardRef
from proxy.config.model import Route, Settings
from proxy.config.problem import Path, Problem, Source, shown
from proxy.config.report import faults
from proxy.config.routes import is_glob
from proxy.config.translate import did_you_mean

FORBIDDEN_HEADERS = frozenset(
    "authorization proxy-authorization proxy-authenticate cookie set-cookie x-api-key api-key x-goog-api-key "
    "x-auth-token x-amz-security-token connection keep-alive te trailer trailers transfer-encoding upgrade "
    "proxy-connection host expect accept-encoding forwarded".split())


@dataclass(frozen=True, slots=True)
class Look:
    """What a check looks at: the settings, where they stand, and what is not to be trusted."""

    settings: Settings
    source: Source
    broken: frozenset[Path] = frozenset()

    def sound(self, *path: str | int) -> bool:
        """Nothing at, around or under `path` was refused."""
        return not any(b[:len(path)] == path or path[:len(b)] == b for b in self.broken)

    def problem(self, path: Path, message: str, hint: str | None = None) -> Problem:
        return self.source.problem(path, message, hint)

    def apis(self) -> list[str]:
        return [name for name, backend in self.settings.backends.items() if backend.kind in COMMERCIAL]


Check = Callable[[Look], Iterator[Problem]]


def cross_check(settings: Settings, source: Source, broken: frozenset[Path]) -> list[Problem]:
    look = Look(settings, source, broken)
    return [problem for check in CHECKS for problem in check(look)]


def nearest(value: str, known: list[str]) -> str | None:
    return did_you_mean(value, known) or (f"known: {', '.join(known)}" if 0 < len(known) <= 8 else None)


def stores(look: Look) -> Iterator[Problem]:
    ledger, state = look.settings.ledger, look.settings.state
    if ledger.startswith(("postgresql", "postgres:")):
        yield look.problem(("ledger",), "a PostgreSQL ledger is not built yet", "use sqlite:///data/ledger.db")
    elif not re.match(r"sqlite:///.|memory://$", ledger):
        yield look.problem(("ledger",), "must be sqlite:///PATH", "such as sqlite:///data/ledger.db")
    elif ledger == "memory://" and look.settings.server.workers > 1:
        yield look.problem(("ledger",), "is of one process, and there are several workers", "sqlite:///data/ledger.db")
    if state.startswith(("redis:", "rediss:")):
        yield look.problem(("state",), "state shared through Redis is not built yet", "use memory://, with one gateway")
    elif state != "memory://":
        yield look.problem(("state",), "must be memory://")


def report(look: Look) -> Iterator[Problem]:
    zone = look.settings.report.time_zone
    if not known_zone(zone):
        yield look.problem(("report", "time_zone"), f"no such time zone: {shown(zone)}", "such as UTC or Europe/Berlin")
    for at, message, hint in faults(look.settings.report):
        if look.sound("report", *at):
            yield look.problem(("report", *at), message, hint)


def known_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return False
    return True


def access(look: Look) -> Iterator[Problem]:
    server, admin = look.settings.server, look.settings.server.admin
    listeners = [(("server", "host"), server.host)] + ([(("server", "admin", "host"), admin.host)] if admin else [])
    for place, host in listeners:
        if not re.match(r"[A-Za-z0-9._:%\-]+\Z", host):
            yield look.problem(place, "is no address or host name", "such as 127.0.0.1, ::1 or 0.0.0.0")
        elif not look.settings.keys.required and not loopback(host):
            yield look.problem(("keys", "required"), "keys are required when the gateway listens beyond this machine",
                               f"{'.'.join(place)} is no loopback address")
    if admin is not None and admin.port == server.port != 0 and look.sound("server"):
        yield look.problem(("server", "admin", "port"), "is server.port too", "two listeners need two ports")


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def files(look: Look) -> Iterator[Problem]:
    prices = look.settings.prices
    if prices is not None and not prices.is_file():
        yield look.problem(("prices",), f"there is no file {prices}", "relative paths start at the working directory")


def overheads(look: Look) -> Iterator[Problem]:
    for index, overhead in enumerate(look.settings.overheads):
        if overhead.until is not None and overhead.until <= overhead.from_ and look.sound("overheads", index):
            yield look.problem(("overheads", index, "until"), "must be after from")


def addresses(look: Look) -> Iterator[Problem]:
    for name, backend in look.settings.backends.items():
        at = ("backends", name)
        if backend.url is not None and "urls" in written(look, at):
            yield look.problem((*at, "urls"), "url and urls are both given", "keep one")
        for index, url in enumerate(backend.urls):
            place = (*at, "url") if backend.url is not None else (*at, "urls", index)
            if fault := url_fault(url):
                yield look.problem(place, *fault)
            elif url in backend.urls[:index]:
                yield look.problem(place, "the same address twice")
        if not backend.urls and backend.kind != "litellm" and look.sound(*at, "url") and look.sound(*at, "urls"):
            yield look.problem((*at, "url"), "url is missing", f"where the {backend.kind} server answers")
        if backend.gpu and backend.gpu.dcgm_url and (fault := url_fault(backend.gpu.dcgm_url, path=True)):
            yield look.problem((*at, "gpu", "dcgm_url"), *fault)


def written(look: Look, at: Path) -> set[str | int]:
    """The keys that the file has right under `at`."""
    return {path[len(at)] for path in look.source.marks if len(path) == len(at) + 1 and path[:len(at)] == at}


def kinds(look: Look) -> Iterator[Problem]:
    for name, backend in look.settings.backends.items():
        at = ("backends", name)
        if not look.sound(*at, "kind") or not look.sound(*at, "gpu"):
            continue
        if backend.kind in ENGINES and backend.gpu is None:
            yield look.problem((*at, "gpu"), f"a {backend.kind} engine needs gpu: without a price it proves no saving",
                               "such as {type: A100-80GB, usd_per_hour: 1.39, from: 2026-01-01}")
        if backend.kind in COMMERCIAL and backend.gpu is not None:
            yield look.problem((*at, "gpu"), f"an API of kind {backend.kind} has no gpu of yours",
                               "for an engine of your own: vllm, sglang, tgi or llamacpp")
        if backend.kind in COMMERCIAL and backend.capacity is not None:
            yield look.problem((*at, "capacity"), "only engines with a gpu have a capacity", "see max_in_flight")


def headers(look: Look) -> Iterator[Problem]:
    for name, backend in look.settings.backends.items():
        for index, header in enumerate(backend.forward_headers):
            if header in FORBIDDEN_HEADERS or header.startswith(("content-", "x-forwarded-", "sec-")):
                yield look.problem(("backends", name, "forward_headers", index), f"header {header} is never passed on",
                                   "credentials and framing belong to each connection")


def rate_cards(look: Look) -> Iterator[Problem]:
    for name, backend in look.settings.backends.items():
        at: Path = ("backends", name, "gpu")
        gpu = backend.gpu
        if gpu is None or not look.sound(*at):
            continue
        if gpu.from_ and gpu.until and gpu.until <= gpu.from_:
            yield look.problem((*at, "until"), "must be after from")
        if isinstance(gpu.usd_per_hour, CardRef) and gpu.from_ is None:
            yield look.problem((*at, "from"), "is missing: of a rate card it says which price is the first",
                               "the day the GPUs were first paid")
        if not isinstance(gpu.usd_per_hour, tuple):
            continue
        if gpu.from_ or gpu.until:
            yield look.problem((*at, "from" if gpu.from_ else "until"),
                               "the list of prices says from and until already", "take it away here")
        lines = sorted(enumerate(gpu.usd_per_hour), key=lambda numbered: numbered[1].from_)
        for index, line in lines:
            if line.until is not None and line.until <= line.from_:
                yield look.problem((*at, "usd_per_hour", index, "until"), "must be after from")
        for (_, earlier), (index, later) in itertools.pairwise(lines):
            place = (*at, "usd_per_hour", index, "from")
            if earlier.from_ == later.from_:
                yield look.problem(place, "two prices begin at the same time")
            elif earlier.until is not None and earlier.until > later.from_:
                yield look.problem(place, "overlaps the price before it",
                                   "a price without until ends where the next begins")


def energy(look: Look) -> Iterator[Problem]:
    for name, backend in look.settings.backends.items():
        at: Path = ("backends", name, "gpu")
        if backend.gpu is None or backend.gpu.energy != "metered" or not look.sound(*at):
            continue
        if look.settings.electricity.usd_per_kwh is None and look.sound("electricity"):
            yield look.problem((*at, "energy"), "metered energy needs a price", "set electricity.usd_per_kwh")
        if backend.gpu.watts is None and backend.gpu.dcgm_url is None and not backend.gpu.nvml:
            yield look.problem((*at, "energy"), "metered energy needs watts, dcgm_url or nvml",
                               "or `included` for rented GPUs")


def references(look: Look) -> Iterator[Problem]:
    backends = look.settings.backends
    for name, route in look.settings.routes.items():
        at = ("routes", name)
        for index, wanted in enumerate(route.backends):
            if wanted not in backends and look.sound(*at, "backends", index):
                yield look.problem((*at, "backends", index), f"no backend named {shown(wanted)}",
                                   nearest(wanted, list(backends)))
            elif wanted in route.backends[:index]:
                yield look.problem((*at, "backends", index), f"backend {shown(wanted)} is listed twice")
        if not look.sound(*at, "baseline"):
            continue
        baseline = backends.get(route.baseline)
        if baseline is None:
            yield look.problem((*at, "baseline"), f"no backend named {shown(route.baseline)}",
                               nearest(route.baseline, look.apis()))
        elif baseline.kind not in COMMERCIAL and look.sound("backends", route.baseline, "kind"):
            yield look.problem((*at, "baseline"), f"{shown(route.baseline)} is no commercial API",
                               f"savings are measured against an API: {' or '.join(look.apis()[:3]) or 'add one'}")
        if route.control_group and route.baseline not in route.backends and look.sound(*at, "control_group"):
            yield look.problem((*at, "control_group"), "the control group is sent to the baseline",
                               f"add {shown(route.baseline)} to `backends`, or leave it out")


def members(look: Look, name: str, route: Route) -> list[Backend] | None:
    """A route's backends, or None where one of them is not to be trusted."""
    if not look.sound("routes", name, "backends") or any(
            b not in look.settings.backends or not look.sound("backends", b, "kind") for b in route.backends):
        return None
    return [look.settings.backends[b] for b in route.backends]


def policies(look: Look) -> Iterator[Problem]:
    for name, route in look.settings.routes.items():
        at, able = ("routes", name), members(look, name, route)
        if able is None or not look.sound(*at, "policy"):
            continue
        if route.policy == "self-hosted-only" and not any(b.kind in ENGINES for b in able):
            yield look.problem((*at, "policy"), "self-hosted-only, but the route has no engine with a gpu")
        if route.policy == "api-only" and not any(b.kind in COMMERCIAL for b in able):
            yield look.problem((*at, "policy"), "api-only, but the route has no commercial API")
        if route.residency is not None and not any(b.region == route.residency for b in able):
            yield look.problem((*at, "residency"), f"no backend of this route has region {shown(route.residency)}",
                               "set `region` on the backends that may see this data")


def thresholds(look: Look) -> Iterator[Problem]:
    for name, route in look.settings.routes.items():
        at: Path = ("routes", name, "thresholds")
        limits = route.thresholds
        if limits.utilization_resume is None or not look.sound(*at):
            continue
        if limits.utilization_max is None:
            yield look.problem((*at, "utilization_resume"), "needs utilization_max beside it")
        elif limits.utilization_resume >= limits.utilization_max:
            yield look.problem((*at, "utilization_resume"), f"must be below utilization_max ({limits.utilization_max})",
                               "or the route never opens and closes properly")


def names(look: Look) -> Iterator[Problem]:
    routes = look.settings.routes
    owner = {name: name for name in routes}
    for name in routes:
        if name != "*" and is_glob(name):
            yield look.problem(("routes", name), "a route's name is no pattern", "put patterns under aliases")
    for name, route in routes.items():
        for index, alias in enumerate(route.aliases):
            holder = owner.setdefault(alias, name)
            if holder != name:
                yield look.problem(("routes", name, "aliases", index),
                                   f"{shown(alias)} already names route {shown(holder)}", "a name belongs to one route")


def budgets(look: Look) -> Iterator[Problem]:
    seen: set[tuple[str, str]] = set()
    for index, line in enumerate(look.settings.budgets):
        at: Path = ("budgets", index)
        if not look.sound(*at):
            continue
        if (line.route is None) == (line.tag is None):
            yield look.problem(at, "a budget is for a route or for a tag: name one", "such as {route: gpt-4o, budget: "
                               "100/day} or {tag: team=search, budget: 500/month}")
        elif line.route is not None and line.route not in look.settings.routes:
            yield look.problem((*at, "route"), f"there is no route {shown(line.route)}",
                               nearest(line.route, list(look.settings.routes)))
        elif (key := (line.spending.scope, line.spending.per)) in seen:
            yield look.problem(at, "the same budget twice")
        else:
            seen.add(key)
    for name, backend in look.settings.backends.items():
        if backend.internal_rate is not None and backend.gpu is None and look.sound("backends", name):
            yield look.problem(("backends", name, "internal_rate"), "an API's users are charged what it bills",
                               "internal rates are for engines of your own")


def alerts(look: Look) -> Iterator[Problem]:
    names: set[str] = set()
    for index, webhook in enumerate(look.settings.alerts.webhooks):
        at: Path = ("alerts", "webhooks", index)
        if not look.sound(*at):
            continue
        if webhook.name in names:
            yield look.problem((*at, "name"), f"two webhooks are called {shown(webhook.name)}")
        names.add(webhook.name)
        if (address := webhook.url.reveal()) and (fault := webhook_fault(address)):
            yield look.problem((*at, "url"), *fault)


CHECKS: tuple[Check, ...] = (stores, report, access, files, overheads, addresses, kinds, headers, rate_cards, energy,
                             references, policies, thresholds, names, budgets, alerts)
