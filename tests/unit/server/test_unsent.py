"""Rows of requests that nobody was asked for: so many a minute of each key."""

import logging

from proxy.server.unsent import UNSENT_ROWS_MAX, UnsentRows


def test_of_each_key_so_many_a_minute_have_a_row_and_the_log_says_how_many_have_none(caplog):
    caplog.set_level(logging.WARNING)
    now, left_out = [0.0], []
    rows = UnsentRows(lambda: now[0], lambda: left_out.append(1))
    assert sum(rows.one_more("loud") for _ in range(5_000)) == UNSENT_ROWS_MAX
    assert all(rows.one_more("quiet") for _ in range(UNSENT_ROWS_MAX))
    now[0] = 30.0
    assert sum(rows.one_more("loud") for _ in range(5_000)) == UNSENT_ROWS_MAX / 2
    now[0] = 60.0
    assert sum(rows.one_more("loud") for _ in range(5_000)) == UNSENT_ROWS_MAX / 2
    assert len(left_out) == 15_000 - 2 * UNSENT_ROWS_MAX
    assert [message.split(": ")[1] for message in caplog.messages] == [
        "1 of them have no row", "9550 of them have no row"], "once a minute, and what it has not said yet"
