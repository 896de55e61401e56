"""Every write, sync, truncation and opening made to fail in turn, and the power cut again and again.

    python -m tests.disk [--cuts 60] [--seed 1] [FAULT ...]       such as write:ENOSPC:stuck; default: all

Prints one JSON object on its last line: `faults` met, acknowledged rows `lost`, and how often the ledger recovered by
itself with nothing wrong (`recovered`). Exit 1 when anything was lost or did not recover.
"""

from __future__ import annotations

import argparse
import errno
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.disk.nth import FAULTS, sweep
from tests.disk.power import cut_power


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", default=FAULTS)
    parser.add_argument("--cuts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    total = {"faults": 0, "lost": 0, "recovered": 0}
    for fault in options.faults:
        with tempfile.TemporaryDirectory() as folder:
            [found] = sweep(Path(folder), [fault])
        print(f"{fault:20} {found['faults']:5} faults, {found['recovered']:5} recovered, {found['lost']} lost",
              file=sys.stderr)
        for what in found["wrong"]:
            print(f"    {what}", file=sys.stderr)
        for name in total:
            total[name] += found[name]
    rng = random.Random(options.seed)
    acknowledged = 0
    for number in range(options.cuts):
        with tempfile.TemporaryDirectory() as folder:
            cut = cut_power(Path(folder), rng, early=rng.choice((0, 10, 50, 90)),
                            error=rng.choice((0, errno.EIO, errno.ENOSPC)))
        acknowledged += len(cut.acknowledged)
        total["faults"] += 1
        total["lost"] += len(cut.lost)
        total["recovered"] += not cut.lost and not cut.wrong
        for what in cut.wrong:
            print(f"    power cut {number}: {what}", file=sys.stderr)
    print(f"{'power cut':20} {options.cuts:5} times, {acknowledged} rows had been acknowledged", file=sys.stderr)
    print(json.dumps(total))
    sys.exit(0 if total["lost"] == 0 and total["recovered"] == total["faults"] else 1)


if __name__ == "__main__":
    main()
