"""What a token costs: the price of a replica's hour over what it serves in it.

    USD per hour at utilisation u = rent / (1 - preemptions/h * hours lost each) + energy(u) + overheads
    USD per million tokens        = USD per hour / (u * tokens per hour) * 1e6

Rent and overheads are paid whether the replica works or not, which is why u decides. Money is exact (Fraction of USD);
throughput is an estimate, and taken for the fraction that its float is.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from proxy.core.money import NANO_PER_USD
from proxy.core.pricing import Price
from proxy.core.usage import Usage
from proxy.planner.names import PlanRefused
from proxy.planner.speed import Speed, Traffic

HOURS_PER_MONTH = Fraction(730)
KINDS = ("reserved", "on-demand", "spot")

@dataclass(frozen=True, slots=True)
class Energy:
    """Electricity of owned cards: `watts` of all of them at full load, the share that they draw idle."""

    watts: Fraction
    usd_per_kwh: Fraction
    pue: Fraction = Fraction(13, 10)
    idle: Fraction = Fraction(15, 100)

    def usd_per_hour(self, utilization: Fraction) -> Fraction:
        return self.watts / 1000 * (self.idle + (1 - self.idle) * utilization) * self.pue * self.usd_per_kwh


@dataclass(frozen=True, slots=True)
class Overheads:
    """People: hours once, spread over `months`, and hours each month, at `usd_per_hour`."""

    setup_hours: Fraction = Fraction(0)
    monthly_hours: Fraction = Fraction(0)
    usd_per_hour: Fraction = Fraction(100)
    months: Fraction = Fraction(12)

    @property
    def usd_per_month(self) -> Fraction:
        return self.usd_per_hour * (self.setup_hours / self.months + self.monthly_hours)


@dataclass(frozen=True, slots=True)
class Rent:
    """What a replica's hour costs. `usd_per_hour` is for all of its cards."""

    usd_per_hour: Fraction
    kind: str = "reserved"
    preemptions_per_hour: Fraction = Fraction(0)
    restart_hours: Fraction = Fraction(1, 12)
    energy: Energy | None = None
    overheads: Overheads = Overheads()
    hours_per_month: Fraction = HOURS_PER_MONTH

    @property
    def available(self) -> Fraction:
        """The share of the paid hours in which it serves."""
        return 1 - self.preemptions_per_hour * self.restart_hours

    @property
    def fixed(self) -> Fraction:
        """USD per hour that is paid however much is served, per hour in which it can serve."""
        return self.usd_per_hour / self.available

    def hourly(self, utilization: Fraction, overheads: bool = True) -> Fraction:
        """USD per hour, all told."""
        power = self.energy.usd_per_hour(utilization) if self.energy is not None else Fraction(0)
        return self.fixed + power + (self.overheads.usd_per_month / self.hours_per_month if overheads else 0)

    def refused(self) -> str | None:
        """Why this cannot be a price; None where it can."""
        told = {"--usd-per-hour": self.usd_per_hour, "--preemptions-per-hour": self.preemptions_per_hour,
                "--restart-minutes": self.restart_hours, "--setup-hours": self.overheads.setup_hours,
                "--monthly-hours": self.overheads.monthly_hours, "--hourly-rate": self.overheads.usd_per_hour}
        if self.energy is not None:
            told |= {"--watts": self.energy.watts, "--usd-per-kwh": self.energy.usd_per_kwh}
        for name, value in told.items():
            if value < 0:
                return f"{name} {_short(value)}: nothing is paid to have it; it must be 0 or more"
        if self.kind not in KINDS:
            return f"--kind {self.kind} is not known; use {', '.join(KINDS)}"
        if self.overheads.months < 1:
            return f"--months {_short(self.overheads.months)}: set-up hours are spread over one month or more"
        if self.available <= 0:
            return (f"{_short(self.preemptions_per_hour)} preemptions an hour of "
                    f"{_short(self.restart_hours * 60)} minutes each leave no time to serve")
        if self.energy is not None and (self.energy.pue < 1 or not 0 <= self.energy.idle <= 1):
            return "--pue is 1 or more, and the idle share of the power from 0 to 1"
        return None


def _short(value: Fraction) -> str:
    return f"{float(value):g}"


def checked(rent: Rent) -> Rent:
    """Itself, or PlanRefused."""
    if (why := rent.refused()) is not None:
        raise PlanRefused(why)
    return rent


def share(text_percent: float, name: str = "--utilization") -> Fraction:
    """A utilisation in percent as a fraction; PlanRefused beyond 0 and 100."""
    if not 0.001 <= text_percent <= 100:
        raise PlanRefused(f"{name} {text_percent:g}: utilisation is above 0 and at most 100 percent")
    return Fraction(str(text_percent)) / 100


def usd_per_mtok(usd_per_hour: Fraction, tokens_per_s: Fraction | float | int) -> Fraction:
    """USD per million tokens of what makes so many in a second."""
    return usd_per_hour * 1_000_000 / (Fraction(tokens_per_s) * 3600)


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """USD per million tokens at one utilisation. `input` and `output` split the hour by the GPU time that prompts and
    answers take (None where the throughput was given); `total` is over both together, `output_alone` as if prompts were
    free, which is how articles count."""

    utilization: Fraction
    usd_per_hour: Fraction
    total: Fraction
    output_alone: Fraction
    input: Fraction | None
    output: Fraction | None


def token_price(rent: Rent, speed: Speed, utilization: Fraction, overheads: bool = True) -> TokenPrice:
    hourly = rent.hourly(utilization, overheads)
    busy = hourly / utilization
    split = Fraction(speed.input_share) if speed.shares and speed.input_per_s else None
    return TokenPrice(
        utilization, hourly, usd_per_mtok(busy, speed.total_per_s), usd_per_mtok(busy, speed.output_per_s),
        None if split is None else usd_per_mtok(busy * split, speed.input_per_s),
        None if split is None else usd_per_mtok(busy * (1 - split), speed.output_per_s))


@dataclass(frozen=True, slots=True)
class Api:
    """A model one can buy: its list price, and the one of its batch tier where there is one."""

    name: str
    price: Price
    batch: Price | None = None


def usd_per_request(price: Price, traffic: Traffic) -> Fraction:
    """What the API charges for a mean request, its cached share at the price of cached input.

    Of a thousand requests' worth of tokens, so that fractions of tokens and nano-dollars do not matter; the tier is
    that of one request. PlanRefused where some of it has no price.
    """
    tier = price.tier(round(traffic.prompt))
    flat = Price(price.provider, price.model, (tier,), usd_per_request=price.usd_per_request * 1000)
    cached = round(1000 * traffic.prompt * traffic.cached)
    nano = flat.cost_nano(Usage(input_text=round(1000 * traffic.prompt) - cached, cache_read=cached,
                                output_text=round(1000 * traffic.output)))
    if nano is None:
        raise PlanRefused(f"{price.model} has no price for some of these tokens")
    return Fraction(nano, NANO_PER_USD * 1000)


def api_usd_per_mtok(price: Price, traffic: Traffic) -> Fraction:
    """USD per million tokens, input and output together, in this proportion."""
    return usd_per_request(price, traffic) * 1_000_000 / Fraction(traffic.prompt + traffic.output)
