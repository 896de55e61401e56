"""The configuration, version 1: frozen, validated, complete.

Every field says its unit, its default and why one would move it (`description`); `config/example.yaml`
and the documentation are tested against that. What spans several fields is checked in `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, model_validator

from proxy.config.alerts import Alerts
from proxy.config.backend import Backend
from proxy.config.fields import FROZEN, Bool, Day, FilePath, Float, Int, Share, Text, Usd, auto, setting
from proxy.config.problem import Source
from proxy.config.report import Report
from proxy.config.routes import RouteTable
from proxy.config.spending import ApiSpendMax, BudgetLine, api_spend

MIB = 1_048_576
RouteName = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]


class AdminListener(BaseModel):
    """A socket of its own for `/metrics` and `/admin/*`, with the same guard, limits and keys."""

    model_config = FROZEN

    host: Text = setting("127.0.0.1", "Address to listen on", "One in the network of operators and monitoring.")
    port: Int = setting(9000, "Port to listen on", "Where 9000 is taken; another than server.port.", ge=0, le=65535)


class Server(BaseModel):
    """The socket that applications call, and its limits."""

    model_config = FROZEN

    host: Text = setting("127.0.0.1", "Address to listen on", "0.0.0.0 or :: to be reached from other machines; "
        "keys are then required.")
    port: Int = setting(8000, "Port to listen on", "Where 8000 is taken.", ge=0, le=65535)
    admin: AdminListener | None = setting(None, "A listener for operators", "Takes /metrics and /admin/* away from the "
        "socket that applications call.", shown_default="unset, the same listener")
    workers: Int = setting(1, "Worker processes", "As many as CPU cores may serve; each takes memory of its own.",
        unit="processes", ge=1, le=64)
    body_bytes_max: Int = setting(4 * MIB, "Longest request body", "Raise for very long prompts.", unit="bytes",
        ge=1024, le=256 * MIB)
    body_bytes_max_media: Int = setting(
        20 * MIB, "Longest request body where images or audio are taken", "Raise for larger pictures.",
        unit="bytes", ge=1024, le=256 * MIB)
    bodies_bytes_max: Int = setting(
        256 * MIB, "Longest bodies of all requests in flight together", "Raise where there is memory for ten times as "
        "much: beyond it the gateway answers 503 at once.", unit="bytes", ge=MIB, le=1024 * 1024 * MIB)
    header_bytes_max: Int = setting(32_768, "Longest request head", "Raise for proxies that add large headers.",
        unit="bytes", ge=1024, le=MIB)
    headers_max: Int = setting(100, "Most request headers", "Raise for proxies that add many.", unit="headers",
        ge=8, le=1000)
    in_flight_max: Int = setting(10_000, "Most requests at once", "Lower on small machines: beyond it the gateway "
        "answers 503 at once.", unit="requests", ge=1, le=1_000_000)
    line_max: Int = setting(10_000, "Most requests waiting for room, for each pool of engines", "Lower on small "
        "machines: beyond it requests go to the API at once, or are refused.", unit="requests", ge=1, le=1_000_000)
    drain_s: Float = setting(120.0, "Time to finish at shutdown", "As long as your longest answer; the "
        "orchestrator's grace period must be longer.", unit="seconds", ge=0, le=3600)
    first_byte_s: Float = setting(60.0, "Upstream's first byte", "Raise where prompts are very long.",
        unit="seconds", gt=0, le=3600)
    answer_s: Float = setting(600.0, "Upstream's whole answer, when it is not streamed", "As long as the longest "
        "answer takes to write; OpenAI's clients wait 600 s.", unit="seconds", gt=0, le=3600)
    idle_s: Float = setting(30.0, "Upstream's silence between bytes", "Raise where models pause long.",
        unit="seconds", gt=0, le=3600)
    connect_s: Float = setting(2.0, "Connecting to an upstream", "Raise for far regions.", unit="seconds", gt=0,
        le=60)
    client_write_stall_s: Float = setting(60.0, "Client that does not read", "Lower to shed slow readers sooner.",
        unit="seconds", gt=0, le=3600)
    header_s: Float = setting(10.0, "Client sending its request head", "Raise for very slow clients.",
        unit="seconds", gt=0, le=600)
    body_s: Float = setting(30.0, "Client sending its body", "Raise for slow uploads of images.", unit="seconds",
        gt=0, le=3600)


class Electricity(BaseModel):
    """What electricity costs, for GPUs whose energy is metered."""

    model_config = FROZEN

    usd_per_kwh: Usd | None = setting(None, "Price of electricity", "Required where a GPU has `energy: metered`.",
        unit="USD per kWh", ge=0, le=10)
    pue: Usd = setting(Decimal("1.0"), "Power usage effectiveness", "Cooling and losses of the building: 1.1 in a "
        "good data centre, 1.6 in an old one.", unit="ratio", ge=1, le=5)


class Overhead(BaseModel):
    """A running cost that is no GPU and no API, shown in the report so that the saving is net."""

    model_config = FROZEN

    name: Text = setting(..., "Name in the report", "Whatever finance calls it.")
    usd_per_month: Usd = setting(..., "Cost", "Engineering time, storage, network, licences.",
        unit="USD per calendar month", ge=0, le=100_000_000)
    from_: Day = setting(..., "First day", "When the cost began.", unit="date in report.time_zone", alias="from")
    until: Day | None = setting(None, "End", "The first day without it.", unit="date in report.time_zone")


class Slo(BaseModel):
    """A route's latency targets: an engine is used only when it is predicted to meet them."""

    model_config = FROZEN

    ttft_ms: Int = setting(2000, "Time to first token", "Lower for chat, raise for batch work: the looser, the "
        "more the GPUs can take.", unit="milliseconds", ge=1, le=3_600_000)
    tpot_ms: Int = setting(200, "Time per output token", "Lower for voice or code completion; it bounds the batch.",
        unit="milliseconds", ge=1, le=600_000)


