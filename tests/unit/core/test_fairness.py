"""The two ratios that say how fair the baseline is: right on average, and their intervals hold what they promise."""

import math
import random

import pytest

from proxy.core.fairness import Answers, Fairness, Ratio, effect, length, recounted, tokens


def answers(values):
    return Answers(len(values), sum(values), sum(value * value for value in values))


def drawn(chance, mean, count):
    return answers([max(1, round(chance.lognormvariate(math.log(mean), 0.9))) for _ in range(count)])


def test_the_interval_of_lengths_holds_the_truth_in_nineteen_of_twenty():
    chance, held = random.Random(7), 0
    for _ in range(1000):
        found = length(drawn(chance, 260, 300), drawn(chance, 200, 6000))
        held += found.low <= 1.3 <= found.high
    assert 930 <= held <= 970  # 950, and three standard deviations


def hours(chance, per_token, count):
    found = []
    for _ in range(count):
        style = chance.gauss(1, 0.05)  # what one hour's prompts have in common
        sizes = [chance.randrange(200, 20_000) for _ in range(chance.randrange(1, 40))]
        found.append((sum(sizes), sum(round(size / (per_token * style * chance.gauss(1, 0.1))) for size in sizes)))
    return found


def test_the_interval_of_tokens_holds_the_truth_in_nineteen_of_twenty():
    chance, held = random.Random(7), 0
    for _ in range(1000):
        found = tokens(hours(chance, 4.0, 60), hours(chance, 4.4, 200))
        held += found.low <= 1.1 <= found.high
    assert 915 <= held <= 975  # with sixty hours a little under what is promised


def test_prompts_that_were_counted_twice_need_no_bytes():
    assert recounted([(100, 110)] * 4) is None
    found = recounted([(100, 110), (300, 320), (0, 0), (50, 60), (200, 210), (70, 75)])
    assert found.value == pytest.approx(775 / 720) and found.low < found.value < found.high
    assert (found.of, found.method) == (5, "counted again")


def test_too_few_say_nothing():
    few, many = answers([100] * 29), answers([100] * 30)
    assert length(few, many) is None and length(many, few) is None
    assert length(answers([0] * 30), many) is None
    assert length(many, many).value == 1.0
    assert tokens([(400, 100)] * 4, [(400, 100)] * 9) is None
    assert tokens([(0, 0)] * 9, [(400, 100)] * 9) is None
    assert tokens([(400, 100)] * 5, [(500, 100)] * 9).value == pytest.approx(1.25)


def test_what_they_come_to_in_money():
    known = Fairness("chat", 10, 1_000, 4_000, Ratio(1.1, 1.05, 1.2, 9), Ratio(0.5, 0.25, 0.75, 40))
    assert known.effect == (100 - 2_000, 50 - 3_000, 200 - 1_000)
    unknown = Fairness("code", 10, 1_000, 4_000, None, None)
    assert unknown.effect == (0, 0, 0)
    assert effect([known, unknown, known]) == (-3_800, -5_900, -1_600)
