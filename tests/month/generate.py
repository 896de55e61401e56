"""Draws the month's requests from a seed: who asked what, when, who answered, and how it ended. No amount of money.

Load is that of an office in Berlin: by day, on weekdays, with nightly batches. What is rare is planted as well as
drawn: `_edges` puts requests on the minute, across it, across hours, midnights, price changes and ends of the period.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.month.scene import API, GPU_MODELS, HOUR, MINUTE, ROUTES, TEAMS, Route, S, Scene, zone

BUCKETS = ("input_text", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "input_image",
           "output_text", "reasoning", "output_audio")
Tokens = tuple[int, int, int, int, int, int, int, int, int]
NOTHING: Tokens = (0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(slots=True)
class Attempt:
    """One attempt of a request, as it happened. `tier` prices it at an API; `cached`: of its prompt, what the
    baseline's API would have had in its cache. `succeeded`: the client got an answer."""

    id: str
    number: int
    final: bool
    started_ns: int
    sent_ns: int
    first_ns: int | None
    ended_ns: int
    route: Route
    key: str
    tags: str
    backend: str
    kind: str
    model: str
    status: int
    end: str
    tokens: Tokens
    source: str
    work_ns: int
    cached: int
    in_time: bool | None
    stream: bool = True
    trial: int = 0  # 1: sent to the baseline's API at random, 2: drawn to be compared, and served as usual
    prompt_bytes: int = 0
    hold_nano: int | None = None  # the most that it may cost
    recounted: int | None = None  # of the prompt's tokens, by the tokenizer of the baseline's model
    varying_nano: int = 0  # what serving it varied: an amount like any other here

    @property
    def succeeded(self) -> bool:
        return self.status < 400 and self.end in ("complete", "client_abort")


@dataclass(slots=True)
class Watched:
    """What was seen of a backend in one minute."""

    backend: str
    minute: int
    observed_ns: int
    foreign_ns: int
    startup_ns: int
    energy_nano: int | None