class Thresholds(BaseModel):
    """Limits of load above which an engine takes no more. All but the first are unset, and best left so."""

    model_config = FROZEN

    kv_cache_max: Float | None = setting(0.95, "KV cache in use", "Lower if the engine preempts requests.",
        unit="fraction", gt=0, le=1)
    utilization_max: Float | None = setting(None, "Utilisation", "Under any policy, if set; a cap on GPUs that "
        "are paid anyway throws money away.", unit="fraction", gt=0, le=1)
    utilization_resume: Float | None = setting(None, "Utilisation to resume at", "Below utilization_max, so that "
        "the decision does not flap.", unit="fraction", ge=0, lt=1,
        shown_default="unset, 0.05 below utilization_max")
    queue_max: Int | None = setting(None, "Requests waiting in the engine", "Under any policy, if set.",
        unit="requests", ge=0)
    waiting_max: Int | None = setting(None, "Requests waiting in the gateway", "Under any policy, if set: more go to "
        "the API at once.", unit="requests", ge=0)
    dwell_s: Float = setting(5.0, "Shortest closure", "How long an engine that a threshold closed stays closed at "
        "least, so that nothing flaps.", unit="seconds", ge=0, le=3600)
    gpu_util_max: Float | None = setting(None, "GPU-Util", "Only where a policy demands it: it reaches 100 % long "
        "before the GPU is full.", unit="fraction", gt=0, le=1)


class Route(BaseModel):
    """A model name that applications ask for, and who may serve it."""

    model_config = FROZEN

    name: RouteName = setting("", "Name", "Filled in from the key under `routes`; \"*\" takes every other name.")
    backends: tuple[Text, ...] = setting(..., "Who may serve it", "Names under `backends`; the order does not "
        "matter, cost and load decide.", min_length=1, max_length=256)
    aliases: tuple[RouteName, ...] = setting((), "Other names for it", "Names and globs such as \"gpt-4o-2024-*\", "
        "so that applications need no change.", max_length=1024)
    baseline: Text = setting(..., "What savings are measured against", "The API backend that would have served "
        "everything; it need not be among `backends`.")
    policy: Literal["marginal-cost", "threshold", "self-hosted-only", "api-only", "observe"] = setting(
        "marginal-cost", "How to choose", "observe to watch first, threshold for fixed limits, api-only or "
        "self-hosted-only to force one side.")
    slo: Slo = setting(Slo(), "Latency targets", "Per route, as users feel it.")
    wait_ms_max: Annotated[Int | None, BeforeValidator(auto)] = setting(
        None, "Longest wait for an engine", "0 to overflow at once; less than auto where latency matters more than "
        "saving: under overload who ends at the API has waited that long.",
        unit="milliseconds", ge=0, le=600_000, shown_default="auto")
    thresholds: Thresholds = setting(Thresholds(), "Limits of load", "Hard limits of your own.")
    gpu_share_min: Float | None = setting(None, "Share of the GPUs that each key is sure of", "For tenants whose "
        "requests are worth less than others': below this share of the pool theirs go first. Costs savings.",
        unit="fraction", gt=0, le=1)
    control_group: Share = setting(
        Decimal(0), "Sent to the baseline's API at random", "0.5% to 1% for a while, so that the report can say how "
        "much longer or shorter its answers are. Costs what the API charges for them, on a line of its own.",
        unit="percentage of what your GPUs would answer", ge=0, le=Decimal("0.1"), shown_default="0%")
    response_model: Literal["upstream", "route"] = setting(
        "upstream", "Model name in answers", "route where clients insist on the name they asked for.")
    engine_fields: frozenset[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]] = setting(
        frozenset(), "Engine fields allowed", "Request fields that can block or endanger an engine, such as "
        "chat_template_kwargs, are refused unless named here.")
    remote_media: Bool = setting(False, "Pass on media URLs", "true lets an engine fetch images from addresses "
        "that callers choose: a way into your network.")
    residency: Text | None = setting(None, "Data must stay in", "Only backends with this `region` serve the route.")
    output_tokens_default: Int = setting(256, "Expected answer length", "A first guess until enough answers are "
        "seen.", unit="tokens", ge=1, le=1_000_000)
    output_tokens_max: Int = setting(4096, "Longest answer under a budget", "Sent to APIs with a request that names "
        "no limit, where a budget must hold its most expensive outcome. An engine's limit is its context.",
        unit="tokens", ge=1, le=1_000_000)
    unserved_usd_per_mtok: Usd | None = setting(
        None, "Value of a request that no API could serve", "Ranks such requests against others for a full GPU.",
        unit="USD per million tokens", ge=0, le=10_000, shown_default="unset, the baseline's price")


