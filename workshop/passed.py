"""Which exercises were passed: a line in the state folder for each check that said yes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from workshop import results
from workshop.state import CHECKOUT, state_dir
from workshop.table import Table

FILE = "passed.jsonl"


def keep(lesson: str, reason: str) -> None:
    """Keep that an exercise of `lesson` was passed, with what was counted.

    It is named after a function of the cell that runs, the one that the notebook's solution defines first, and `by` is
    "solution" where the cell is that solution, else "own". Outside of a notebook there is no exercise to pass.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    cell = shell.user_ns["In"][-1] if shell is not None and shell.user_ns.get("In") else ""
    known = solutions(lesson)
    if exercise := next((name for name in _functions(cell) if name in known), None):
        by = "solution" if cell.strip() in known.values() else "own"
        at = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"lesson": lesson, "exercise": exercise, "by": by, "seen": reason, "at": at}
        results.append(record, state_dir() / FILE)


def solutions(lesson: str) -> dict[str, str]:
    """{exercise: the notebook's own solution}, in the notebook's order; empty for a lesson that is not there."""
    try:
        cells = json.loads((CHECKOUT / "notebooks" / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return {}
    sources = ["".join(cell["source"]).strip() for cell in cells if "solution" in cell["metadata"].get("tags", [])]
    return {names[0]: source for source in sources if (names := _functions(source))}


def _functions(source: str) -> list[str]:
    """The functions that a cell defines; a solution may carry a suffix, so that it leaves the reader's own as it is."""
    return [name.removesuffix("_solved") for name in re.findall(r"^def (\w+)", source, re.MULTILINE)]


def best(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The first record of each (lesson, exercise); one that was passed by an own answer comes before a solution's."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: record.get("by") != "own"):
        found.setdefault((str(record.get("lesson")), str(record.get("exercise"))), dict(record))
    return found


def table(done: Mapping[tuple[str, str], Mapping[str, Any]]) -> Table:
    """Every lesson's exercises, passed or not."""
    lessons = sorted(path.stem for path in (CHECKOUT / "notebooks").glob("[0-9]*.ipynb"))
    exercises = [(lesson, exercise) for lesson in lessons for exercise in solutions(lesson)]
    rows = [(*known, by(done[known]) if known in done else "") for known in exercises]
    return Table(("lesson", "exercise", "passed"), rows, [f"{len(done)} of {len(rows)} passed"])


def by(record: Mapping[str, Any]) -> str:
    """How it was passed, in words."""
    return "by an answer of your own" if record.get("by") == "own" else "by the notebook's solution"
