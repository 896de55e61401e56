"""What a generated month is made of: its calendar, prices, rate card, teams and routes. Plain values, and nothing of
the product's, so that the truth told from them is told independently.

Times are UTC nanoseconds, amounts of money decimal strings in USD. What changes in mid-month changes at odd seconds, so
that minutes are cut; one price changes on the hour, and the clocks of Europe/Berlin are set back inside the month.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from decimal import Decimal
from zoneinfo import ZoneInfo

S = 1_000_000_000
MINUTE, HOUR = 60 * S, 3600 * S
BERLIN = "Europe/Berlin"


def at_ns(text: str) -> int:
    """Nanoseconds of an ISO time with an offset."""
    return int(dt.datetime.fromisoformat(text).timestamp()) * S


@dataclass(frozen=True)
class PriceLine:
    """USD per million tokens by bucket, from a moment on; `above`: those of an input longer than `above_tokens`."""

    version: str
    model: str
    from_ns: int
    usd: dict[str, str]
    tier: str = "default"
    above_tokens: int = 0
    above: dict[str, str] = field(default_factory=dict)
    usd_per_request: str = "0"
    listed: bool = True  # a public price
    paid: bool = True  # what is charged; where there is a contract, that


@dataclass(frozen=True)
class Rate:
    """A line of the rate card: `usd` per hour (gpu, reservation), month (overhead, commitment) or kWh (electricity)."""

    kind: str
    name: str
    usd: str
    from_ns: int
    until_ns: int | None = None
    billing: str = "committed"
    energy: str = "included"
    watts: str | None = None
    idle_watts: str | None = None
    pue: str = "1"


@dataclass(frozen=True)
class Team:
    key: str
    key_name: str
    tags: str  # canonical
    share: float


@dataclass(frozen=True)
class Route:
    name: str
    client_model: str
    baseline_model: str
    share: float
    input_tokens: int  # the median
    output_tokens: int
    reasons: bool = False  # whether it has reasoning tokens
    tier: str = "default"


GPU_MODELS = {"owned": "llama-3.3-70b", "spot": "qwen3-32b", "burst": "llama-3.3-70b"}
API = "openai"

ROUTES = (
    Route("chat", "gpt-big", "gpt-big", 0.46, 700, 260),
    Route("code", "gpt-mini", "gpt-mini", 0.24, 2600, 180),
    Route("agents", "gpt-reason", "gpt-reason", 0.14, 1500, 320, reasons=True),
    Route("nightly", "gpt-big", "gpt-big", 0.12, 1100, 90, tier="batch"),
    Route("labs", "gpt-next", "gpt-next", 0.02, 900, 200),  # no price of it is known
    Route('=1+1"<b>', "gpt-free", "gpt-free", 0.02, 300, 100),  # its price is zero
)

# Names as attackers, spreadsheets and people of other alphabets would choose them.
NAMES = ('=HYPERLINK("http://x")', "<script>alert(1)</script>", "@SUM(A1:A9)", "-2+3", "search", "Über-Büro",
         "помощь", "support", "legal", "growth", "ops 'n' \"quotes\"", "＝全角")
TEAMS = (
    *(Team(f"key_{number:02}", name, f"team={name}" if number == 4 else f"app=app{number % 4},team={name}",
           1 / (number + 2)) for number, name in enumerate(NAMES)),
    Team("key_12", "no tags", "", 0.05), Team("key_13", "another key of search", "team=search", 0.04))


@dataclass(frozen=True)
class Outage:
    """A backend that answers nothing from `from_ns`, starts again at `starts_ns` and is ready at `to_ns`."""

    backend: str
    from_ns: int
    starts_ns: int
    to_ns: int


@dataclass(frozen=True)
class Scene:
    """[from_ns, to_ns) is what is reported; traffic begins an hour before it and ends an hour after."""

    from_ns: int
    to_ns: int
    requests: int
    seed: int = 6

    @property
    def start_ns(self) -> int:
        return self.from_ns - HOUR

    @property
    def end_ns(self) -> int:
        return self.to_ns + HOUR

    def part(self, share: float, odd_ns: int = 0) -> int:
        """A moment inside, on the minute but for `odd_ns`."""
        return self.from_ns + int((self.to_ns - self.from_ns) * share) // MINUTE * MINUTE + odd_ns

    @property
    def price_change_ns(self) -> int:
        return self.part(0.47, 17 * S + 123_456_789)

    @property
    def outages(self) -> tuple[Outage, ...]:
        return (Outage("owned", self.part(0.23), self.part(0.236), self.part(0.238) + 7 * S),
                Outage("spot", self.part(0.66), self.part(0.68, 31 * S), self.part(0.682)))

    def prices(self) -> tuple[PriceLine, ...]:
        """Ascending by time for each model and tier."""
        reason = {"cache_read": "0.3", "reasoning": "12", "input_image": "3.5"}
        change, hour = self.price_change_ns, self.part(0.7) // HOUR * HOUR
        return (
            PriceLine("big-1", "gpt-big", 0, {"input_text": "2.50", "cache_read": "1.25", "output_text": "10",
                                              "input_audio": "40", "output_audio": "80"},
                      above_tokens=20_000, above={"input_text": "5", "cache_read": "2.5", "output_text": "15"}),
            PriceLine("big-2", "gpt-big", change, {"input_text": "2.125", "cache_read": "0.53125",
                                                   "output_text": "8.3337", "input_audio": "40", "output_audio": "80"}),
            PriceLine("big-batch", "gpt-big", 0, {"input_text": "1.25", "cache_read": "0.625", "output_text": "5"},
                      tier="batch"),
            PriceLine("mini-1", "gpt-mini", 0, {"input_text": "0.15", "cache_read": "0.075", "output_text": "0.6",
                                                "cache_write_5m": "0.1875"}),
            PriceLine("mini-2", "gpt-mini", hour, {"input_text": "0.1333333", "cache_read": "0.0333", "output_text":
                                                   "0.7000001", "cache_write_5m": "0.2"}, usd_per_request="0.00001"),
            PriceLine("reason-list-1", "gpt-reason", 0, {**reason, "input_text": "3", "output_text": "15"}, paid=False),
            PriceLine("reason-list-2", "gpt-reason", self.part(0.81, 59 * S),  # cheaper than the contract
                      {**reason, "input_text": "2.2", "output_text": "11.11"}, paid=False),
            PriceLine("reason-contract", "gpt-reason", 0, {"input_text": "2.55", "cache_read": "0.255", "output_text":
                                                           "12.75", "reasoning": "11.9", "input_image": "3.5"},
                      listed=False),
            PriceLine("free-1", "gpt-free", 0, {"input_text": "0", "output_text": "0"}),
        )

    def rates(self) -> tuple[Rate, ...]:
        """In the order in which they are recorded."""
        early = self.start_ns - 40 * 24 * HOUR + 11 * S
        gone, back = self.outages[1].from_ns, self.outages[1].starts_ns  # a spot GPU that is taken away costs nothing
        metered = {"energy": "metered", "idle_watts": "310.5", "watts": "2790"}
        spot = {"billing": "spot"}
        return (
            Rate("gpu", "owned", "4.10", early, **metered),
            Rate("gpu", "owned", "3.77", self.part(0.39, 30 * S), **metered),
            Rate("gpu", "owned", "4.9", self.part(0.57, 19 * S)),  # for a while the rent includes the electricity
            Rate("gpu", "owned", "3.81", self.part(0.59, 44 * S + 1), **metered),
            Rate("gpu", "spot", "2.41", early, until_ns=gone, **spot),
            Rate("gpu", "spot", "1.9733", self.part(0.11), until_ns=gone, **spot),
            Rate("gpu", "spot", "3.0001", self.part(0.55, 41 * S), until_ns=gone, **spot),
            Rate("gpu", "spot", "2.2", back, **spot),
            Rate("gpu", "spot", "2.35", self.part(0.9), **spot),
            Rate("gpu", "burst", "7.77", early, billing="elastic"),
            Rate("gpu", "burst", "8.01", self.part(0.5, 3 * S), billing="elastic"),
            Rate("electricity", "electricity", "0.1234", early, pue="1.3"),
            Rate("electricity", "electricity", "0.1467", self.part(0.52, 45 * S), pue="1.25"),
            Rate("overhead", "engineering", "600", early),
            Rate("overhead", "=cmd|' /C calc'!A0", "77.77", self.part(0.31)),
            Rate("reservation", f"{API}/gpt-free", "0.0377", early),
            Rate("reservation", f"{API}/gpt-free", "0.041", self.part(0.44, 13 * S)),
            Rate("commitment", f"{API}/gpt-reason", str(Decimal(self.requests) / 800), early),
        )


def month(requests: int = 2_000_000, seed: int = 6) -> Scene:
    """October 2026 in Berlin: 31 days and an hour."""
    return Scene(at_ns("2026-10-01T00:00:00+02:00"), at_ns("2026-11-01T00:00:00+01:00"), requests, seed)


def short(requests: int = 5_000, seed: int = 6) -> Scene:
    """Three days of it: Saturday, the Sunday on which clocks are set back, Monday."""
    return Scene(at_ns("2026-10-24T00:00:00+02:00"), at_ns("2026-10-27T00:00:00+01:00"), requests, seed)


def zone() -> ZoneInfo:
    return ZoneInfo(BERLIN)
