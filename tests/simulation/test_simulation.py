"""The simulation in short; and that it can fail."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def simulation(*arguments, **environment):
    """(exit status, lines of output, standard error)."""
    done = subprocess.run([sys.executable, "-m", "tests.simulation", *map(str, arguments)], capture_output=True,
                          text=True, env={**os.environ, **environment}, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_twenty_bad_days_break_no_rule():
    status, lines, errors = simulation("--seeds", 20, "--requests", 250)
    assert (status, json.loads(lines[-1])["violations"]) == (0, 0), errors


def test_the_same_seed_gives_the_same_events_in_any_process():
    with ThreadPoolExecutor() as both:
        traces = list(both.map(lambda hashing: simulation(
            "--first", 207, "--seeds", 2, "--requests", 300, "--trace", PYTHONHASHSEED=hashing)[1], ("1", "2")))
    assert len(set(traces[0])) > 2
    assert sorted(traces[0]) == sorted(traces[1])


def test_a_gateway_that_is_broken_on_purpose_is_noticed_each_way():
    status, lines, errors = simulation("--mutations")
    found = json.loads(lines[-1])
    assert (status, found["noticed"]) == (0, found["mutations"]), errors