def attempts(scene: Scene, chunk: int = 20_000) -> Iterator[list[Attempt]]:
    """All attempts of the scene, in pieces; the same for the same scene."""
    random = np.random.default_rng(scene.seed)
    yield _edges(scene)
    minutes = np.arange(scene.start_ns // MINUTE, scene.end_ns // MINUTE)
    yield from drawn(scene, minutes, random, scene.requests, chunk)


def drawn(scene: Scene, minutes: np.ndarray, random: np.random.Generator, requests: int,
          chunk: int = 20_000) -> Iterator[list[Attempt]]:
    """So many requests, spread over these minutes by their load, and none planted."""
    weights = load(minutes)
    counts = random.multinomial(requests, weights / weights.sum())
    begins = np.repeat(minutes, counts) * MINUTE + random.integers(0, MINUTE, requests)
    for at in range(0, requests, chunk):
        yield _Drawing(scene, random, begins[at:at + chunk], at).all()


def load(minutes: np.ndarray) -> np.ndarray:
    """The weight of each minute: by the clock on the wall, a third at the weekend."""
    def weight(minute: int) -> float:
        local = dt.datetime.fromtimestamp(minute * 60, zone())
        hour = local.hour + local.minute / 60
        day = 0.12 + np.exp(-((hour - 11) / 3.1) ** 2) + 0.8 * np.exp(-((hour - 16) / 2.4) ** 2)
        return float(day * (0.3 if local.weekday() >= 5 else 1.0))
    return np.array([weight(int(minute)) for minute in minutes])


class _Drawing:
    """A piece of the requests. Chances are drawn for all of it at once, because one by one takes ten times as long."""

    def __init__(self, scene: Scene, random: np.random.Generator, begins: np.ndarray, first: int) -> None:
        n = len(begins)
        self._scene, self._first = scene, first
        self._begins = begins.tolist()
        self._routes = random.choice(len(ROUTES), n, p=_shares([route.share for route in ROUTES])).tolist()
        self._teams = random.choice(len(TEAMS), n, p=_shares([team.share for team in TEAMS])).tolist()
        self._sizes = np.exp(random.normal(0, 0.8, (n, 2))).tolist()
        self._chances = random.random((n, 12)).tolist()
        self._outages = scene.outages

    def all(self) -> list[Attempt]:
        made: list[Attempt] = []
        for at in range(len(self._begins)):
            made += self._request(at)
        return made

    def _request(self, at: int) -> list[Attempt]:
        route, team, chances = ROUTES[self._routes[at]], TEAMS[self._teams[at]], self._chances[at]
        start = self._begins[at]
        name = f"r{self._first + at:08}"
        tokens = self._tokens(route, self._sizes[at], chances)
        backend = self._backend(start, chances[0])
        trial = (1 if chances[11] < 0.005 else 2 if chances[11] < 0.01 else 0) if route.name == "chat" else 0
        if trial == 1:
            backend = API
        wait = int(chances[1] ** 8 * 20 * S)
        attempt = self._attempt(name, 1, route, team.key, team.tags, backend, start, start + wait, tokens, chances)
        attempt.trial, failure = trial, chances[2]
        if failure < 0.0008:
            return [_unavailable(attempt)]
        if failure < 0.02:
            return self._failed_first(attempt, tokens, chances)
        if failure < 0.0235:
            _fail(attempt, 502 if failure < 0.022 else 504)
        elif failure < 0.033:
            attempt.end = "client_abort"
            attempt.source = "upstream_running" if failure < 0.03 else "estimated"
        elif failure < 0.034 and attempt.kind == "api":  # sent, and never heard of again
            attempt.end, attempt.status, attempt.source, attempt.tokens = "timeout", 504, "none", NOTHING
            attempt.cached, attempt.in_time, attempt.hold_nano = 0, None, 50_000_000
        elif failure > 0.9995:  # repeated under its Idempotency-Key
            again = self._attempt(name, 2, route, team.key, team.tags, backend, start + 9 * S, start + 9 * S, tokens,
                                  chances)
            again.final, again.cached, again.in_time = False, 0, None
            return [attempt, again]
        return [attempt]

    def _backend(self, start: int, chance: float) -> str:
        backend = "owned" if chance < 0.42 else "spot" if chance < 0.66 else "burst" if chance < 0.71 else API
        for outage in self._outages:
            if backend == outage.backend and outage.from_ns - 30 * S <= start < outage.to_ns:
                return API
        return backend

    @staticmethod
    def _tokens(route: Route, sizes: list[float], chances: list[float]) -> Tokens:
        prompt = 1 + int(route.input_tokens * sizes[0])
        output = int(route.output_tokens * sizes[1])
        read = min(prompt, int(prompt * chances[3])) // 128 * 128 if chances[4] < 0.4 else 0
        written = (prompt - read) // 3 if route.client_model == "gpt-mini" and chances[4] > 0.93 else 0
        reasoning = int(output * chances[5] * 3) if route.reasons else 0
        audio = int(chances[5] * 400) if route.client_model == "gpt-big" and chances[6] > 0.99 else 0
        image = 765 if route.reasons and chances[6] > 0.97 else 0
        return prompt - read - written, read, written, 0, audio, image, output, reasoning, audio // 3

    def _attempt(self, name: str, number: int, route: Route, key: str, tags: str, backend: str, start: int, sent: int,
                 tokens: Tokens, chances: list[float]) -> Attempt:
        output = sum(tokens[6:])
        lasts = int((0.08 + 0.011 * output) * (0.5 + chances[7]) * S) + 1
        kind = "api" if backend == API else "gpu"
        work = 0
        if kind == "gpu":
            work = int((sum(tokens[:6]) * 60_000 + output * 900_000 + 1_000_000) * (0.5 + chances[8]))
            if chances[9] > 0.9995:
                lasts = int(chances[10] * 3 * HOUR)  # a stream that is open for hours
        model = route.client_model if kind == "api" else GPU_MODELS[backend]
        if kind == "api" and chances[11] > 0.985 and route.client_model == "gpt-big" and route.tier == "default":
            model = "gpt-mini"  # another model than the baseline's answers
            tokens = (*tokens[:4], 0, tokens[5], *tokens[6:8], 0)
        if kind == "gpu":
            tokens = (tokens[0] + tokens[2], tokens[1], 0, 0, *tokens[4:])  # engines write no cache for money
        source = "estimated" if chances[9] < 0.02 else "upstream_final"
        cached = tokens[1]
        if kind == "gpu" and chances[10] < 0.3:
            cached = max(cached, sum(tokens[:2]) // 2) // 128 * 128
            cached = cached if cached >= 1024 else 0
        in_time = None if route.tier == "batch" else chances[10] > 0.04
        return Attempt(name, number, True, start, sent, sent + lasts // 5, sent + lasts, route, key, tags, backend,
                       kind, model, 200, "complete", tokens, source, work, cached, in_time,
                       prompt_bytes=3 * sum(tokens[:2]) + output % 7, varying_nano=work // 3000,
                       recounted=sum(tokens[:6]) * 107 // 100 if chances[8] < 0.01 else None)

    def _failed_first(self, first: Attempt, tokens: Tokens, chances: list[float]) -> list[Attempt]:
        """An attempt that fails, and another, at the API as a rule, that answers."""
        first.final = False
        _fail(first, 502)
        if chances[3] < 0.3:  # refused at once: nothing was used
            first.end, first.status, first.source, first.tokens, first.work_ns = ("upstream_refused", 429, "none",
                                                                                  NOTHING, 0)
            first.first_ns, first.varying_nano = None, 0
        backend = API if chances[4] < 0.9 else self._backend(first.ended_ns, chances[5])
        second = self._attempt(first.id, 2, first.route, first.key, first.tags, backend, first.started_ns,
                               first.ended_ns, tokens, chances)
        if chances[6] < 0.05:
            _fail(second, 500)
        return [first, second]


def _shares(weights: list[float]) -> np.ndarray:
    return np.array(weights) / sum(weights)


def _fail(attempt: Attempt, status: int) -> None:
    attempt.end, attempt.status, attempt.in_time, attempt.cached = "upstream_error", status, None, 0


def _unavailable(attempt: Attempt) -> Attempt:
    """Refused before any upstream was asked."""
    attempt.backend, attempt.kind, attempt.model, attempt.status, attempt.end = "", "none", "", 503, "unavailable"
    attempt.tokens, attempt.source, attempt.work_ns, attempt.cached = NOTHING, "none", 0, 0
    attempt.trial, attempt.varying_nano = 0, 0
    attempt.first_ns, attempt.in_time = None, None
    attempt.ended_ns = attempt.sent_ns
    return attempt


def _edges(scene: Scene) -> list[Attempt]:
    """For every backend, requests that begin before or on an edge and end on it, just after it, or minutes later."""
    midnight = scene.part(0.5) // HOUR * HOUR
    edges = [scene.from_ns, scene.to_ns, scene.price_change_ns, midnight, scene.part(0.37),
             scene.part(0.7) // HOUR * HOUR,
             *(rate.from_ns for rate in scene.rates() if scene.from_ns < rate.from_ns < scene.to_ns),
             *(moment for outage in scene.outages for moment in (outage.from_ns, outage.to_ns + MINUTE))]
    made = []
    for edge in edges:
        for before, after in ((1, 0), (1, 1), (0, 0), (0, 5 * S), (30 * S, 30 * S), (S, 200 * S), (3 * HOUR, 7)):
            for backend in (*GPU_MODELS, API):
                number = len(made)
                route, team = ROUTES[number % len(ROUTES)], TEAMS[number % len(TEAMS)]
                tokens = (1500 + number, 1024 * (number % 2), 0, 0, 0, 0, 77 + number % 13, 0, 0)
                gpu = backend != API
                made.append(Attempt(
                    f"edge{number:05}", 1, True, edge - before, edge - before, None, edge + after, route, team.key,
                    team.tags, backend, "gpu" if gpu else "api", GPU_MODELS.get(backend, route.client_model), 200,
                    "complete", tokens, "upstream_final", (before + after) // 7 + number if gpu else 0, tokens[1],
                    number % 3 != 0))
    return made


def watched(scene: Scene) -> list[Watched]:
    """Every minute of every GPU backend, but some that no gateway saw; foreign work, start-ups, measured energy."""
    random = np.random.default_rng(scene.seed + 1)
    seen = []
    for backend in GPU_MODELS:
        for minute in range(scene.start_ns // MINUTE, scene.end_ns // MINUTE):
            chance, other = random.random(2).tolist()
            if chance < 0.002:
                continue
            begin, end = minute * MINUTE, (minute + 1) * MINUTE
            startup = sum(max(0, min(end, one.to_ns) - max(begin, one.starts_ns))
                          for one in scene.outages if one.backend == backend)
            foreign = int(other * 40 * S) if 0.9 < chance < 0.95 else 0
            energy = int(6_500_000 * (0.3 + other)) if backend == "owned" and chance > 0.4 else None
            seen.append(Watched(backend, minute, MINUTE if chance < 0.99 else int(other * MINUTE), foreign, startup,
                                energy))
    return seen
