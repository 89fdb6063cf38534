"""The bar: silent in a pipe, gone from a stored notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from workshop import progress
from workshop.progress import track

ROOT = Path(__file__).parents[1]


def test_items_pass_through_and_a_pipe_stays_silent(capsys):
    assert list(track(range(5), "five")) == [0, 1, 2, 3, 4]
    assert list(track(iter("abc"), "three", total=3)) == ["a", "b", "c"]
    assert list(track([], "none")) == []
    assert capsys.readouterr() == ("", "")


def test_a_log_stays_silent():
    code = "from workshop.progress import track; print(*track(range(5), 'five'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("0 1 2 3 4\n", "")


def test_the_label_is_escaped():
    (page,) = progress._bar("<b>", 1, 2).values()
    assert "&lt;b&gt;" in page and "<b>" not in page and "1 of 2" in page


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    cells = [
        "from workshop import progress\nfrom workshop.progress import track\n"
        "from workshop.measure.compare import compare\nimport time\nprogress.REFRESH_S = 0",
        "print('before')\nfor _ in track(range(10), 'ten'): time.sleep(0.01)\nprint('after')",
        "for i in track(range(10), 'ten'):\n    if i == 5: raise RuntimeError('midway')",
        "for i in track(range(10), 'ten'):\n    if i == 5: break",
        "result = compare(lambda: time.sleep(0.002), lambda: time.sleep(0.001))\nresult.plot('title')",
        "_ = result.plot()",
        "result",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    messages: dict[int, list[str]] = {}

    class Client(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            html = msg["content"].get("data", {}).get("text/html", "") if msg["content"] else ""
            messages.setdefault(cell_index, []).append(html)
            return super().process_message(msg, cell, cell_index)

    # allow_errors: one cell raises on purpose.
    Client(book, timeout=60, allow_errors=True, resources={"metadata": {"path": str(ROOT)}}).execute()
    book.messages = messages
    return book


@pytest.mark.parametrize("cell", [1, 2, 3])
def test_a_stored_notebook_holds_no_bar(executed, cell):
    shown = "".join(executed.messages[cell])
    assert "<progress" in shown and "ten: 5 of 10" in shown
    for output in executed.cells[cell].outputs:
        assert output.get("name") != "stderr"
        if output.output_type == "display_data":
            assert output.data == {}
    assert "<progress" not in nbformat.writes(nbformat.v4.new_notebook(cells=[executed.cells[cell]]))


def test_what_the_cell_printed_stays(executed):
    printed = "".join(o.text for o in executed.cells[1].outputs if o.output_type == "stream")
    assert printed == "before\nafter\n"


def test_a_figure_is_shown_once_and_only_as_the_last_expression(executed):
    def images(cell):
        return [o for o in executed.cells[cell].outputs if "image/png" in o.get("data", {})]

    (shown,) = images(4)
    assert shown.output_type == "execute_result"
    assert shown.data["text/plain"] == "<Figure size 900x325 with 1 Axes>"
    assert images(5) == []
    assert "text/html" in executed.cells[6].outputs[-1].data
