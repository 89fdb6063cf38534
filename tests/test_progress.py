"""The bar: silent in a pipe, gone from a stored notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_a_log_stays_silent():
    code = "from workshop.progress import bar\nwith bar('five', 5) as shown:\n    shown.update(5)\nprint('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    ten = "with bar('ten', 10, mininterval=0) as shown:\n    for i in range(10):\n        shown.update()\n"
    cells = [
        "from workshop.progress import bar\nfrom workshop.measure.compare import compare\nimport time",
        f"print('before')\n{ten}print('after')",
        f"{ten}        if i == 5: raise RuntimeError('midway')",
        f"{ten}        if i == 5: break",
        "result = compare(lambda: time.sleep(0.002), lambda: time.sleep(0.001))\nresult.plot('title')",
        "_ = result.plot()",
        "result",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    messages: dict[int, list[str]] = {}

    class Client(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            text = msg["content"].get("data", {}).get("text/plain", "") if msg["content"] else ""
            messages.setdefault(cell_index, []).append(text)
            return super().process_message(msg, cell, cell_index)

    # allow_errors: one cell raises on purpose.
    Client(book, timeout=60, allow_errors=True, resources={"metadata": {"path": str(ROOT)}}).execute()
    book.messages = messages
    return book


@pytest.mark.parametrize("cell", [1, 2, 3])
def test_a_stored_notebook_holds_no_bar(executed, cell):
    shown = "".join(executed.messages[cell])
    assert "ten:" in shown and "5.00/10.0" in shown
    for output in executed.cells[cell].outputs:
        assert output.get("name") != "stderr"
        if output.output_type == "display_data":
            assert output.data == {}
    assert "ten:" not in str(executed.cells[cell].outputs).replace("bar('ten'", "")


def test_what_the_cell_printed_stays(executed):
    printed = "".join(o.text for o in executed.cells[1].outputs if o.output_type == "stream")
    assert printed == "before\nafter\n"


def test_a_figure_is_shown_once_and_only_as_the_last_expression(executed):
    def images(cell):
        return [o for o in executed.cells[cell].outputs if "image/png" in o.get("data", {})]

    (shown,) = images(4)
    assert shown.output_type == "execute_result"
    assert shown.data["text/plain"] == "<Figure size 900x320 with 1 Axes>"
    assert images(5) == []
    assert "text/html" in executed.cells[6].outputs[-1].data
