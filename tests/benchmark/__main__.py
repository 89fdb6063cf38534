"""`make bench`: the speed of the workbook itself, as ratios within one run on this machine.

    make bench                      a line for each entry: what was found, the goal, whether it is met
    make bench ARGS=--json          the same as JSON, with the raw samples
    make bench ARGS="--only copies"     entries whose name contains a word; --strict: exit code 1 where a goal is missed

Nothing else should run on the machine meanwhile. It takes some six minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from instrument import added_time, around_nothing, false_positives, pooled_query, power  # noqa: E402
from loading import copies_at_once, load_by_scale, loader, one_copy, up_from_nothing, up_when_running  # noqa: E402

ENTRIES = {
    "loader / psql \\copy": loader,
    "one sandbox / createdb -T": one_copy,
    "twelve copies at once / twelve CREATE DATABASE at once": copies_at_once,
    "exponent of the load time over the scale": load_by_scale,
    "up from nothing": up_from_nothing,
    "up with all running": up_when_running,
    "compare() around an empty function / timeit": around_nothing,
    "pooled query / pgbench -S": pooled_query,
    "added by the proxy at 0.5 ms": lambda: added_time(0.5),
    "added by the proxy at 2 ms": lambda: added_time(2),
    "added by the proxy at 20 ms": lambda: added_time(20),
    "A/A: identical code called different": false_positives,
    "power: a true 1.05x found": lambda: power(1.05),
    "power: a true 1.2x called faster": lambda: power(1.2),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where a goal is missed")
    parser.add_argument("--only", default="", metavar="WORD", help="entries whose name contains WORD")
    options = parser.parse_args()
    found = []
    for name, measure in tqdm(ENTRIES.items(), unit=" entries", disable=None):
        if options.only in name:
            found.append({"name": name, **measure()})
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for entry in found:
            mark = {True: "met", False: "missed", None: "no goal"}[entry["met"]]
            print(f"{entry['name']:<56} {entry['value']:>8.3f} {entry['unit']:<8} goal {entry['goal']:<14} {mark}")
    return 1 if options.strict and any(entry["met"] is False for entry in found) else 0


if __name__ == "__main__":
    sys.exit(main())
