"""PostgreSQL's counters: pg_stat_statements and pg_stat_database."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from sqlalchemy import URL, Engine, event

from workshop.observe.observation import DEADLINE, NotCounted, Observation, StatementCount

_LEADING_COMMENT = re.compile(r"\A(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_KINDS = (
    (re.compile(r"savepoint\b"), "savepoint"),
    (
        re.compile(r"(?:rollback|abort)\s+(?:(?:work|transaction)\s+)?to\b|release\b|begin\b|start\s+transaction\b"),
        "other control",
    ),
    (re.compile(r"prepare\s+transaction\b|set\s+transaction\b"), "other control"),
    (re.compile(r"commit\b|end\b"), "commit"),
    (re.compile(r"rollback\b|abort\b"), "rollback"),
    (re.compile(r"deallocate\b"), "driver"),
)
_CONTROL = {"savepoint", "commit", "rollback", "other control"}
# What the dialect postgresql+psycopg sends once per engine, in
# sqlalchemy/dialects/postgresql/{base,psycopg,_psycopg_common}.py;
# the last one is psycopg's TypeInfo.fetch(), with which the dialect looks for the hstore type.
_SET_UP_ONCE = "select pg_catalog.version()"
_SET_UP = re.compile(
    r"select current_schema\(\)\Z|show transaction isolation level\Z|show standard_conforming_strings\Z"
    r"|select typname as name, oid, typarray as array_oid, oid::regtype::text as regtype\b.* from pg_type\b"
)
_QUERY = re.compile(r"(?:select|with|values|table)\b|\(")


def _bare(text: str) -> str:
    return _LEADING_COMMENT.sub("", text, count=1)


def _kind(text: str) -> str:
    start = _bare(text).lower()
    return next((kind for pattern, kind in _KINDS if pattern.match(start)), "statement")


class _Reset(Exception):
    """Counters went back during the block; the message says which and what to do."""


@dataclass
class _Reading:
    """One look at a server's counters; a key is (role, query id)."""

    reason: str | None = None  # why no statement can be counted
    sessions: int | None = None
    open_transactions: dict[tuple, tuple[Any, str]] = field(default_factory=dict)
    """(pid, backend_start): state_change, last statement"""
    entries: dict[tuple, tuple[int, int, int, int]] = field(default_factory=dict)  # calls, rows, WAL, blocks
    texts: dict[tuple, str] = field(default_factory=dict)
    since: dict[tuple, Any] = field(default_factory=dict)
    hidden_calls: int = 0  # of other roles, whose statements this role may not read
    role: str = ""
    resets: Any = None
    evictions: int = 0
    control_reason: str | None = None  # why COMMIT and ROLLBACK cannot be counted


