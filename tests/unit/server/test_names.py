"""Of the names that a key makes up, so many a day are told apart; no other key has fewer for it."""

import logging
from collections import Counter

import pytest

from proxy.core.money import NS_PER_HOUR
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.keys import Principal
from proxy.server.names import NS_PER_DAY, UNPRICED_MODELS_MAX, Names

NOON = 20_000 * NS_PER_DAY + 12 * NS_PER_HOUR
SEARCH = Principal("key_1", "search", "application", "team=search")
CHAT = Principal("key_2", "chat", "application", "")


@pytest.fixture
def counted():
    return Counter()


@pytest.fixture
def names(counted):
    return Names(3, lambda what: counted.update([what]))


def booked(names, principal, tags, at_ns=NOON, budgeted=()):
    return names.tags(principal, tags, budgeted, at_ns)


def test_so_many_sets_of_tags_are_booked_as_they_came_and_the_rest_as_other(names, counted, caplog):
    caplog.set_level(logging.WARNING)
    first = [f"team=search,trace={number}" for number in range(3)]
    assert [booked(names, SEARCH, tags) for tags in first] == first
    for number in range(3, 9):
        assert booked(names, SEARCH, f"app=a,team=search,trace={number}") == "(other),team=search", "its own tag stays"
    assert [booked(names, SEARCH, tags) for tags in first] == first, "what was there first is told apart all day"
    assert booked(names, SEARCH, SEARCH.tags) == SEARCH.tags
    assert counted == {"tags": 6}
    (told,) = caplog.messages
    assert told.startswith("key_1 brought 3 different sets of tags today")


def test_another_key_and_the_next_day_have_as_many(names):
    for number in range(9):
        booked(names, SEARCH, f"team=search,trace={number}")
    assert booked(names, CHAT, "trace=9") == "trace=9"
    assert booked(names, SEARCH, "team=search,trace=9", NOON + 12 * NS_PER_HOUR) == "team=search,trace=9"
    for number in range(2):
        booked(names, SEARCH, f"team=search,trace={number}", NOON + 12 * NS_PER_HOUR)
    assert booked(names, SEARCH, "team=search,trace=3", NOON) == "(other),team=search", "of a request of the day before"


def test_tags_that_have_a_budget_are_booked_whatever_else_there_was(names, counted):
    budgeted = frozenset({"team=a", "app=b"})
    for number in range(9):
        booked(names, CHAT, f"trace={number}", budgeted=budgeted)
    assert booked(names, CHAT, "app=b,team=a", budgeted=budgeted) == "app=b,team=a"
    assert booked(names, CHAT, "app=b,team=a,trace=x", budgeted=budgeted) == "(other),app=b,team=a"
    assert counted == {"tags": 7}


def test_models_without_a_price_likewise(names, counted):
    made_up = [f"model-{number}" for number in range(UNPRICED_MODELS_MAX + 5)]
    assert [names.model("key_1", model, NOON) for model in made_up] == [*made_up[:-5], *["(other)"] * 5]
    assert names.model("key_2", made_up[-1], NOON) == made_up[-1]
    assert counted == {"model": 5}


async def test_a_ledger_that_cannot_be_read_leaves_what_is_known(names, tmp_path):
    for number in range(9):
        booked(names, SEARCH, f"team=search,trace={number}")
    with pytest.raises(LedgerUnavailable):
        await names.look(f"sqlite:///{tmp_path}/away.db", NOON)
    assert booked(names, SEARCH, "team=search,trace=2") == "team=search,trace=2"
    assert booked(names, SEARCH, "team=search,trace=3") == "(other),team=search"
