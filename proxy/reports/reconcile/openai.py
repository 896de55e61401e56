"""OpenAI's exports: pages of the Usage and the Costs API, and their line items.

A page is `{"object": "page", "data": [bucket, ...], "has_more", "next_page"}`, a bucket `{"object": "bucket",
"start_time", "end_time", "results": [...]}` in Unix seconds, UTC (API reference, Usage: "Completions", "Embeddings",
"Costs"; the OpenAPI file calls the list `result`). A file may hold one page, an array of pages, or one a line.

Usage results (`organization.usage.completions.result`, `...embeddings.result`) count `num_model_requests`,
`input_tokens` with cached ones among them (`input_cached_tokens`, and `input_cache_write_tokens` where there are any)
and `output_tokens`; `model`, `project_id`, `batch` and `service_tier` are null unless grouped by. Costs results
(`organization.costs.result`) have `amount.value`, `amount.currency`, and, grouped by it, `line_item`, such as
"gpt-4o-2024-08-06, cached input" or "priority | gpt-5, output, long context". OpenAI says of the two that costs
reconcile to the invoice and usage may not, so money is taken from costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from proxy.reports.reconcile.bill import (
    DAY_S,
    ChargeLine,
    Tokens,
    UsageLine,
    Where,
    count,
    currency,
    day_of,
    text,
    usd,
)

USAGE, COSTS = "organization.usage.", "organization.costs.result"
OF_TOKENS = {f"{USAGE}completions.result", f"{USAGE}embeddings.result", f"{USAGE}moderations.result"}
LINE_ITEM = re.compile(
    r"^(?:(?P<tier>batch|flex|priority|fast) ?(?:\| ?|api ?\| ?))?(?P<model>[\w./:@-]+)(?: (?:text|audio|image))?, "
    r"(?P<kind>cached input|cache writes?|input|output)(?:, long context)?$", re.IGNORECASE)
KINDS_OF = {"input": "input", "output": "output", "cached input": "cached", "cache write": "written",
            "cache writes": "written"}
BUCKETS_MAX, RESULTS_MAX = 100_000, 1_000_000

Line = Callable[[str], int | None]  # the line of a path in the file


class Pages:
    """Reads pages one after the other; `first` and `beyond` are what the buckets cover, in seconds."""

    def __init__(self, file: str, line_of: Line) -> None:
        self.usage: list[UsageLine] = []
        self.charges: list[ChargeLine] = []
        self.first = self.beyond = 0
        self.kinds: set[str] = set()
        self._file, self._line_of = file, line_of
        self._spans: list[tuple[int, int]] = []

    def read(self, document: Any) -> None:
        """BadBill for what is no export, is not whole, or leaves days out."""
        pages = document if isinstance(document, list) else [document]
        for number, page in enumerate(pages):
            path = f"[{number}]" if isinstance(document, list) else ""
            if isinstance(page, dict) and page.get("object") == "bucket":
                self._bucket(page, path)
                continue
            if not isinstance(page, dict) or not isinstance(page.get("data"), list):
                raise self._at(path or "data").bad("no page of OpenAI's Usage or Costs API: there is no list `data`")
            if page.get("has_more") and number == len(pages) - 1:
                raise self._at(f"{path}.has_more".lstrip(".")).bad(
                    "there are more pages: fetch them all (page=next_page) and put them into one array")
            for index, bucket in enumerate(page["data"]):
                self._bucket(bucket, f"{path}.data[{index}]".lstrip("."))
        self._cover()

    def _at(self, path: str) -> Where:
        return Where(self._file, None, path, self._line_of)

    def _bucket(self, bucket: Any, path: str) -> None:
        where = self._at(path)
        if not isinstance(bucket, dict) or len(self._spans) >= BUCKETS_MAX:
            raise where.bad(f"must be a bucket, and there are at most {BUCKETS_MAX:,}")
        start = count(bucket.get("start_time"), where.at("start_time"))
        end = count(bucket.get("end_time"), where.at("end_time"))
        if not start < end <= 253_402_300_799 or end - start > DAY_S:
            raise where.at("end_time").bad("a bucket is of a minute, an hour or a day, and ends after it starts")
        name = "results" if "results" in bucket else "result"
        results = bucket.get(name)
        if not isinstance(results, list):
            raise where.at("results").bad("must be a list")
        self._spans.append((start, end))
        for index, result in enumerate(results):
            at = self._at(f"{path}.{name}[{index}]")
            if not isinstance(result, dict):
                raise at.bad("must be an object")
            self._result(day_of(start), result, at)

    def _result(self, day: str, result: dict[str, Any], where: Where) -> None:
        kind = text(result.get("object"), where.at("object"))
        if len(self.usage) + len(self.charges) >= RESULTS_MAX:
            raise where.bad(f"there are more than {RESULTS_MAX:,} results")
        self.kinds.add(kind)
        if kind == COSTS:
            self.charges.append(charge(day, result, where))
        elif kind in OF_TOKENS:
            self.usage.append(usage(day, result, where))
        else:
            raise where.at("object").bad(f"{kind[:60]!r} is not counted in tokens; export completions, embeddings or "
                                         "costs")

    def _cover(self) -> None:
        """Buckets of one export follow each other: a hole is a page that was left out."""
        if not self._spans:
            raise self._at("data").bad("there is no bucket in it")
        spans = sorted(set(self._spans))
        for (_, end), (start, _) in pairwise(spans):
            if start > end:
                raise self._at("data").bad(f"nothing is said of {day_of(end)} until {day_of(start)}; was a page left "
                                           "out?")
        self.first, self.beyond = spans[0][0], spans[-1][1]


def usage(day: str, result: dict[str, Any], where: Where) -> UsageLine:
    def of(name: str) -> int:
        return 0 if result.get(name) is None else count(result[name], where.at(name))

    prompt = count(result.get("input_tokens"), where.at("input_tokens"))
    cached, written = of("input_cached_tokens"), of("input_cache_write_tokens")
    if cached + written > prompt:
        raise where.at("input_cached_tokens").bad(f"{cached + written} tokens to and from the cache are more than the "
                                                  f"{prompt} of input that they are part of")
    requests = None if result.get("num_model_requests") is None else of("num_model_requests")
    tokens = Tokens(requests, prompt - cached - written, cached, written, of("output_tokens"))
    model = text(result.get("model"), where.at("model"))
    if not model:
        raise where.at("model").bad("usage is compared by model: export it with group_by=model")
    return UsageLine(day, model, tokens, where, _tier(result, where), text(result.get("project_id"),
                                                                          where.at("project_id")))


def _tier(result: dict[str, Any], where: Where) -> str:
    """"": the export does not say."""
    if result.get("batch") in (True, "true", "TRUE", "True"):
        return "batch"
    named = text(result.get("service_tier"), where.at("service_tier"))
    return "default" if named in ("auto", "standard") else named


def charge(day: str, result: dict[str, Any], where: Where) -> ChargeLine:
    amount, at = result.get("amount"), where.at("amount")
    if not isinstance(amount, dict):
        raise at.bad("must be an object with `value` and `currency`")
    currency(amount.get("currency"), at.at("currency"))
    quantity = None if result.get("quantity") is None else count(result["quantity"], where.at("quantity"))
    item = text(result.get("line_item"), where.at("line_item"))
    model, kind, tier = line_item(item)
    return ChargeLine(day, model, usd(amount.get("value"), at.at("value")), where, kind, tier,
                      text(result.get("project_id"), where.at("project_id")), item, quantity)


def line_item(item: str) -> tuple[str, str, str]:
    """(model, kind of token, service tier) of a line item. "web search tool calls" is no model: it stays whole, in the
    place of one. Empty: the costs are not grouped by line item."""
    found = LINE_ITEM.match(item)
    if found is None:
        return item, "", "default"
    return found["model"], KINDS_OF[found["kind"].lower()], (found["tier"] or "default").lower()
