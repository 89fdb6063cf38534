"""PostgreSQL's counters: pg_stat_statements and pg_stat_database."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import psycopg
from sqlalchemy import URL, event
from sqlalchemy.pool import Pool

from workshop.observe.observation import DEADLINE, NotCounted, Observation, ObserveError, StatementCount

_LEADING_COMMENT = re.compile(r"\A(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_KINDS = (
    (
        re.compile(r"rollback\s+to\b|rollback\s+(?:work|transaction)\s+to\b|savepoint\b|release\b"),
        "savepoint",
    ),
    (re.compile(r"begin\b|start\s+transaction\b"), "begin"),
    (re.compile(r"commit\b|end\b"), "commit"),
    (re.compile(r"rollback\b|abort\b"), "rollback"),
    (re.compile(r"prepare\s+transaction\b|set\s+transaction\b"), "other control"),
    (re.compile(r"deallocate\b"), "driver"),
)
# What the dialect postgresql+psycopg sends once per engine, in
# sqlalchemy/dialects/postgresql/{base,psycopg,_psycopg_common}.py;
# the last one is psycopg's TypeInfo.fetch(), with which the dialect looks for the hstore type.
_SET_UP_ONCE = "select pg_catalog.version()"
_SET_UP = re.compile(
    r"select current_schema\(\)\Z|show transaction isolation level\Z|show standard_conforming_strings\Z"
    r"|select typname as name, oid, typarray as array_oid, oid::regtype::text as regtype\b.* from pg_type\b"
)


def _bare(text: str) -> str:
    return _LEADING_COMMENT.sub("", text, count=1)


def _kind(text: str) -> str:
    start = _bare(text).lower()
    return next((kind for pattern, kind in _KINDS if pattern.match(start)), "statement")


@dataclass
class _Reading:
    """One look at a server's counters; a key is (role, query id)."""

    sessions: int
    open_transactions: dict[tuple, tuple[Any, str]]  # (pid, backend_start): state_change, last statement
    entries: dict[tuple, tuple[int, int, int, int]] = field(default_factory=dict)  # calls, rows, WAL, blocks
    texts: dict[tuple, str] = field(default_factory=dict)
    since: dict[tuple, Any] = field(default_factory=dict)
    resets: Any = None
    evictions: int = 0
    reason: str | None = None  # why no statement can be counted
    control_reason: str | None = None  # why COMMIT and ROLLBACK cannot
    note: str | None = None


