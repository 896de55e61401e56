"""What works but is probably not meant. Nothing here stops the gateway."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from proxy.config.address import crosses_in_clear
from proxy.config.backend import COMMERCIAL, ENGINES, known_provider
from proxy.config.checks import Look
from proxy.config.model import Settings
from proxy.config.problem import Problem, in_order
from proxy.core.pricing import PriceBook


def warnings(settings: Settings, book: PriceBook | None = None) -> list[Problem]:
    """In file order. Unknown prices are among them when the price book is given."""
    look = Look(settings, settings.source)
    told = [problem for caution in CAUTIONS for problem in caution(look)]
    return in_order(told if book is None else [*told, *unpriced(look, book, time.time_ns())])


def unpriced(look: Look, book: PriceBook, at_ns: int) -> Iterator[Problem]:
    """API backends whose price is not known: their traffic is booked as no saving."""
    for name, backend in look.settings.backends.items():
        if not backend.is_api or backend.provider is None:
            continue
        if backend.model == "*":
            known = any(provider == backend.provider for provider, _ in book.entries)
        else:
            known = book.find(backend.provider, backend.model, at_ns) is not None
        if not known:
            yield look.problem(("backends", name, "model"),
                               f"no price is known for {backend.provider}/{backend.model}: no saving is booked",
                               "add it to the file under `prices`")


def gpu_bills(look: Look) -> Iterator[Problem]:
    for name, backend in look.settings.backends.items():
        gpu, at = backend.gpu, ("backends", name, "gpu")
        if gpu is None:
            continue
        if gpu.count < len(backend.urls):
            yield look.problem((*at, "count"), f"{gpu.count} GPU under {len(backend.urls)} replicas",
                               "count and usd_per_hour are for all replicas together")
        if not isinstance(gpu.usd_per_hour, tuple) and gpu.from_ is None:
            yield look.problem(at, "without `from`, idle hours count only from the gateway's first start",
                               "from: the day the GPU was first paid")
        if not any(rate.usd_per_hour for rate in gpu.rates):
            yield look.problem((*at, "usd_per_hour"), "a GPU for 0 USD makes every local request a saving",
                               "hardware you own costs its depreciation")
        if gpu.energy == "included" and (gpu.watts or gpu.idle_watts):
            yield look.problem((*at, "watts"), "has no effect while energy is included", "energy: metered")
        if gpu.energy == "metered" and gpu.dcgm_url is None and not gpu.nvml and gpu.idle_watts is None:
            yield look.problem((*at, "energy"), "without idle_watts, idle hours are booked without electricity")


def limits(look: Look) -> Iterator[Problem]:
    for name, route in look.settings.routes.items():
        at, set_to = ("routes", name, "thresholds"), route.thresholds
        if set_to.gpu_util_max is not None:
            yield look.problem((*at, "gpu_util_max"), "GPU-Util reaches 100 % long before the GPU is full",
                               "kv_cache_max or the SLO say more")
            if not any((b := look.settings.backends.get(n)) and b.gpu and (b.gpu.dcgm_url or b.gpu.nvml)
                       for n in route.backends):
                yield look.problem((*at, "gpu_util_max"), "no backend of this route measures GPU-Util",
                                   "set gpu.dcgm_url or gpu.nvml")
        if route.policy != "threshold":
            for field in ("utilization_max", "queue_max"):
                if getattr(set_to, field) is not None:
                    yield look.problem((*at, field), f"caps GPUs that are paid anyway, under policy {route.policy}",
                                       "unset it, or choose policy: threshold")


def addresses(look: Look) -> Iterator[Problem]:
    for name, backend in look.settings.backends.items():
        at = ("backends", name)
        if backend.api_key is not None and any(map(crosses_in_clear, backend.urls)):
            yield look.problem((*at, "url"), "the key crosses the network in clear", "use https://")
        if not backend.tls_verify:
            yield look.problem((*at, "tls_verify"), "certificates are not checked: anyone on the way can answer")
        if backend.kind == "openai" and backend.provider == "openai" and backend.urls \
                and known_provider(backend.urls[0]) is None and (*at, "provider") not in look.source.marks:
            yield look.problem(at, "who sends the bill is unknown; OpenAI's list prices are assumed",
                               "set provider, or price the model in the prices file")
        if backend.kind != "litellm" and backend.api_key is None and any(map(known_provider, backend.urls)):
            yield look.problem(at, "has no api_key", "api_key: env:NAME")


def use(look: Look) -> Iterator[Problem]:
    settings = look.settings
    used = {name for route in settings.routes.values() for name in (*route.backends, route.baseline)}
    for name in settings.backends:
        if name not in used:
            yield look.problem(("backends", name), "no route uses this backend",
                               "its GPUs are in the report all the same" if settings.backends[name].gpu else None)
    for name, route in settings.routes.items():
        able = [settings.backends[b] for b in route.backends if b in settings.backends]
        if route.policy != "self-hosted-only" and able and not any(b.kind in COMMERCIAL for b in able):
            yield look.problem(("routes", name, "backends"), "no API to overflow to: a full GPU answers 503")
        if route.policy != "api-only" and able and not any(b.kind in ENGINES for b in able):
            yield look.problem(("routes", name, "backends"), "no GPU: this route saves nothing")
        if route.remote_media:
            yield look.problem(("routes", name, "remote_media"), "callers choose what addresses the engine fetches",
                               "only with an egress filter")


def server(look: Look) -> Iterator[Problem]:
    if look.settings.ledger == "memory://":
        yield look.problem(("ledger",), "the books are lost at every stop", "sqlite:///data/ledger.db")
    if look.settings.sync == "normal":
        yield look.problem(("sync",), "a power cut may lose what was booked in the last half minute",
                           "full, unless the disk's syncs are too slow")
    if not look.settings.keys.required:
        yield look.problem(("keys", "required"), "anyone on this machine can spend money")
    workers, cores = look.settings.server.workers, os.cpu_count() or 1
    if workers > cores:
        yield look.problem(("server", "workers"), f"{workers} workers share {cores} cores, and do less than "
                           f"{cores} would", "as many as cores may serve")


CAUTIONS = (gpu_bills, limits, addresses, use, server)
