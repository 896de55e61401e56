"""A well-known article's claims, beside what the same inputs really give.

"The Real Cost Per Token of Self-Hosted LLM Inference", inferencepricing, 24 January 2025. Its formula is

    USD per million tokens = USD per hour / (tokens per second x 3600) x 1e6

and it counts output tokens alone. Every figure here is computed from the article's own inputs (`Inputs`), exactly;
what is wrong with a claim is said, and so is what is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from proxy.planner.cost import Overheads, Rent, usd_per_mtok


def f(text: str) -> Fraction:
    return Fraction(text)


# The article's inputs: USD per hour, output tokens per second, USD per million input and output tokens.
A100, A100_SPOT, H200, RTX4090, RTX4090_SPOT = f("0.34"), f("0.09"), f("1.84"), f("0.39"), f("0.17")
TOKENS_70B, TOKENS_70B_H200, TOKENS_8B = f("150"), f("200"), f("280")
APIS: Mapping[str, tuple[Fraction, Fraction]] = MappingProxyType({
    "gpt-4o": (f("2.5"), f("10")), "gpt-4-turbo": (f("10"), f("30")), "claude-3-5-sonnet": (f("3"), f("15"))})
PARAMETERS = f("70e9")
GPT_4O_IN, GPT_4O_OUT = APIS["gpt-4o"]
FULL_PER_HOUR = TOKENS_70B * 3600  # 540,000 tokens
DAYS, HOURS_30_DAYS, HOURS_YEAR_12TH = 30, f("720"), f("730")
A_DAY = f("100e6")  # tokens: the article's example


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim. `found` are the recomputed figures by name, exact; `formula` says how they come about."""

    number: int
    says: str
    formula: str
    found: Mapping[str, Fraction]
    verdict: str
    why: str = ""


def cost(usd_per_hour: Fraction, tokens_per_s: Fraction, utilization: Fraction = Fraction(1)) -> Fraction:
    """The article's formula, at a utilisation."""
    return usd_per_mtok(usd_per_hour / utilization, tokens_per_s)


def claims() -> list[Claim]:
    """All 27, in the order of the text."""
    return [*_table_claims(), *_utilization_claims(), *_volume_claims(), *_closing_claims()]


def _table_claims() -> list[Claim]:
    a100, spot, h200 = cost(A100, TOKENS_70B), cost(A100_SPOT, TOKENS_70B), cost(H200, TOKENS_70B_H200)
    bandwidth, weights, peak = f("2000e9"), PARAMETERS / 2, f("312e12")
    flops = TOKENS_70B * 2 * PARAMETERS
    ratios = {f"{name} {kind}": price / h200 for name, both in APIS.items()
              for kind, price in zip(("input", "output"), both, strict=True)}
    return [
        Claim(1, "A100 at 0.34/h makes tokens at about 0.05 per 1M",
              "0.34 / 0.05 x 1e6 / 3600; 0.34 / (150 x 3600) x 1e6",
              {"tok/s needed": A100 / f("0.05") * 1_000_000 / 3600, "USD per 1M": a100,
               "times too low": a100 / f("0.05")}, "wrong", "its own 150 tok/s give 12.6 times that"),
        Claim(2, "0.17 per 1M on an A100 (subtitle)", "0.09/h / 150 tok/s", {"USD per 1M": spot}, "right, but",
              "only at the spot price and 100 % busy"),
        Claim(3, "50x to 200x cheaper than GPT-4o", "2.50 and 10 / 0.05; / 0.6296",
              {"input, its 0.05": GPT_4O_IN / f("0.05"), "output, its 0.05": GPT_4O_OUT / f("0.05"),
               "input": GPT_4O_IN / a100, "output": GPT_4O_OUT / a100}, "wrong", "follows from claim 1"),
        Claim(4, "2,000 GB/s / 35 GB = about 57 tok/s", "bandwidth / weights at 4 bits", {"tok/s": bandwidth / weights},
              "right", "one request at a time, weights alone"),
        Claim(5, "at batch 8 to 16 an A100 is compute-bound at 120 to 200 tok/s",
              "150 tok/s x 2 x 70e9 FLOP / 312e12; F x 0.5 B / (2 x bandwidth)",
              {"TFLOP/s": flops / 10**12, "percent of peak": 100 * flops / peak,
               "batch where compute takes over": peak / 2 / (2 * bandwidth)}, "wrong",
              "far from compute-bound there, and far below what batching gives"),
        Claim(6, "70B 4-bit, A100 at 0.34/h, 150 tok/s: 0.63", "0.34 / (150 x 3600) x 1e6", {"USD per 1M": a100},
              "right"),
        Claim(7, "70B 4-bit, A100 spot at 0.09/h: 0.17", "0.09 / (150 x 3600) x 1e6", {"USD per 1M": spot}, "right"),
        Claim(8, "70B FP16 on one H200 at 1.84/h, 200 tok/s: 2.56", "1.84 / (200 x 3600) x 1e6; 70.6e9 x 2 B",
              {"USD per 1M": h200, "GB of weights": f("70.6") * 2, "GB of the card": f("141")}, "right, but",
              "it cannot run: the weights leave no room for a KV cache"),
        Claim(9, "8B FP16, RTX 4090 at 0.39/h, 280 tok/s: 0.39", "0.39 / (280 x 3600) x 1e6",
              {"USD per 1M": cost(RTX4090, TOKENS_8B)}, "right"),
        Claim(10, "8B FP16, RTX 4090 spot at 0.17/h: 0.17", "0.17 / (280 x 3600) x 1e6",
              {"USD per 1M": cost(RTX4090_SPOT, TOKENS_8B)}, "right"),
        Claim(11, "GPT-4o 2.50/10, GPT-4 Turbo 10/30, Claude 3.5 Sonnet 3/15", "the price package's list prices",
              {f"{name} {kind}": price for name, both in APIS.items()
               for kind, price in zip(("input", "output"), both, strict=True)}, "right",
              "where a model is still listed; `plan article` looks them up"),
        Claim(12, "176x cheaper", "30 / 0.17", {"times": f("30") / f("0.17")}, "right, but",
              "its best case against the dearest model"),
        Claim(13, "the H200 row is still 4 to 12x cheaper than commercial APIs", "prices / 2.5556", ratios, "wrong",
              "true of GPT-4 Turbo alone; dearer than GPT-4o's input"),
    ]