class PostgresProbe:
    """The counters of one database on one server."""

    NAMES = (
        "statements",
        "rows",
        "transactions",
        "commits",
        "rollbacks",
        "connections",
        "blocks",
        "wal_bytes",
    )

    def __init__(self, url: URL, database: str | None, label: str) -> None:
        watched = database or url.database
        if not watched:
            raise ValueError("expected the name of the database to watch; found none in the arguments or the URL")
        self.database = watched
        # the observer's own queries must not count: it reads from another database of the same server
        elsewhere = "template1" if watched == "postgres" else "postgres"
        self.url = url if url.database and url.database != watched else url.set(database=elsewhere)
        self.label = label

    def read(self, *, texts: bool) -> _Reading:
        try:
            _, options = self.url.get_dialect()().create_connect_args(self.url)
            options.update(connect_timeout=DEADLINE, tcp_user_timeout=DEADLINE * 1000, autocommit=True)
            with psycopg.connect(**options) as connection:
                connection.execute(f"SET statement_timeout = {DEADLINE * 1000}")
                return self._read(connection, texts)
        except psycopg.Error as error:
            sentence = " ".join(str(error).split())
            where = self.url.set(password=None, username=None).render_as_string()
            raise ObserveError(f"expected to read PostgreSQL's counters from {where}; found: {sentence}") from error

    def _read(self, connection: psycopg.Connection, texts: bool) -> _Reading:
        row = connection.execute(
            "SELECT d.oid, s.sessions FROM pg_database AS d"
            " LEFT JOIN pg_stat_database AS s ON s.datid = d.oid WHERE d.datname = %s",
            (self.database,),
        ).fetchone()
        if row is None:
            raise ObserveError(f"expected a database {self.database!r} to watch; found none of that name")
        oid, sessions = row
        idle = connection.execute(
            "SELECT pid, backend_start, state_change, query FROM pg_stat_activity"
            " WHERE datid = %s AND state LIKE 'idle in transaction%%'",
            (oid,),
        )
        reading = _Reading(
            sessions=int(sessions or 0),
            open_transactions={(pid, start): (change, query) for pid, start, change, query in idle},
        )
        extension = connection.execute(
            "SELECT quote_ident(n.nspname), string_to_array(e.extversion, '.')::int[]"
            " FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace"
            " WHERE e.extname = 'pg_stat_statements'"
        ).fetchone()
        if extension is None:
            reading.reason = (
                f"the extension pg_stat_statements is missing in the database {self.url.database!r};"
                " an administrator runs CREATE EXTENSION pg_stat_statements there"
            )
            return reading
        schema, version = extension
        if version < [1, 10]:
            reading.reason = (
                f"expected pg_stat_statements 1.10 or newer, found {'.'.join(map(str, version))};"
                " run ALTER EXTENSION pg_stat_statements UPDATE"
            )
            return reading
        track, utility, allowed = connection.execute(
            "SELECT current_setting('pg_stat_statements.track', true),"
            " current_setting('pg_stat_statements.track_utility', true),"
            " pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
        ).fetchone()
        if track is None:
            reading.reason = (
                "the server runs without pg_stat_statements; an administrator adds it to shared_preload_libraries"
                " and restarts the server"
            )
            return reading
        if track == "none":
            reading.reason = "pg_stat_statements.track is none; set it to top"
            return reading
        if utility != "on":
            reading.control_reason = "pg_stat_statements.track_utility is off; set it to on"
        if not allowed:
            reading.note = (
                "only this role's own statements are counted; to count all, an administrator runs"
                f" GRANT pg_read_all_stats TO {self.url.username}"
            )
        since = "s.stats_since" if version >= [1, 11] else "NULL"
        query = f"""SELECT s.userid, s.queryid, s.calls, s.rows, s.wal_bytes,
                           s.shared_blks_hit + s.shared_blks_read, s.query, {since}
                    FROM {schema}.pg_stat_statements(%s) AS s
                    WHERE s.dbid = %s AND s.toplevel AND s.queryid IS NOT NULL"""
        for user, queryid, calls, rows, wal, blocks, text, start in connection.execute(query, (texts, oid)):
            key = (user, queryid)
            reading.entries[key] = (int(calls), int(rows), int(wal), int(blocks))
            reading.texts[key], reading.since[key] = text or "", start
        info = f"SELECT stats_reset, dealloc FROM {schema}.pg_stat_statements_info"
        reading.resets, reading.evictions = connection.execute(info).fetchone()
        return reading

    @contextmanager
    def watch(self, seen: Observation) -> Iterator[None]:
        primary = self.label == "primary"
        try:
            before = self.read(texts=False)
        except ObserveError as error:
            if primary:
                raise
            before = None  # a replica that is down: the block may well be about that
            seen.statements_by_server[self.label] = NotCounted(str(error))
        autocommitting = _new_engines.autocommitting[self.database]
        try:
            yield
        finally:
            try:
                if before:
                    autocommitting = _new_engines.autocommitting[self.database] - autocommitting
                    self._fill(seen, before, self.read(texts=True), autocommitting)
            except ObserveError as error:
                if primary:
                    raise
                seen.statements_by_server[self.label] = NotCounted(str(error))

    def _fill(self, seen: Observation, before: _Reading, after: _Reading, autocommitting: int) -> None:
        reason = before.reason or after.reason
        primary = self.label == "primary"
        if after.sessions < before.sessions:
            self._backwards("pg_stat_database.sessions")
        if primary:
            seen.count("PostgreSQL", {}, connections=after.sessions - before.sessions)
        if reason:
            seen.statements_by_server[self.label] = NotCounted(reason)
            if primary:
                seen.absent([n for n in self.NAMES if n != "connections"], reason)
            return
        statements = self._changes(before, after)
        if after.evictions != before.evictions:
            seen.note(
                "pg_stat_statements was full and dropped entries, so a count may be too low;"
                " raise pg_stat_statements.max"
            )
        self._note_open_transactions(seen, before, after)
        work = [s for s in statements if s.kind == "statement"]
        seen.statements_by_server[self.label] = sum(s.calls for s in work)
        if not primary:
            return
        control = _transaction_control(statements, autocommitting)
        seen.count(
            "PostgreSQL",
            {},
            statements=sum(s.calls for s in work),
            rows=sum(s.rows for s in work),
            wal_bytes=sum(s.wal_bytes for s in work),
            blocks=sum(s.blocks for s in work),
            commits=control["commit"],
            rollbacks=control["rollback"],
            transactions=control["commit"] + control["rollback"],
        )
        if after.control_reason:
            seen.absent(["commits", "rollbacks", "transactions"], after.control_reason)
        if after.note:
            seen.note(after.note)
        names = {"begin", "commit", "rollback", "savepoint", "other control"}
        seen.statement_counts = [replace(s, kind="transaction control") if s.kind in names else s for s in statements]

    def _backwards(self, what: str) -> NoReturn:
        raise ObserveError(
            f"expected {what} of the database {self.database!r} only to grow during the block;"
            " found that it was reset or lost entries; run the block again"
        )

    def _changes(self, before: _Reading, after: _Reading) -> list[StatementCount]:
        if before.resets != after.resets or not before.entries.keys() <= after.entries.keys():
            self._backwards("pg_stat_statements")
        numbers: dict[tuple[str, str], list[int]] = {}
        for key, now in after.entries.items():
            then = before.entries.get(key, (0, 0, 0, 0))
            # from PostgreSQL 17 on, stats_since betrays an entry that was reset and has grown past its old
            # value since
            if now[0] < then[0] or (key in before.since and before.since[key] != after.since[key]):
                self._backwards("pg_stat_statements")
            if now[0] == then[0]:
                continue
            text = " ".join(_bare(after.texts[key]).split())
            group = (_kind(text), text)
            total = numbers.setdefault(group, [0, 0, 0, 0])
            for i in range(4):
                total[i] += now[i] - then[i]
        # an engine asks for the version once, when it is new; never take more of the other queries for set-up
        # than that
        engines = sum(n[0] for (_, text), n in numbers.items() if text.lower() == _SET_UP_ONCE)
        found = []
        for (kind, text), (calls, rows, wal, blocks) in numbers.items():
            set_up = 0
            if text.lower() == _SET_UP_ONCE or _SET_UP.match(text.lower()):
                set_up = min(calls, engines)
            for part, share in (("set-up", set_up), (kind, calls - set_up)):
                if share:
                    numbers_of_part = (v * share // calls for v in (rows, wal, blocks))
                    found.append(StatementCount(part, text, share, *numbers_of_part))
        return found

    def _note_open_transactions(self, seen: Observation, before: _Reading, after: _Reading) -> None:
        def ended_with_query(text: str) -> bool:
            return bool(re.match(r"(?:select|with|values|table)\b|\(", _bare(text).lower()))

        still_open = any(
            before.open_transactions.get(backend) != state and ended_with_query(state[1])
            for backend, state in after.open_transactions.items()
        )
        went_on = any(
            after.open_transactions.get(backend) != state and ended_with_query(state[1])
            for backend, state in before.open_transactions.items()
        )
        if still_open:
            seen.note(
                "a transaction is still open, and PostgreSQL counts its last SELECT only after"
                " the next statement or the transaction's end; end it inside the block"
            )
        if went_on:
            seen.note(
                "a transaction was already open when the block began, and its last SELECT before that"
                " may be counted here; begin it inside the block"
            )
        seen.open_transaction = seen.open_transaction or still_open or went_on


def _transaction_control(statements: Sequence[StatementCount], autocommitting: int) -> Counter[str]:
    """COMMITs and ROLLBACKs, less those with which new SQLAlchemy engines ended their set-up.

    A new engine ends it by ROLLBACK; one of the `autocommitting` engines by COMMIT.
    """
    calls: Counter[str] = Counter()
    for statement in statements:
        calls[statement.kind] += statement.calls
    engines = sum(s.calls for s in statements if s.kind == "set-up" and s.text.lower() == _SET_UP_ONCE)
    by_commit = min(engines, autocommitting, calls["commit"])
    calls["commit"] -= by_commit
    calls["rollback"] -= min(engines - by_commit, calls["rollback"])
    return calls


class _NewEngines:
    """Counts this process's new engines in AUTOCOMMIT, whose set-up cannot be told apart on the server."""

    def __init__(self) -> None:
        self.autocommitting: Counter[str] = Counter()  # database -> engines
        event.listen(Pool, "first_connect", self._first_connect)

    def _first_connect(self, connection: Any, record: Any) -> None:
        if isinstance(connection, psycopg.Connection) and connection.autocommit:
            self.autocommitting[connection.info.dbname] += 1


_new_engines = _NewEngines()