class _ColdEngines:
    """This process's AUTOCOMMIT engines that connect to one database for the first time during a block.

    Their set-up ends by COMMIT, any other engine's by ROLLBACK, and the server's counters do not tell the two apart.
    """

    def __init__(self, database: str) -> None:
        self.database = database
        self.dialects: dict[int, Any] = {}  # kept alive, so that an id is not used twice

    def __enter__(self) -> _ColdEngines:
        event.listen(Engine, "do_connect", self._connecting)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "do_connect", self._connecting)

    def _connecting(self, dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
        autocommit = getattr(dialect, "_on_connect_isolation_level", None) == "AUTOCOMMIT"
        # The set-up finds out the version.
        if autocommit and dialect.server_version_info is None and options.get("dbname") in (None, self.database):
            self.dialects[id(dialect)] = dialect


class PostgresProbe:
    """The counters of one database on one server."""

    STATEMENT_COUNTERS = ("statements", "rows", "transactions", "commits", "rollbacks", "blocks", "wal_bytes")

    def __init__(self, url: URL, database: str | None, label: str) -> None:
        watched = database or url.database
        if not watched:
            raise ValueError("expected the name of the database to watch; found none in the arguments or the URL")
        self.database = watched
        # the observer's own queries must not count: it reads from another database of the same server
        elsewhere = "template1" if watched == "postgres" else "postgres"
        self.url = url if url.database and url.database != watched else url.set(database=elsewhere)
        self.label = label

    def close(self) -> None:
        """Nothing to do: a connection lives as long as one reading."""

    def read(self, *, texts: bool) -> _Reading:
        """The counters now; without those that cannot be read, and the reason why."""
        reading = _Reading()
        try:
            _, options = self.url.get_dialect()().create_connect_args(self.url)
            options.update(connect_timeout=DEADLINE, tcp_user_timeout=DEADLINE * 1000, autocommit=True)
            with psycopg.connect(**options) as connection:
                connection.execute(f"SET statement_timeout = {DEADLINE * 1000}")
                self._read_database(connection, reading)
                reading.reason = reading.reason or self._read_statements(connection, reading, texts)
        except psycopg.Error as error:
            where = f"{self.url.host or 'the local socket'}:{self.url.port or 5432}"
            reading.reason = f"PostgreSQL's counters cannot be read from {where}: {' '.join(str(error).split())}"
        return reading

    def _read_database(self, connection: psycopg.Connection, reading: _Reading) -> None:
        row = connection.execute(
            "SELECT s.sessions FROM pg_database AS d LEFT JOIN pg_stat_database AS s ON s.datid = d.oid"
            " WHERE d.datname = %s",
            (self.database,),
        ).fetchone()
        if row is None:
            reading.reason = f"expected a database {self.database!r} to watch; found none of that name"
            return
        reading.sessions = int(row[0] or 0)
        idle = connection.execute(
            "SELECT pid, backend_start, state_change, query FROM pg_stat_activity"
            " WHERE datname = %s AND state LIKE 'idle in transaction%%'",
            (self.database,),
        )
        reading.open_transactions = {(pid, start): (change, query) for pid, start, change, query in idle}

    def _read_statements(self, connection: psycopg.Connection, reading: _Reading, texts: bool) -> str | None:
        """Read pg_stat_statements, or return why it cannot be read and what an administrator would run."""
        reading.role, track, utility, query_id = connection.execute(
            "SELECT quote_ident(current_user), current_setting('pg_stat_statements.track', true),"
            " current_setting('pg_stat_statements.track_utility', true), current_setting('compute_query_id')"
        ).fetchone()
        extension = connection.execute(
            "SELECT quote_ident(n.nspname), string_to_array(e.extversion, '.')::int[]"
            " FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace"
            " WHERE e.extname = 'pg_stat_statements'"
        ).fetchone()
        there = f"in the database {self.url.database!r}"
        create = f"CREATE EXTENSION pg_stat_statements {there}"
        if track is None:
            return (
                "the server runs without pg_stat_statements; an administrator adds it to shared_preload_libraries"
                f", restarts the server{'' if extension else f' and runs {create}'}"
            )
        if extension is None:
            return f"the extension pg_stat_statements is missing; an administrator runs {create}"
        schema, version = extension
        if version < [1, 10]:
            return (
                f"expected pg_stat_statements 1.10 or newer, found {'.'.join(map(str, version))};"
                f" an administrator runs ALTER EXTENSION pg_stat_statements UPDATE {there}"
            )
        if track == "none" or query_id == "off":
            name = "pg_stat_statements.track" if track == "none" else "compute_query_id"
            value = "top" if track == "none" else "auto"
            return f"{name} is switched off; an administrator runs ALTER SYSTEM SET {name} = {value} and reloads"
        if utility != "on":
            reading.control_reason = (
                "pg_stat_statements.track_utility is off;"
                " an administrator runs ALTER SYSTEM SET pg_stat_statements.track_utility = on and reloads"
            )
        since = "s.stats_since" if version >= [1, 11] else "NULL"
        query = f"""SELECT s.userid, s.queryid, s.calls, s.rows, s.wal_bytes,
                           s.shared_blks_hit + s.shared_blks_read, s.query, {since}
                    FROM {schema}.pg_stat_statements(%s) AS s JOIN pg_database AS d ON d.oid = s.dbid
                    WHERE d.datname = %s AND s.toplevel"""
        for user, queryid, calls, rows, wal, blocks, text, start in connection.execute(query, (texts, self.database)):
            if queryid is None:
                reading.hidden_calls += int(calls)
                continue
            key = (user, queryid)
            reading.entries[key] = (int(calls), int(rows), int(wal), int(blocks))
            reading.texts[key], reading.since[key] = text or "", start
        info = f"SELECT stats_reset, dealloc FROM {schema}.pg_stat_statements_info"
        reading.resets, reading.evictions = connection.execute(info).fetchone()
        return None

    @contextmanager
    def watch(self, seen: Observation) -> Iterator[None]:
        before = self.read(texts=False)
        cold = _ColdEngines(self.database)
        try:
            with cold:
                yield
        finally:
            self._fill(seen, before, self.read(texts=True), len(cold.dialects))

    def _fill(self, seen: Observation, before: _Reading, after: _Reading, cold_autocommit: int) -> None:
        primary = self.label == "primary"
        absent = [] if before.sessions is not None and after.sessions is not None else ["connections"]
        if primary and not absent:
            if after.sessions < before.sessions:
                seen._absent(["connections"], "pg_stat_database was reset during the block; run it again")
            else:
                seen._count(connections=after.sessions - before.sessions)
        reason = before.reason or after.reason
        statements: list[StatementCount] = []
        if not reason:
            try:
                statements = self._changes(before, after)
            except _Reset as reset:
                reason = str(reset)
        if reason:
            seen.statements_by_server[self.label] = NotCounted(reason)
            if primary:
                seen._absent([*self.STATEMENT_COUNTERS, *absent], reason)
            else:
                seen._note(f"statements on {self.label} not counted: {reason}")
            return
        work = [s for s in statements if s.kind == "statement"]
        seen.statements_by_server[self.label] = sum(s.calls for s in work)
        self._add_notes(seen, before, after)
        if not primary:
            return
        commits, rollbacks = _transactions(statements, cold_autocommit)
        seen._count(
            statements=sum(s.calls for s in work),
            rows=sum(s.rows for s in work),
            wal_bytes=sum(s.wal_bytes for s in work),
            blocks=sum(s.blocks for s in work),
            commits=commits,
            rollbacks=rollbacks,
            transactions=commits + rollbacks,
        )
        if after.control_reason:
            seen._absent(["commits", "rollbacks", "transactions"], after.control_reason)
        seen._statements = [replace(s, kind="transaction control") if s.kind in _CONTROL else s for s in statements]

    def _changes(self, before: _Reading, after: _Reading) -> list[StatementCount]:
        """The statements that ran between two readings; _Reset if the counters do not tell."""
        reset = _Reset("pg_stat_statements was reset or dropped entries during the block; run it again")
        if before.resets != after.resets or not before.entries.keys() <= after.entries.keys():
            raise reset
        numbers: dict[tuple[str, str], list[int]] = {}
        for key, now in after.entries.items():
            then = before.entries.get(key, (0, 0, 0, 0))
            # from PostgreSQL 17 on, stats_since betrays an entry that was reset and has grown past its old value since
            if now[0] < then[0] or (key in before.since and before.since[key] != after.since[key]):
                raise reset
            if now[0] == then[0]:
                continue
            text = " ".join(_bare(after.texts[key]).split())
            total = numbers.setdefault((_kind(text), text), [0, 0, 0, 0])
            for i in range(4):
                total[i] += now[i] - then[i]
        # an engine asks for the version once, when it is new; never take more of the other queries for set-up than that
        engines = sum(n[0] for (_, text), n in numbers.items() if text.lower() == _SET_UP_ONCE)
        found = []
        for (kind, text), (calls, rows, wal, blocks) in numbers.items():
            set_up = 0
            if text.lower() == _SET_UP_ONCE or _SET_UP.match(text.lower()):
                set_up = min(calls, engines)
            for part, share in (("set-up", set_up), (kind, calls - set_up)):
                if share:
                    share_of = (v * share // calls for v in (rows, wal, blocks))
                    found.append(StatementCount(part, text, share, *share_of))
        return found

    def _add_notes(self, seen: Observation, before: _Reading, after: _Reading) -> None:
        """What makes the statement counts of this server doubtful."""
        if after.evictions != before.evictions:
            seen._note(
                "pg_stat_statements was full and dropped entries, so a count may be too low;"
                " an administrator raises pg_stat_statements.max"
            )
        if after.hidden_calls > before.hidden_calls:
            seen._note(
                f"only the statements of the role {after.role} are counted, and other roles ran some here;"
                f" an administrator runs GRANT pg_read_all_stats TO {after.role}"
            )

        def ended_with_query(reading: _Reading, other: _Reading) -> bool:
            return any(
                other.open_transactions.get(backend) != state and _QUERY.match(_bare(state[1]).lower())
                for backend, state in reading.open_transactions.items()
            )

        still_open, went_on = ended_with_query(after, before), ended_with_query(before, after)
        if still_open:
            seen._note(
                "a transaction is still open, and PostgreSQL counts its last SELECT only after"
                " the next statement or the transaction's end; end it inside the block"
            )
        if went_on:
            seen._note(
                "a transaction was already open when the block began, and its last SELECT before that"
                " may be counted here; begin it inside the block"
            )
        seen.open_transaction = seen.open_transaction or still_open or went_on


def _transactions(statements: Sequence[StatementCount], cold_autocommit: int) -> tuple[int, int]:
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
