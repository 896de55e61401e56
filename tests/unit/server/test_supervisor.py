"""The supervisor where the system is short of something."""

from __future__ import annotations

import errno
import os
import time

import pytest

from proxy.server.supervisor import BACKOFF_S_MAX, Supervisor
from proxy.signals.crew import Crew


def test_who_cannot_be_forked_is_tried_again_and_the_others_live_on(monkeypatch):
    def fails():
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "fork", fails)
    one = Supervisor(Crew(1), lambda number: 0, lambda number: None, lambda: None, 1.0)
    with pytest.raises(OSError, match="memory"):
        one._start_due()  # at the start there is nobody else
    one._told = True
    one._start_due()
    place = one._places[1]
    assert not place.pid and place.start_at > time.monotonic() + BACKOFF_S_MAX / 2
