"""The article's claims as the project's economics reference recomputed them (section 1): figures by claim and name.

Written as the reference prints them, so a figure matches when it rounds to this text. Claim 25's "1.49"
to "2.66" an hour are 1.4974 and 2.6548: the reference's last digits are off, and 1.50 and 2.65 stand in their place.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

EXPECTED: dict[int, dict[str, str]] = {
    1: {"tok/s needed": "1889", "USD per 1M": "0.630", "times too low": "12.6"},
    2: {"USD per 1M": "0.1667"},
    3: {"input, its 0.05": "50", "output, its 0.05": "200", "input": "4.0", "output": "15.9"},
    4: {"tok/s": "57.1"},
    5: {"TFLOP/s": "21", "percent of peak": "6.7", "batch where compute takes over": "39"},
    6: {"USD per 1M": "0.6296"},
    7: {"USD per 1M": "0.1667"},
    8: {"USD per 1M": "2.5556", "GB of weights": "141", "GB of the card": "141"},
    9: {"USD per 1M": "0.3869"},
    10: {"USD per 1M": "0.1687"},
    11: {"gpt-4o input": "2.50", "gpt-4o output": "10", "gpt-4-turbo input": "10", "gpt-4-turbo output": "30",
         "claude-3-5-sonnet input": "3", "claude-3-5-sonnet output": "15"},
    12: {"times": "176.5"},
    13: {"gpt-4o input": "0.98", "gpt-4o output": "3.9", "gpt-4-turbo input": "3.9", "gpt-4-turbo output": "11.7",
         "claude-3-5-sonnet input": "1.2", "claude-3-5-sonnet output": "5.9"},
    14: {"100 %": "0.630", "50 %": "1.259", "20 %": "3.148", "5 %": "12.593"},
    15: {"100 %": "15.9", "50 %": "7.9", "20 %": "3.2", "5 %": "0.79"},
    16: {"times": "5"},
    17: {"percent, output price": "6.3", "tok/h, output price": "34000", "percent, input price": "25.2",
         "tok/h, input price": "136000", "percent at 1:1": "10.1", "percent at 3:1": "14.4", "percent at 9:1": "19.4"},
    18: {"percent": "9.3", "USD per 1M": "6.80"},
    19: {"percent": "18.5", "USD per 1M": "3.40", "times below 10": "2.9"},
    20: {"USD a day": "1000", "USD a month": "30000", "times too high": "30"},
    21: {"tok/s": "1157", "A100, exactly": "7.7", "A100": "8", "USD a day": "17.28", "USD a month": "518",
         "USD a day by its formula": "17"},
    22: {"its own": "884700", "USD a month": "29482"},
    23: {"30 days": "244.80", "a twelfth of a year": "248.20"},
    24: {"million tokens a month": "388.8", "at the output price": "3888", "at the input price": "972",
         "A100 needed, output": "1.29", "A100 needed, input": "5.1"},
    25: {"once, least": "4000", "once, most": "8000", "a month, least": "500", "a month, most": "1000",
         "times the GPU, least": "2", "times the GPU, most": "4", "USD per hour, least": "1.50",
         "USD per hour, most": "2.65", "USD per 1M, least": "2.8", "USD per 1M, most": "4.9",
         "break-even percent, least": "28", "break-even percent, most": "49"},
    26: {"least": "3", "most": "5"},
    27: {"least": "0.98", "most": "176"},
}
VERDICTS = {1: "wrong", 3: "wrong", 5: "wrong", 13: "wrong", 17: "wrong", 19: "wrong", 20: "wrong", 21: "wrong",
            22: "wrong", 24: "wrong", 25: "wrong", 27: "wrong"}  # the others' arithmetic is right


def matches(found: Fraction, printed: str) -> bool:
    """It rounds to what is printed, at as many places."""
    places = Decimal(printed).as_tuple().exponent
    exact = Decimal(found.numerator) / Decimal(found.denominator)
    return exact.quantize(Decimal(1).scaleb(int(places)), ROUND_HALF_UP) == Decimal(printed)
