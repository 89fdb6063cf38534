"""PostgreSQL's counters: pg_stat_statements and pg_stat_database.

A utility statement (REFRESH, VACUUM) that the driver has prepared is counted at its first execution only:
pg_stat_statements clears the query id of the cached statement. `prepare_threshold=None` keeps psycopg from it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from sqlalchemy import URL

from workshop.observe.observation import DEADLINE, NotCounted, Observation
from workshop.observe.statements import (
    CONTROL,
    StatementCount,
    classified,
    cold_autocommit_engines,
    is_query,
    normalised,
    transactions,
)


@dataclass
class _Reading:
    """One look at a server's counters; a key is (role, query id)."""

    reason: str | None = None  # why no statement can be counted
    database: int | None = None  # its oid
    opened: int | None = None  # connections to it so far
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


class PostgresProbe:
    """The counters of one database on one server."""

    STATEMENT_COUNTERS = ("statements", "rows", "commits", "rollbacks", "blocks", "wal_bytes")

    def __init__(self, url: URL, database: str | None, label: str) -> None:
        watched = database or url.database
        if not watched:
            raise ValueError("expected the name of the database to watch; found none in the arguments or the URL")
        self.database = watched
        # the observer's own queries must not count: it reads from another database of the same server
        elsewhere = "template1" if watched == "postgres" else "postgres"
        self.url = url if url.database and url.database != watched else url.set(database=elsewhere)
        self.label = label
        self._last: tuple[int, int, set, int] | None = None  # see _opened
        self._lock = threading.Lock()

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
        with self._lock:  # or a thread's older numbers would follow newer ones
            row = connection.execute(
                "SELECT datid, sessions FROM pg_stat_database WHERE datname = %s", (self.database,)
            ).fetchone()
            if row is None:
                reading.reason = f"expected a database {self.database!r} to watch; found none of that name"
                return
            # After `sessions`: who logs in between the two is new here, and not new once more when counted there.
            backends = connection.execute(
                "SELECT pid, backend_start, state, state_change, query FROM pg_stat_activity"
                " WHERE datid = %s AND backend_type = 'client backend'",
                row[:1],
            ).fetchall()
            reading.database = row[0]
            reading.opened = self._opened(*row, {(pid, start) for pid, start, *_ in backends})
        reading.open_transactions = {
            (pid, start): (change, query)
            for pid, start, state, change, query in backends
            if state and state.startswith("idle in transaction")
        }

    def _opened(self, database: int, sessions: int, backends: set) -> int:
        """Connections opened to the database so far, from the logins that it counts and the backends that it has now.

        A login that finds the count locked, by another's or by a reader, is added to `sessions` ten seconds later, or
        with the end of a later transaction. So a backend that was not there at the last reading counts as well.
        """
        opened = sessions
        if self._last and self._last[0] == database and self._last[1] <= sessions:  # else made anew, or reset
            opened = max(sessions, self._last[3] + len(backends - self._last[2]))
        self._last = (database, sessions, backends, opened)
        return opened

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
        with cold_autocommit_engines(self.database) as cold:
            try:
                yield
            finally:
                self._fill(seen, before, self.read(texts=True), len(cold))

    def _fill(self, seen: Observation, before: _Reading, after: _Reading, cold_autocommit: int) -> None:
        primary = self.label == "primary"
        absent = [] if before.opened is not None and after.opened is not None else ["connections"]
        if primary and not absent:
            if after.opened < before.opened or after.database != before.database:
                reason = "pg_stat_database was reset, or the database made anew, during the block; run it again"
                seen._absent(["connections"], reason)
            else:
                seen._count(connections=after.opened - before.opened)
        statements = before.reason or after.reason or self._changes(before, after)
        if isinstance(statements, str):
            seen.statements_by_server[self.label] = NotCounted(statements)
            if primary:
                seen._absent([*self.STATEMENT_COUNTERS, *absent], statements)
            else:
                seen._note(f"statements on {self.label} not counted: {statements}")
            return
        work = [s for s in statements if s.kind == "statement"]
        seen.statements_by_server[self.label] = sum(s.calls for s in work)
        self._add_notes(seen, before, after)
        if not primary:
            return
        commits, rollbacks = transactions(statements, cold_autocommit)
        seen._count(
            statements=sum(s.calls for s in work),
            rows=sum(s.rows for s in work),
            wal_bytes=sum(s.wal_bytes for s in work),
            blocks=sum(s.blocks for s in work),
            commits=commits,
            rollbacks=rollbacks,
        )
        if after.control_reason:
            seen._absent(["commits", "rollbacks"], after.control_reason)
        seen._statements = [replace(s, kind="transaction control") if s.kind in CONTROL else s for s in statements]

    def _changes(self, before: _Reading, after: _Reading) -> list[StatementCount] | str:
        """The statements that ran between two readings, or why the counters do not tell."""
        reset = "pg_stat_statements was reset or dropped entries during the block; run it again"
        if before.resets != after.resets or not before.entries.keys() <= after.entries.keys():
            return reset
        numbers: dict[str, list[int]] = {}
        for key, now in after.entries.items():
            then = before.entries.get(key, (0, 0, 0, 0))
            # from PostgreSQL 17 on, stats_since betrays an entry that was reset and has grown past its old value since
            if now[0] < then[0] or (key in before.since and before.since[key] != after.since[key]):
                return reset
            if now[0] == then[0]:
                continue
            total = numbers.setdefault(normalised(after.texts[key]), [0, 0, 0, 0])
            for i in range(4):
                total[i] += now[i] - then[i]
        return classified(numbers)

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
                other.open_transactions.get(backend) != state and is_query(state[1])
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
