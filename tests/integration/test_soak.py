"""A moment of the soak: real processes, random faults, no exception, and books that balance."""

import json
import subprocess
import sys


def test_twenty_seconds_of_faults_leave_no_exception_and_true_books():
    done = subprocess.run([sys.executable, "-m", "tests.bench.soak", "--minutes", "0.2", "--load", "0.3"],
                          capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["exceptions"] == 0 and "'200'" in done.stderr
