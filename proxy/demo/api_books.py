"""The simulated API's own books, and what its provider's organisation can export of them: OpenAI's Usage and Costs API.

    GET /v1/organization/usage/completions?start_time=1764115200&group_by=model&group_by=service_tier
    GET /v1/organization/usage/embeddings?start_time=...
    GET /v1/organization/costs?start_time=...&group_by=line_item

Buckets are UTC days; `end_time`, `limit` and `page` are as OpenAI's, and what is not grouped by is null. A day's costs
add up to what its requests were billed, to the nano-dollar: each kind of token is rounded, the last one takes the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from proxy.demo.api_bill import ApiModel

DAY_S = 86_400
PROJECT, KEY, USER = "proj_sim", "key_sim", "user-sim"
LIMITS = {"usage": (7, 31), "costs": (7, 180)}  # default and most buckets of a page
GROUPS = {"usage": ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier"),
          "costs": ("project_id", "line_item", "api_key_id")}

Results = Callable[[int, tuple[str, ...]], list[dict[str, Any]]]  # of a day (its first second), grouped by


@dataclass(slots=True)
class Sums:
    """One day, endpoint and model."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    nano: dict[str, int] = field(default_factory=lambda: {"input": 0, "cached input": 0, "output": 0})


class Books:
    """What was used and billed, by UTC day, endpoint (completions or embeddings) and model."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str, str], Sums] = {}

    def add(self, endpoint: str, name: str, model: ApiModel, counts: tuple[int, int, int], billed_nano: int,
            at_s: float | None = None) -> None:
        """A request that was billed: its prompt, the cached part of it, and its completion, in tokens."""
        day = int(time.time() if at_s is None else at_s) // DAY_S * DAY_S
        kind = "embeddings" if endpoint.endswith("/embeddings") else "completions"
        sums = self._sums.setdefault((day, kind, name), Sums())
        prompt, cached, completion = counts
        sums.requests += 1
        sums.prompt += prompt
        sums.cached += cached
        sums.completion += completion
        left = billed_nano
        parts = {"output": (model.output, completion), "cached input": (model.cached_input, cached)}
        for part, (usd_per_million, tokens) in parts.items():
            nano = round(Fraction(usd_per_million) * 1000 * tokens)
            sums.nano[part] += nano
            left -= nano
        sums.nano["input"] += left

    def usage(self, endpoint: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """A page of the Usage API. ValueError says which parameter is wrong."""
        def results(day: int, group: tuple[str, ...]) -> list[dict[str, Any]]:
            rows: dict[str | None, Sums] = {}
            for (at, kind, name), sums in sorted(self._sums.items()):
                if (at, kind) == (day, endpoint):
                    into = rows.setdefault(name if "model" in group else None, Sums())
                    into.requests += sums.requests
                    into.prompt += sums.prompt
                    into.cached += sums.cached
                    into.completion += sums.completion
            return [_usage(endpoint, name, sums, group) for name, sums in rows.items()]

        return _page("usage", query, results)

    def costs(self, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """A page of the Costs API."""
        def results(day: int, group: tuple[str, ...]) -> list[dict[str, Any]]:
            rows: dict[str | None, int] = {}
            for (at, _, name), sums in sorted(self._sums.items()):
                for part, nano in sums.nano.items():
                    if at == day and nano:
                        item = f"{name}, {part}" if "line_item" in group else None
                        rows[item] = rows.get(item, 0) + nano
            return [{"object": "organization.costs.result", "amount": {"value": nano / 1e9, "currency": "usd"},
                     "line_item": item, "project_id": PROJECT if "project_id" in group else None,
                     "api_key_id": KEY if "api_key_id" in group else None} for item, nano in rows.items()]

        return _page("costs", query, results)


def _usage(endpoint: str, name: str | None, sums: Sums, group: tuple[str, ...]) -> dict[str, Any]:
    counted = {"input_tokens": sums.prompt} if endpoint == "embeddings" else {
        "input_tokens": sums.prompt, "output_tokens": sums.completion, "input_cached_tokens": sums.cached,
        "input_audio_tokens": 0, "output_audio_tokens": 0}
    named = {"project_id": PROJECT, "user_id": USER, "api_key_id": KEY, "model": name, "batch": False,
             "service_tier": "default"}
    if endpoint == "embeddings":
        del named["batch"], named["service_tier"]
    return {"object": f"organization.usage.{endpoint}.result", **counted, "num_model_requests": sums.requests,
            **{key: value if key in group else None for key, value in named.items()}}


def _page(kind: str, query: Mapping[str, list[str]], results: Results) -> dict[str, Any]:
    default, most = LIMITS[kind]
    start = _whole(query, "start_time", None)
    end = _whole(query, "end_time", int(time.time()) // DAY_S * DAY_S + DAY_S)
    limit = min(_whole(query, "limit", default), most)
    width = query.get("bucket_width", ["1d"])[-1]
    if width != "1d" or limit < 1 or start >= end:
        raise ValueError("bucket_width must be 1d, limit at least 1, and end_time after start_time")
    group = tuple(name for value in query.get("group_by", []) + query.get("group_by[]", [])
                  for name in value.split(",") if name)
    if unknown := set(group) - set(GROUPS[kind]):
        raise ValueError(f"group_by: {sorted(unknown)[0]} is none of {', '.join(GROUPS[kind])}")
    days = list(range(start // DAY_S * DAY_S, end, DAY_S))
    at = _whole(query, "page", 0)
    data = [{"object": "bucket", "start_time": day, "end_time": day + DAY_S, "results": results(day, group)}
            for day in days[at:at + limit]]
    more = at + limit < len(days)
    return {"object": "page", "data": data, "has_more": more, "next_page": str(at + limit) if more else None}


def _whole(query: Mapping[str, list[str]], name: str, default: int | None) -> int:
    if name not in query:
        if default is None:
            raise ValueError(f"Missing required parameter: '{name}'.")
        return default
    text = query[name][-1]
    if not text.isdigit() or len(text) > 12:
        raise ValueError(f"{name}: must be an integer")
    return int(text)
