"""The journal on a disk that fails at every n-th call, and when the power goes. `make disk` is the long form."""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.ledger import marks
from tests.disk import Disk
from tests.disk.nth import sweep
from tests.disk.power import cut_power


@pytest.mark.parametrize(("fault", "step", "at_least"), [
    ("sync:EIO:stuck", 1, 15), ("sync:EIO:once", 1, 15), ("write:ENOSPC:stuck", 9, 15), ("write:EIO:once", 9, 15),
    ("truncate:EIO:stuck", 1, 2), ("open:EROFS:stuck", 1, 5)])
def test_nothing_acknowledged_is_lost_and_it_recovers_by_itself(tmp_path, fault, step, at_least):
    """The file itself, the file after a power cut at that moment, and the closed file hold all that was acknowledged
    and all that was kept; whoever was refused was told which file, what happened and what to do."""
    [found] = sweep(tmp_path, [fault], step)
    assert found["wrong"] == []
    assert found["faults"] == found["recovered"] >= at_least, "every n, until a run meets no failure"
    assert found["told"] >= found["faults"] // 2, "that it failed is not kept from those who wait"


def test_a_journal_that_only_repeated_a_failed_sync_would_be_caught(tmp_path):
    """The system counts the pages of a sync that failed as written: the next one succeeds without them."""
    [found] = sweep(tmp_path, ["sync:EIO:stuck"], careless=True)
    assert found["lost"] > 0 and any("after a power cut" in what for what in found["wrong"])


@pytest.mark.parametrize(("early", "error"), [(0, 0), (50, 0), (10, errno.EIO), (90, errno.ENOSPC)])
def test_what_was_acknowledged_is_there_when_the_power_is_back(tmp_path, early, error):
    for number in range(2):
        cut = cut_power(tmp_path / str(number), random.Random(10 * early + number), early=early, error=error)
        assert cut.acknowledged and not cut.lost and cut.wrong == []


def test_with_normal_sync_a_power_cut_may_lose_rows_and_no_more(tmp_path):
    """What is found is whole: every sum is that of the rows there are."""
    cuts = [cut_power(tmp_path / str(number), random.Random(number), early=50, sync="normal") for number in range(3)]
    assert all(cut.acknowledged and cut.wrong == [] for cut in cuts)
    assert any(cut.lost for cut in cuts), "else it waits for the disk all the same"


MARKS = """
import errno, sys
from pathlib import Path
from proxy.core.entries import Intent
from proxy.ledger.marks import Marks
from tests.disk import WRITE, Disk

def intent(name):
    return Intent(name, 1, 0, "chat", "k", "", "b", "gpu", "m", "/v1", 10, 5, "")

marks, disk = Marks(Path(sys.argv[1])), Disk.of_this_process()
marks.add(intent("before"))
disk.fail(WRITE, int(sys.argv[2]))
for _ in range(2):
    try:
        marks.add(intent("never sent"))
    except OSError:
        print("refused")
disk.heal()
marks.add(intent("after"))
"""


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_half_a_mark_does_not_spoil_the_next(tmp_path, error):
    ledger = tmp_path / "on-it" / "ledger.db"
    ledger.parent.mkdir()
    disk = Disk(tmp_path, ledger)
    done = subprocess.run([sys.executable, "-c", MARKS, str(ledger), str(error)], env={**os.environ, **disk.env},
                          capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "refused\n" * 2, done.stderr
    [left] = marks.left_behind(ledger)
    assert [one.request_id for one in left.intents] == ["before", "after"]
    left.forget()
