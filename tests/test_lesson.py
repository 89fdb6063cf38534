"""What a notebook gets from open_lesson."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

from workshop import open_lesson, passed, results
from workshop.servers.postgres_server import dsn
from workshop.state import WorkshopError, password, state_dir


@pytest.fixture(scope="module")
def lesson():
    lesson = open_lesson("99-test")
    yield lesson
    lesson.close()


def test_it_shows_where_it_runs_and_no_password(lesson):
    shown = repr(lesson) + lesson._repr_html_() + repr(lesson.postgres) + repr(lesson.servers)
    for part in ("1,000,000 order_items", "round trip", "started here"):
        assert part in shown
    assert "profiles" not in shown  # those are MongoDB's, which this lesson did not ask for
    assert password("postgres") not in shown
    assert 0 < lesson.round_trip_s < 1


def test_a_comparison_is_kept_with_all_that_report_needs(lesson, monkeypatch):
    monkeypatch.setattr(results, "FILE", "test-results.jsonl")  # the reader's own results stay as they are
    engine = create_engine(lesson.postgres)

    def ask(times):
        with engine.connect() as connection:
            return {connection.scalar(text("SELECT 1")) for _ in range(times)}

    result = lesson.compare(lambda: ask(20), lambda: ask(1), name="kept", budget_s=0.5)
    kept = results.read(state_dir() / results.FILE)[-1]
    (state_dir() / results.FILE).unlink()
    assert kept["lesson"] == "99-test" and kept["name"] == "kept"
    assert kept["ratio"] == result.ratio and kept["verdict"] == "faster"
    assert kept["round_trip_s"] == lesson.round_trip_s and kept["scale"] == 1.0
    assert {"python", "postgres", "sqlalchemy", "psycopg", "pymongo"} <= set(kept["versions"])
    assert len(kept["samples"]["before"]) == len(kept["samples"]["after"]) >= 6


def test_a_server_that_was_not_asked_for_gets_one_sentence(lesson):
    with pytest.raises(
        WorkshopError, match=r"not with redis: name it in open_lesson\(..., servers=\('postgres', 'redis'"
    ):
        _ = lesson.redis_url
    with pytest.raises(ValueError, match="servers are of postgres, redis, mongo, not oracle"):
        open_lesson("99-test", servers=("oracle",))


def test_opening_it_again_replaces_the_sandbox(lesson):
    """As when the first cell of a notebook is run again."""
    first = open_lesson("98-again")
    second = open_lesson("98-again")
    try:
        assert first.postgres.database != second.postgres.database
        with psycopg.connect(dsn(second.servers.postgres)) as connection:
            names = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        assert second.postgres.database in names and first.postgres.database not in names
    finally:
        second.close()


def test_what_the_server_refuses_is_left_out_also_through_sqlalchemy(lesson, capsys):
    engine = create_engine(lesson.postgres)
    with lesson.allowed("GRANT it"), engine.connect() as connection:
        connection.execute(text("TABLE nowhere"))
    with lesson.allowed("GRANT it"), psycopg.connect(lesson.dsn) as connection:
        connection.execute("TABLE nowhere")
    sentence = 'Left out here: relation "nowhere" does not exist. An administrator would run: GRANT it\n'
    assert capsys.readouterr().out == 2 * sentence
    with (
        pytest.raises(ProgrammingError, match="syntax error"),
        lesson.allowed("GRANT it"),
        engine.connect() as connection,
    ):
        connection.execute(text("TABEL nowhere"))


def test_an_exercise_is_kept_under_its_own_name(monkeypatch):
    cell = "def helper():\n    pass\n\n\ndef one_order(customer_id, order_id):\n    return helper()\n"
    shell = SimpleNamespace(user_ns={"In": [cell]})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(passed, "FILE", "test-passed.jsonl")
    (state_dir() / passed.FILE).unlink(missing_ok=True)
    passed.keep("17-more-than-one-machine", "yes")
    shell.user_ns["In"].append("def helper():\n    pass\n")  # passes no exercise
    passed.keep("17-more-than-one-machine", "yes")
    shell.user_ns["In"].append("def new_ids(engine, feed):\n    pass\n")
    passed.keep("03-bulk-writes", "yes")
    shell.user_ns["In"].append(passed.solutions("03-bulk-writes")["new_ids"])
    passed.keep("03-bulk-writes", "yes")
    kept = results.read(state_dir() / passed.FILE)
    (state_dir() / passed.FILE).unlink()
    assert [(record["exercise"], record["by"]) for record in kept] == [
        ("one_order", "own"),
        ("new_ids", "own"),
        ("new_ids", "solution"),
    ]
