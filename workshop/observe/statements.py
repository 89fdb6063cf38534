"""What PostgreSQL's statements are: work, transaction control, or the set-up of a new SQLAlchemy engine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event

from workshop.observe.windows import Windows

_LEADING_COMMENT = re.compile(r"\A(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_KINDS = (
    (re.compile(r"savepoint\b"), "savepoint"),
    (re.compile(r"(?:rollback|abort)\s+(?:(?:work|transaction)\s+)?to\b|release\b"), "other control"),
    (re.compile(r"begin\b|(?:start|prepare|set)\s+transaction\b"), "other control"),
    (re.compile(r"commit\b|end\b"), "commit"),
    (re.compile(r"rollback\b|abort\b"), "rollback"),
    (re.compile(r"deallocate\b"), "driver"),
)
CONTROL = {"savepoint", "commit", "rollback", "other control"}
# What the dialect postgresql+psycopg sends once per engine, in
# sqlalchemy/dialects/postgresql/{base,psycopg,_psycopg_common}.py;
# the last one is psycopg's TypeInfo.fetch(), with which the dialect looks for the hstore type.
_SET_UP_ONCE = "select pg_catalog.version()"
_SET_UP = re.compile(
    r"select current_schema\(\)\Z|show transaction isolation level\Z|show standard_conforming_strings\Z"
    r"|select typname as name, oid, typarray as array_oid, oid::regtype::text as regtype\b.* from pg_type\b"
)
_QUERY = re.compile(r"(?:select|with|values|table)\b|\(")


@dataclass(frozen=True)
class StatementCount:
    """One normalised statement: `kind` is statement, transaction control, driver or set-up."""

    kind: str
    text: str
    calls: int
    rows: int
    wal_bytes: int
    blocks: int


def _bare(text: str) -> str:
    return _LEADING_COMMENT.sub("", text, count=1)


def normalised(text: str) -> str:
    """A statement in one line, without the comments before it."""
    return " ".join(_bare(text).split())


def is_query(text: str) -> bool:
    """Whether a statement returns rows: one that runs inside a transaction is counted late."""
    return bool(_QUERY.match(_bare(text).lower()))


def _kind(text: str) -> str:
    return next((kind for pattern, kind in _KINDS if pattern.match(text.lower())), "statement")


def classified(numbers: Mapping[str, Sequence[int]]) -> list[StatementCount]:
    """The statements by kind, from (calls, rows, WAL bytes, blocks) for each normalised text."""
    # an engine asks for the version once, when it is new; never take more of the other queries for set-up than that
    engines = sum(n[0] for text, n in numbers.items() if text.lower() == _SET_UP_ONCE)
    found = []
    for text, (calls, *others) in numbers.items():
        set_up = min(calls, engines) if text.lower() == _SET_UP_ONCE or _SET_UP.match(text.lower()) else 0
        for kind, share in (("set-up", set_up), (_kind(text), calls - set_up)):
            if share:
                found.append(StatementCount(kind, text, share, *(value * share // calls for value in others)))
    return found


# AUTOCOMMIT engines of this process that connect for the first time: their set-up ends by COMMIT, that of others by
# ROLLBACK, and the server's counters do not tell the two apart. By id, with the dialect, so that no id is used twice.
_cold_engines: Windows[tuple[str, dict[int, Any]]] = Windows()


@event.listens_for(Engine, "do_connect")
def _connecting(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
    if not _cold_engines.open or getattr(dialect, "_on_connect_isolation_level", None) != "AUTOCOMMIT":
        return
    with _cold_engines.lock:
        for database, dialects in _cold_engines.open:
            # the set-up finds out the version
            if dialect.server_version_info is None and options.get("dbname") in (None, database):
                dialects[id(dialect)] = dialect


@contextmanager
def cold_autocommit_engines(database: str) -> Iterator[dict[int, Any]]:
    """The dialects of this process's AUTOCOMMIT engines that get to know `database` during the block."""
    with _cold_engines.window((database, {})) as (_, dialects):
        yield dialects


def transactions(statements: Sequence[StatementCount], cold_autocommit: int) -> tuple[int, int]:
    """COMMITs and ROLLBACKs, less those with which new SQLAlchemy engines ended their set-up.

    A new engine ends it by ROLLBACK, after one savepoint. A new engine in AUTOCOMMIT ends it by COMMIT, without a
    savepoint; `cold_autocommit` are those of this process, and one in another process is known only where the block
    has fewer savepoints than new engines.
    """
    calls: Counter[str] = Counter()
    for statement in statements:
        calls[statement.kind] += statement.calls
    engines = sum(s.calls for s in statements if s.kind == "set-up" and s.text.lower() == _SET_UP_ONCE)
    by_rollback = min(max(0, engines - cold_autocommit), calls["savepoint"], calls["rollback"])
    by_commit = min(engines - by_rollback, calls["commit"])
    return calls["commit"] - by_commit, calls["rollback"] - by_rollback
