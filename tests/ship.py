"""What the project shows of its own runs: notebooks/shipped.json, and README's table and picture of gains.

`store_outputs.py` calls `keep` after each notebook, because later ones read the file, and `show` at the end.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from workshop import figures, report, results
from workshop.state import state_dir
from workshop.table import significant

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "notebooks" / "shipped.json"
# | [00 Start here](notebooks/00-start-here.ipynb) | the question | the comparison's name | its gain |
ROW = re.compile(r"^(\| \[[^]]+\]\(notebooks/([\w-]+)\.ipynb\) \| [^|]+ \| )([^|]+) \| [^|]+ \|$", re.MULTILINE)
ALT = re.compile(r"(!\[The gain of each comparison above .* from )[\d.,]+ to [\d.,]+( times)")


def keep(lesson: str, since: str) -> None:
    """Replace the shipped results of `lesson` by those measured since the time `since` (ISO 8601, UTC)."""
    others = [run for run in json.loads(SHIPPED.read_text()) if run["lesson"] != lesson]
    own = [run for run in results.read(state_dir() / results.FILE) if run["lesson"] == lesson and run["at"] >= since]
    SHIPPED.write_text(report.as_json([*others, *results.latest(own)]) + "\n")


def show() -> None:
    """Write the shipped gains into README's table and picture."""
    by_name = {(run["lesson"], run["name"]): run for run in json.loads(SHIPPED.read_text())}
    readme = (ROOT / "README.md").read_text()
    rows = [(row[2], row[3]) for row in ROW.finditer(readme)]
    if missing := [row for row in rows if row not in by_name]:
        sys.exit(f"README.md's table names comparisons that nobody has run: {missing}")
    shown = [by_name[row] for row in rows]
    text = ROW.sub(lambda row: f"{row[1]}{row[3]} | {report.gain(by_name[row[2], row[3]])} |", readme)
    least, *_, most = sorted(run["ratio"] for run in shown)
    text = ALT.sub(rf"\g<1>{significant(least)} to {significant(most)}\g<2>", text)
    (ROOT / "README.md").write_text(text)
    figures.gains(shown, "The gain of each lesson's comparison").savefig(ROOT / "notebooks" / "gains.png")