def _utilization_claims() -> list[Claim]:
    at = {percent: cost(A100, TOKENS_70B, Fraction(percent, 100)) for percent in (100, 50, 20, 5)}

    def percent_at(price: Fraction) -> Fraction:
        return 100 * A100 * 1_000_000 / (FULL_PER_HOUR * price)

    def mixed(inputs: int) -> Fraction:
        """GPT-4o, per million tokens of `inputs` parts input to one of output."""
        return (inputs * GPT_4O_IN + GPT_4O_OUT) / (inputs + 1)

    output, input_ = percent_at(GPT_4O_OUT), percent_at(GPT_4O_IN)
    return [
        Claim(14, "at 100, 50, 20, 5 % utilisation: 0.63, 1.26, 3.15, 12.60", "0.6296 / utilisation",
              {f"{percent} %": price for percent, price in at.items()}, "right"),
        Claim(15, "that is 16x, 8x, 3x cheaper, and dearer", "10 / the figures of 14",
              {f"{percent} %": GPT_4O_OUT / price for percent, price in at.items()}, "right, but",
              "against the output price alone"),
        Claim(16, "idle 80 % of the time: 5x the cost", "1 / 0.2", {"times": 1 / f("0.2")}, "right"),
        Claim(17, "break-even against GPT-4o at 8 to 10 % utilisation",
              "0.34 / (540,000 tok/h x price per token), the price mixed by input:output",
              {"percent, output price": output, "tok/h, output price": output * FULL_PER_HOUR / 100,
               "percent, input price": input_, "tok/h, input price": input_ * FULL_PER_HOUR / 100,
               "percent at 1:1": percent_at(mixed(1)), "percent at 3:1": percent_at(mixed(3)),
               "percent at 9:1": percent_at(mixed(9))}, "wrong", "true of about 1:1 alone; from 6 to 25 % otherwise"),
        Claim(18, "50,000 tokens an hour is the break-even", "50,000 / 540,000; 0.34 / 0.05M",
              {"percent": 100 * f("50000") / FULL_PER_HOUR, "USD per 1M": A100 / f("0.05")}, "right, but",
              "consistent with claim 17, so of about 1:1 alone"),
        Claim(19, "above 100,000 tokens an hour it is dramatically cheaper",
              "100,000 / 540,000; 0.34 / 0.1M; 10 / 3.40",
              {"percent": 100 * f("100000") / FULL_PER_HOUR, "USD per 1M": A100 / f("0.1"),
               "times below 10": GPT_4O_OUT / (A100 / f("0.1"))}, "wrong", "2.9x below 10, and dearer than 2.50"),
    ]