class Keys(BaseModel):
    """Virtual keys; they live in the ledger (`breakeven keys create`)."""

    model_config = FROZEN

    required: Bool = setting(True, "Callers need a key", "false only on a loopback address, for a first try.")
    tag_sets_max: Int = setting(1000, "Most different sets of tags of one key in a day (UTC)", "Raise where a tag "
        "names many people or jobs: each set is a row in the minutes' sums. Those beyond are booked as (other).",
        unit="sets of tags", ge=1, le=100_000)


class Settings(BaseModel):
    """A whole configuration."""

    model_config = FROZEN

    version: Literal[1] = setting(1, "Version of this format", "Stays 1 until the format changes.")
    server: Server = setting(Server(), "Where the gateway listens", "See each field.")
    ledger: Text = setting("sqlite:///data/ledger.db", "Where the books are kept", "A path on a disk that is "
        "backed up; postgresql:// is not built yet.", unit="URL")
    sync: Literal["full", "normal"] = setting("full", "When an answer may end", "full: once its row is on the disk. "
        "normal: once the system has it, which waits for no disk; a power cut may lose the rows of the last half "
        "minute, a killed process loses nothing.")
    state: Text = setting("memory://", "Where gateways share budgets and limits", "redis:// is not built yet.",
        unit="URL")
    report: Report = setting(Report(), "How the report counts", "See each field.")
    prices: FilePath | None = setting(None, "Your own API prices", "Contracted prices and discounts, dated; they "
        "win over the package's list prices.", unit="file")
    electricity: Electricity = setting(Electricity(), "What electricity costs", "See each field.")
    overheads: tuple[Overhead, ...] = setting((), "Other running costs", "So that the saving is net.",
        max_length=256)
    backends: dict[Text, Backend] = setting(..., "Who can serve", "By name.", min_length=1, max_length=1024)
    routes: dict[RouteName, Route] = setting(..., "What applications ask for", "By model name.", min_length=1,
        max_length=4096)
    keys: Keys = setting(Keys(), "Who may call", "See each field.")
    budgets: tuple[BudgetLine, ...] = setting((), "What routes and tags may cost", "Keys have budgets of their own: "
        "`breakeven keys create --budget`.", max_length=1024)
    api_spend_max: Annotated[ApiSpendMax | None, BeforeValidator(api_spend)] = setting(
        None, "What all API calls together may cost", "So that an outage of your GPUs does not become a bill without "
        "end; `200/hour`, or {max: 200/hour, then: refuse}.")

    alerts: Alerts = setting(Alerts(), "Whom to tell, and of what", "See each field.")

    _source: Source = PrivateAttr(default_factory=lambda: Source(""))

    @model_validator(mode="before")
    @classmethod
    def _name_entries(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        full = dict(data)
        for group in ("backends", "routes"):
            if isinstance(full.get(group), Mapping):
                full[group] = {key: {**entry, "name": key} if isinstance(entry, Mapping) else entry
                               for key, entry in full[group].items()}
        return full

    @property
    def source(self) -> Source:
        """The file these settings were read from, and where each stands in it."""
        return self._source

    @cached_property
    def routing(self) -> RouteTable[Route]:
        return RouteTable(self.routes, {name: route.aliases for name, route in self.routes.items()})

    def route_table(self) -> RouteTable[Route]:
        """Compiled once, asked once per request."""
        return self.routing
