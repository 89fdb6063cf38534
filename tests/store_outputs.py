"""Run notebooks for real and store what they show: `make outputs`, or this file with names of notebooks.

What only the run itself would tell (times of cells, states of widgets, the kernel's version) is left out, so that a
difference in the stored file is a difference in what readers see. One number is kept, the seconds that the core took:
the minutes that a lesson states count them.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import ship
import slide_marks
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def store(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", record_timing=True, resources={"metadata": {"path": path.parent}}
    )
    client.execute()
    core_s, in_core = 0.0, True
    for cell in notebook.cells:
        in_core = in_core and not cell.source.startswith("## Going further")
        timing = cell.metadata.pop("execution", None)
        cell.metadata.pop("lines_to_next_cell", None)  # an editor's own
        if timing and in_core:
            core_s += _seconds(timing["shell.execute_reply"]) - _seconds(timing["iopub.execute_input"])
    slide_marks.mark(notebook.cells)
    notebook.metadata = {
        "kernelspec": KERNEL,
        "language_info": {"name": "python"},
        "workshop": {"core_run_s": round(core_s)},
    }
    nbformat.write(notebook, path)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


if __name__ == "__main__":
    named = [NOTEBOOKS / Path(name).name for name in sys.argv[1:]]
    paths = named or sorted(NOTEBOOKS.glob("*.ipynb"))
    start = datetime.now(UTC).isoformat(timespec="seconds")
    for path in paths:
        print(path.name, flush=True)
        store(path)
        ship.keep(path.stem, start)
    ship.show()