def _volume_claims() -> list[Claim]:
    api_day = A_DAY / 1_000_000 * GPT_4O_OUT
    needed = A_DAY / 86400
    cards = -(-needed // TOKENS_70B)
    spot_day = cards * A100_SPOT * 24
    return [
        Claim(20, "100M tokens a day of GPT-4o output: 30,000 a day, 900,000 a month", "100 x 10; x 30",
              {"USD a day": api_day, "USD a month": api_day * DAYS, "times too high": 30_000 / api_day}, "wrong",
              "the month's figure is called a day's, then multiplied by 30 again"),
        Claim(21, "the same on A100 spot: 510 a day, 15,300 a month",
              "100e6 / 86400 / 150 tok/s, rounded up, x 0.09 x 24",
              {"tok/s": needed, "A100, exactly": needed / TOKENS_70B, "A100": Fraction(cards), "USD a day": spot_day,
               "USD a month": spot_day * DAYS,
               "USD a day by its formula": A_DAY / 1_000_000 * cost(A100_SPOT, TOKENS_70B)}, "wrong",
              "the same slip"),
        Claim(22, "a difference of 884,700 a month", "900,000 - 15,300; claims 20 and 21 as they should be",
              {"its own": f("900000") - f("15300"), "USD a month": (api_day - spot_day) * DAYS}, "wrong",
              "30 times too high: it rests on both slips"),
        Claim(23, "one A100 at 0.34/h: 245 a month", "0.34 x 720 h; x 730 h",
              {"30 days": A100 * HOURS_30_DAYS, "a twelfth of a year": A100 * HOURS_YEAR_12TH}, "right"),
    ]


def _closing_claims() -> list[Claim]:
    month = TOKENS_70B * 3600 * HOURS_30_DAYS / 1_000_000  # million tokens
    once, upkeep = (f("40"), f("80")), (f("5"), f("10"))  # hours, at 100 USD
    hourly = [Rent(A100, overheads=Overheads(*hours), hours_per_month=HOURS_30_DAYS).hourly(Fraction(1))
              for hours in zip(once, upkeep, strict=True)]
    monthly = A100 * HOURS_30_DAYS
    h200, best = cost(H200, TOKENS_70B_H200), f("0.17")
    return [
        Claim(24, "one A100 replaces 5,000 and more a month of API", "150 x 3600 x 720 h; x 10, x 2.50; 5,000 / those",
              {"million tokens a month": month, "at the output price": month * GPT_4O_OUT,
               "at the input price": month * GPT_4O_IN, "A100 needed, output": 5000 / (month * GPT_4O_OUT),
               "A100 needed, input": 5000 / (month * GPT_4O_IN)}, "wrong", "not even a full one"),
        Claim(25, "set-up takes 40 to 80 hours, upkeep 5 to 10 a month: minor",
              "at 100 an hour; 0.34 + (once / 12 + monthly) / 720",
              {"once, least": 100 * once[0], "once, most": 100 * once[1], "a month, least": 100 * upkeep[0],
               "a month, most": 100 * upkeep[1],
               "times the GPU, least": 100 * upkeep[0] / monthly, "times the GPU, most": 100 * upkeep[1] / monthly,
               "USD per hour, least": hourly[0], "USD per hour, most": hourly[1],
               "USD per 1M, least": usd_per_mtok(hourly[0], TOKENS_70B),
               "USD per 1M, most": usd_per_mtok(hourly[1], TOKENS_70B),
               "break-even percent, least": 100 * hourly[0] * 1_000_000 / (FULL_PER_HOUR * GPT_4O_OUT),
               "break-even percent, most": 100 * hourly[1] * 1_000_000 / (FULL_PER_HOUR * GPT_4O_OUT)}, "wrong",
              "the hidden cost dominates a small fleet"),
        Claim(26, "batching raises throughput 3 to 5x", "120 and 200 / 40",
              {"least": f("120") / 40, "most": f("200") / 40}, "right"),
        Claim(27, "10 to 200x cheaper", "2.50 / 2.5556 to 30 / 0.17", {"least": GPT_4O_IN / h200, "most": 30 / best},
              "wrong", "by its own table"),
    ]
