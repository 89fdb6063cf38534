"""Counters: what the servers and drivers saw while a block of code ran.

    observer = Observer(postgres_url, "my_database", mongo_database, redis_client)
    with observer.watch() as seen:
        ...
    seen                # a small table
    seen.statements     # one number

Counters, unlike times, are the same on every run, so a notebook's stored output can be compared with a new
one. Where each number comes from:

PostgreSQL (15 or newer), for one database, whichever program or connection did the work:
    ``pg_stat_statements``, read before and after from a connection to another database, so the reading is not
    counted itself. A statement is counted when it completes. One that fails is not counted, and the
    ``SELECT`` that a transaction ran last is not counted before the next statement or the end of the
    transaction; the table says so when that happened.

    ``connections`` is the growth of ``pg_stat_database.sessions``.

    Not counted as ``statements``: transaction control (BEGIN, COMMIT, SAVEPOINT, ...), the driver's
    DEALLOCATE (PostgreSQL before 17 does not report it), and the five catalog queries by which a new
    SQLAlchemy engine gets to know its server, with their transaction. So the same code gives the same counts
    on a cold and on a warm engine. ``by_statement()`` lists them all. ``DECLARE``, ``FETCH`` and ``CLOSE`` of
    a server-side cursor count as a statement each. A statement that a function runs belongs to the statement
    that called the function.

    A ``SELECT`` may write WAL: the first read after a write sets hint bits, and where the cluster has
    checksums (the default from PostgreSQL 18 on) that is logged, up to a whole page at a time. VACUUM first.

Redis (7.0 or newer), for the whole server, because Redis keeps these numbers for the server only:
    ``INFO commandstats`` and ``INFO stats``. Not counted: INFO itself and what a client sends to open a
    connection (HELLO, AUTH, SELECT, CLIENT ...). Commands run by a script are counted besides the script.

MongoDB (6.0 or newer), for one database:
    ``mongo_commands`` are the commands that this process's PyMongo clients sent, a ``getMore`` for each
    further batch included, cursor and session clean-up (killCursors, endSessions) not, because PyMongo sends
    those in its own time. One ``bulk_write`` is one command, however many writes it holds, until it must be
    split. Only clients created after the first ``Observer`` of a MongoDB database are heard; a client that
    is heard takes about 10 microseconds longer per command.

    ``documents_examined`` and ``keys_examined`` are summed from the database profiler, at level 2 during the
    block, in a ``system.profile`` of the observer's own that is dropped afterwards.
"""

from __future__ import annotations

import html
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import psycopg
import pymongo
import redis as redis_driver
from pymongo import monitoring
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError
from sqlalchemy import URL

DEADLINE = 5
"""Seconds that connecting to a server, or one reading of its counters, may take."""

COUNTERS: dict[str, str] = {
    "statements": "PostgreSQL",
    "rows": "PostgreSQL",
    "transactions": "PostgreSQL",
    "commits": "PostgreSQL",
    "rollbacks": "PostgreSQL",
    "connections": "PostgreSQL",
    "blocks": "PostgreSQL",
    "wal_bytes": "PostgreSQL",
    "redis_commands": "Redis",
    "redis_hits": "Redis",
    "redis_misses": "Redis",
    "mongo_commands": "MongoDB",
    "documents_examined": "MongoDB",
    "keys_examined": "MongoDB",
}
"""Every counter, in the order of the table, and the server that it comes from."""

ON_REQUEST = {"transactions", "blocks", "wal_bytes"}
"""Shown only when asked for: the sum of two others, and two numbers which differ a little between runs and
versions."""

SINGULAR = {
    "rows": "row",
    "blocks": "block",
    "wal_bytes": "WAL byte",
    "redis_misses": "Redis miss",
    "documents_examined": "document examined",
    "keys_examined": "key examined",
}
PLURAL = {
    "wal_bytes": "WAL bytes",
    "redis_commands": "Redis commands",
    "redis_hits": "Redis hits",
    "redis_misses": "Redis misses",
    "mongo_commands": "MongoDB commands",
    "documents_examined": "documents examined",
    "keys_examined": "keys examined",
}


def quantity(name: str, count: int) -> str:
    """A counter's value in words: ``1 statement``, ``2,000 MongoDB commands``."""
    words = PLURAL.get(name, name)
    if count == 1:
        words = SINGULAR.get(name, words.removesuffix("s"))
    return f"{count:,} {words}"


class ObserveError(RuntimeError):
    """A counter could not be read, or what was read cannot be trusted."""


class NotCounted(AttributeError, KeyError):
    """A counter that this observation does not hold; the message says why."""

    def __str__(self) -> str:
        return str(self.args[0])


# --- tables -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows under headings, as aligned text and as HTML. Whole numbers stand to the right, with separators;
    None is left blank."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    empty: str = "nothing to show"

    def _cells(self) -> list[list[str]]:
        def cell(value: Any) -> str:
            if value is None:
                return ""
            return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

        return [[cell(value) for value in row] for row in self.rows]

    def _numeric(self) -> list[bool]:
        columns = ([row[i] for row in self.rows] for i in range(len(self.headings)))
        return [all(v is None or isinstance(v, int) for v in column) for column in columns]

    def __repr__(self) -> str:
        lines = [self.empty]
        if self.rows:
            cells, numeric = [list(self.headings), *self._cells()], self._numeric()
            widths = [max(len(row[i]) for row in cells) for i in range(len(self.headings))]
            lines = [
                "  ".join(
                    c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)
                ).rstrip()
                for row in cells
            ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self.empty)}</p>"]
        if self.rows:
            style = [f' style="text-align: {"right" if right else "left"}"' for right in self._numeric()]
            head = "".join(f"<th{s}>{html.escape(h)}</th>" for h, s in zip(self.headings, style, strict=True))
            body = "".join(
                # pre-wrap keeps the indentation of a plan's nodes, and wraps what is wider than the page
                "<tr>"
                + "".join(
                    f'<td{s}><span style="white-space: pre-wrap">{html.escape(c)}</span></td>'
                    for c, s in zip(row, style, strict=True)
                )
                + "</tr>"
                for row in self._cells()
            )
            parts = [f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"]
        return "".join([*parts, *(f"<p>note: {html.escape(note)}</p>" for note in self.notes)])


def shorten(text: str, width: int = 100) -> str:
    """One line of at most ``width`` characters; cursor names, new on every run, become ``c_...``."""
    text = re.sub(r'"c_[0-9a-f]+_\d+"', '"c_..."', " ".join(text.split()))
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


# --- what was seen ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatementCount:
    """One normalised statement: ``kind`` is statement, transaction control, driver or set-up."""

    kind: str
    text: str
    calls: int
    rows: int
    wal_bytes: int
    blocks: int


class Observation:
    """The counters of one ``watch()`` block, each as an attribute and by ``seen["name"]``; filled when the
    block ends.

    statements, rows (returned or written by them), commits, rollbacks, transactions (both together),
        connections (opened), blocks (of 8 kB, found in or read into shared buffers), wal_bytes (written by
        statements; commit records are not included)
    redis_commands, redis_hits, redis_misses (of key look-ups)
    mongo_commands, documents_examined, keys_examined

    A counter that was not observed raises :class:`NotCounted`, both an AttributeError and a KeyError, which
    says why. The table shows the counters that are not zero, and those asked for by ``watch("blocks")`` or
    ``seen.show("blocks", "statements")``. blocks, wal_bytes and transactions appear only when asked for.
    """

    def __init__(self, asked: Iterable[str] = ()) -> None:
        self._asked = tuple(asked)
        for name in self._asked:
            if name not in COUNTERS:
                raise ValueError(f"expected a counter among {', '.join(COUNTERS)}; found {name!r}")
        self._only = False
        self._done = False
        self._counts: dict[str, int] = {}
        self._missing: dict[str, str] = {}
        self._notes: list[str] = []
        self._statements: list[StatementCount] = []
        self._commands: list[tuple[str, str, int]] = []
        self.statements_by_server: dict[str, int] = {}
        """Statements on "primary", "replica 1", "replica 2", ... in the order of the URLs."""
        self.open_transaction = False
        """Whether the statement counts may be one off, because a transaction was open at the start or the end
        of the block."""

    def __getattr__(self, name: str) -> int:
        if name not in COUNTERS:
            raise AttributeError(f"{type(self).__name__} has no counter {name!r}; it has {', '.join(COUNTERS)}")
        return self[name]

    def __getitem__(self, name: str) -> int:
        if name in self._counts:
            return self._counts[name]
        if name not in COUNTERS:
            raise NotCounted(f"expected a counter among {', '.join(COUNTERS)}; found {name!r}")
        if not self._done:
            raise NotCounted(f"{name} is not counted yet: read it after the with block has ended")
        raise NotCounted(f"{name} was not counted: {self._missing.get(name, 'no reason is known')}")

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *self._counts])

    @property
    def counts(self) -> dict[str, int]:
        """Every counter that was observed, zeros included."""
        return {name: self._counts[name] for name in COUNTERS if name in self._counts}

    @property
    def notes(self) -> list[str]:
        """Sentences on what was not counted, and why."""
        return list(self._notes)

    def show(self, *names: str) -> Observation:
        """The same observation, its table showing exactly these counters, zeros included."""
        for name in names:
            self[name]
        view = Observation(names)
        view.__dict__.update(self.__dict__, _asked=names, _only=True)
        return view

    def by_statement(self, *, control: bool = True) -> Table:
        """PostgreSQL statements with calls and rows, most frequent first; ``control``: BEGIN too."""
        self["statements"]
        rows = [
            (s.kind, s.calls, s.rows, shorten(s.text))
            for s in sorted(self._statements, key=lambda s: (s.kind != "statement", -s.calls, shorten(s.text)))
            if control or s.kind == "statement"
        ]
        return Table(("kind", "calls", "rows", "statement"), rows, empty="no statement was counted")

    def by_command(self) -> Table:
        """Redis and MongoDB commands with their calls."""
        return Table(("server", "command", "calls"), sorted(self._commands), empty="no command was counted")

    def table(self) -> Table:
        """What is displayed."""
        if not self._done:
            return Table((), (), empty="still counting: the with block has not ended")
        if self._only:
            names = list(self._asked)
        else:
            names = [
                name for name, count in self.counts.items() if name in self._asked or (count and name not in ON_REQUEST)
            ]
        rows = [(name, self._counts[name], COUNTERS[name]) for name in names]
        notes = [
            *self._notes,
            *(f"{n} was not counted: {self._missing[n]}" for n in self._asked if n in self._missing),
        ]
        return Table(("counter", "count", "server"), rows, list(dict.fromkeys(notes)), "nothing was counted")

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def _absent(self, names: Iterable[str], reason: str, *, note: bool = True) -> None:
        for name in names:
            self._counts.pop(name, None)
            self._missing[name] = reason
        if note:
            self._note(f"{', '.join(names)} not counted: {reason}")

    def _note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)


def _of(server: str) -> list[str]:
    return [name for name, where in COUNTERS.items() if where == server]


# --- PostgreSQL ---------------------------------------------------------------------------------------------

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


class _PostgresProbe:
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
                " run CREATE EXTENSION pg_stat_statements there"
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
                "the server runs without pg_stat_statements; add it to shared_preload_libraries and restart"
            )
            return reading
        if track == "none":
            reading.reason = "pg_stat_statements.track is none; set it to top"
            return reading
        if utility != "on":
            reading.control_reason = "pg_stat_statements.track_utility is off; set it to on"
        if not allowed:
            reading.note = "only this role's statements are counted; GRANT pg_read_all_stats to it to count all"
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
        before = self.read(texts=False)
        try:
            yield
        finally:
            self._fill(seen, before, self.read(texts=True))

    def _fill(self, seen: Observation, before: _Reading, after: _Reading) -> None:
        reason = before.reason or after.reason
        primary = self.label == "primary"
        if after.sessions < before.sessions:
            self._backwards("pg_stat_database.sessions")
        if primary:
            seen._counts["connections"] = after.sessions - before.sessions
        if reason:
            if primary:
                seen._absent([n for n in self.NAMES if n != "connections"], reason)
            return
        statements = self._changes(before, after)
        if after.evictions != before.evictions:
            seen._note(
                "pg_stat_statements was full and dropped entries, so a count may be too low;"
                " raise pg_stat_statements.max"
            )
        self._note_open_transactions(seen, before, after)
        work = [s for s in statements if s.kind == "statement"]
        seen.statements_by_server[self.label] = sum(s.calls for s in work)
        if not primary:
            return
        seen._counts.update(
            statements=sum(s.calls for s in work),
            rows=sum(s.rows for s in work),
            wal_bytes=sum(s.wal_bytes for s in work),
            blocks=sum(s.blocks for s in work),
        )
        control = _transaction_control(statements)
        seen._counts.update(
            commits=control["commit"],
            rollbacks=control["rollback"],
            transactions=control["commit"] + control["rollback"],
        )
        if after.control_reason:
            seen._absent(["commits", "rollbacks", "transactions"], after.control_reason)
        if after.note:
            seen._note(after.note)
        names = {"begin", "commit", "rollback", "savepoint", "other control"}
        seen._statements = [
            StatementCount(
                "transaction control" if s.kind in names else s.kind,
                s.text,
                s.calls,
                s.rows,
                s.wal_bytes,
                s.blocks,
            )
            for s in statements
        ]

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


def _transaction_control(statements: Sequence[StatementCount]) -> Counter[str]:
    """COMMITs and ROLLBACKs, less those with which new SQLAlchemy engines ended their set-up.

    A new engine ends it by ROLLBACK, with a savepoint before that; a new engine in AUTOCOMMIT by COMMIT,
    without.
    """
    calls: Counter[str] = Counter()
    for statement in statements:
        calls[statement.kind] += statement.calls
    engines = sum(s.calls for s in statements if s.kind == "set-up" and s.text.lower() == _SET_UP_ONCE)
    plain = min(engines, calls["savepoint"] // 2, calls["rollback"])
    calls["rollback"] -= plain
    calls["commit"] -= min(engines - plain, calls["commit"])
    return calls


# --- Redis --------------------------------------------------------------------------------------------------


class _RedisProbe:
    """The counters of one Redis server."""

    NAMES = ("redis_commands", "redis_hits", "redis_misses")
    # what the observer itself sends, and what redis-py sends to open a connection
    UNCOUNTED = ("info", "hello", "auth", "select", "client")

    def __init__(self, client: redis_driver.Redis) -> None:
        pool = client.connection_pool
        wanted = {"host", "port", "path", "username", "password", "credential_provider", "protocol"}
        kwargs = {k: v for k, v in pool.connection_kwargs.items() if k in wanted or k.startswith("ssl_")}
        # a pool of its own, because the lesson's client need not have a deadline
        self.pool = redis_driver.ConnectionPool(
            connection_class=pool.connection_class,
            socket_timeout=DEADLINE,
            socket_connect_timeout=DEADLINE,
            **kwargs,
        )

    def read(self) -> Mapping[str, Any]:
        client = redis_driver.Redis(connection_pool=self.pool)
        try:
            return client.info("commandstats", "stats")
        except redis_driver.exceptions.NoPermissionError:
            return {}
        except redis_driver.RedisError as error:
            raise ObserveError(f"expected to read Redis's counters by INFO; found: {error}") from error
        finally:
            self.pool.disconnect()

    @contextmanager
    def watch(self, seen: Observation) -> Iterator[None]:
        before = self.read()
        try:
            yield
        finally:
            self._fill(seen, before, self.read())

    def _fill(self, seen: Observation, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        if not before or not after:
            seen._absent(self.NAMES, "this Redis account may not run INFO; allow it by ACL SETUSER ... +info")
            return
        calls = {}
        for key, stats in after.items():
            name = key.removeprefix("cmdstat_")
            if key == name or name.split("|")[0] in self.UNCOUNTED:
                continue
            calls[name] = int(stats["calls"]) - int(before.get(key, {"calls": 0})["calls"])
        hits = after["keyspace_hits"] - before["keyspace_hits"]
        misses = after["keyspace_misses"] - before["keyspace_misses"]
        gone = any(k.startswith("cmdstat_") and k not in after for k in before)
        if gone or min(hits, misses, *calls.values(), 0) < 0:
            raise ObserveError(
                "expected Redis's counters only to grow during the block;"
                " found that they were reset; run the block again"
            )
        seen._counts.update(redis_commands=sum(calls.values()), redis_hits=hits, redis_misses=misses)
        seen._commands += [("Redis", name.replace("|", " "), n) for name, n in calls.items() if n]


# --- MongoDB ------------------------------------------------------------------------------------------------

_PROFILE_BYTES = 32 * 1024 * 1024
# an unusual limit, by which a profile left by an interrupted notebook is known as the workbook's own
_PROFILE_DOCUMENTS = 1_000_003
_COMMENT = "workshop observer"
_UNHEARD = {"killCursors", "endSessions", "saslStart", "saslContinue", "authenticate"}
_ADMIN_COMMANDS = {"commitTransaction", "abortTransaction", "bulkWrite"}


class _Commands(monitoring.CommandListener):
    """Counts the commands sent by this process's clients, for the windows that are open."""

    def __init__(self) -> None:
        self.windows: tuple[tuple[str, Counter[str]], ...] = ()
        self.lock = threading.Lock()

    def open(self, database: str) -> tuple[str, Counter[str]]:
        window = (database, Counter())
        with self.lock:
            self.windows = (*self.windows, window)
        return window

    def close(self, window: tuple[str, Counter[str]]) -> None:
        with self.lock:
            self.windows = tuple(w for w in self.windows if w is not window)

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        name = event.command_name
        if not self.windows or name in _UNHEARD or event.command.get("comment") == _COMMENT:
            return
        with self.lock:
            for database, counter in self.windows:
                if event.database_name == database or name in _ADMIN_COMMANDS:
                    counter[name] += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Nothing to do: a command counts when it is sent."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Nothing to do: a command counts when it is sent."""


_commands = _Commands()
_registered = False
_profiling: Counter[tuple[Any, str]] = Counter()
_profiling_lock = threading.RLock()


def _listen() -> None:
    """Register the listener, once per process, for every client created from now on."""
    global _registered
    with _profiling_lock:
        if not _registered:
            monitoring.register(_commands)
            _registered = True


class _MongoProbe:
    """The counters of one MongoDB database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        _listen()

    def _run(self, command: str, value: Any, **options: Any) -> dict[str, Any]:
        return self.database.command(command, value, **options, comment=_COMMENT)

    @contextmanager
    def watch(self, seen: Observation) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                with pymongo.timeout(DEADLINE):
                    # two clients of one server must not switch its profiler off under each other
                    key = (self._run("hello", 1).get("primary"), self.database.name)
                    refused = self._start_profiler(key, stack)
                    first = 0 if refused else self._profiled_so_far()
            except PyMongoError as error:
                raise ObserveError(f"expected to switch on MongoDB's profiler; found: {error}") from error
            window = _commands.open(self.database.name)
            try:
                yield
            finally:
                _commands.close(window)
                try:
                    with pymongo.timeout(DEADLINE):
                        self._fill(seen, window[1], first, refused)
                except PyMongoError as error:
                    raise ObserveError(f"expected to read MongoDB's profile; found: {error}") from error

    def _start_profiler(self, key: tuple, stack: ExitStack) -> str | None:
        """Switch the profiler on and leave on the stack how to undo it; or return why it may not be used."""
        with _profiling_lock:
            if not _profiling[key]:
                try:
                    old = self._run("profile", -1)
                    info = self.database.list_collections(filter={"name": "system.profile"}, comment=_COMMENT)
                    options = next((c["options"] for c in info), None)
                    if options is not None and options.get("max") != _PROFILE_DOCUMENTS:
                        return (
                            f"the profiler of the database {self.database.name!r} is used by someone else;"
                            " switch it off and drop system.profile there"
                        )
                    if options is not None:
                        self._run("profile", 0)
                        self._run("drop", "system.profile")
                        old["was"] = 0
                    self._run("create", "system.profile", capped=True, size=_PROFILE_BYTES, max=_PROFILE_DOCUMENTS)
                except OperationFailure as error:
                    return f"the profiler may not be used here ({error.details.get('codeName', 'refused')})"
                stack.callback(self._stop_profiler, key, old)
                # every operation must be recorded, whatever threshold or sampling is set
                self._run("profile", 2, sampleRate=1.0, **({"filter": "unset"} if "filter" in old else {}))
            else:
                stack.callback(self._stop_profiler, key, None)
            _profiling[key] += 1
            return None

    def _stop_profiler(self, key: tuple, old: Mapping[str, Any] | None) -> None:
        with _profiling_lock, pymongo.timeout(DEADLINE):
            _profiling[key] = max(0, _profiling[key] - 1)
            if old is None:
                return
            try:
                self._run("profile", 0)
                self._run("drop", "system.profile")
                settings = {k: old[k] for k in ("slowms", "sampleRate", "filter") if k in old}
                self._run("profile", old["was"], **settings)
            except PyMongoError as error:
                raise ObserveError(
                    f"expected to switch MongoDB's profiler off in {self.database.name!r}; found: {error};"
                    " run db.command('profile', 0)"
                ) from error

    def _profiled(self, *stages: dict[str, Any]) -> list[dict[str, Any]]:
        """Run an aggregation over the profile, leaving out what the observer did itself."""
        own = [{"ns": f"{self.database.name}.system.profile"}, {"command.comment": _COMMENT}]
        pipeline = [{"$match": {"$nor": own}}, *stages]
        return list(self.database["system.profile"].aggregate(pipeline, comment=_COMMENT))

    def _profiled_so_far(self) -> int:
        found = self._profiled({"$count": "n"})
        return int(found[0]["n"]) if found else 0

    def _fill(self, seen: Observation, calls: Counter[str], first: int, refused: str | None) -> None:
        seen._counts["mongo_commands"] = sum(calls.values())
        seen._commands += [("MongoDB", name, n) for name, n in calls.items()]
        if refused:
            seen._absent(["documents_examined", "keys_examined"], refused)
            return
        entries = self._profiled_so_far()
        sums = self._profiled(
            {"$skip": first},
            {"$group": {"_id": None, "docs": {"$sum": "$docsExamined"}, "keys": {"$sum": "$keysExamined"}}},
        )
        storage = self.database["system.profile"].aggregate([{"$collStats": {"storageStats": {}}}], comment=_COMMENT)
        size = next(iter(storage))["storageStats"]["size"]
        # near its limit the capped collection drops its oldest entries, and the sums would be too low
        if size > _PROFILE_BYTES * 0.95 or entries < first:
            seen._absent(
                ["documents_examined", "keys_examined"],
                f"the block ran more operations than a profile of {_PROFILE_BYTES >> 20} MB holds; run fewer",
            )
        else:
            seen._counts["documents_examined"] = int(sums[0]["docs"]) if sums else 0
            seen._counts["keys_examined"] = int(sums[0]["keys"]) if sums else 0
        if entries > first and not calls:
            seen._absent(
                ["mongo_commands"],
                "the MongoClient was created before the observer, or in another process; create it after",
            )


# --- the observer -------------------------------------------------------------------------------------------


class Observer:
    """Reads the counters of up to three servers around a block of code.

    postgres: URL of any database of the server to watch, by a role that may read all statistics (superuser,
        or a member of pg_read_all_stats). The counters are read from that database, or from "postgres" if it
        is the watched one; it needs the extension pg_stat_statements, else only ``connections`` is counted.
    database: name of the watched database; by default the URL's.
    mongo: the watched database; create the observer before the clients whose commands shall be counted.
    redis: any client of the watched server.
    replicas: URLs of streaming replicas, for ``seen.statements_by_server``.

    A server that is None is not watched. Errors: :class:`ObserveError`, in one sentence, if a server does not
    answer within DEADLINE seconds, or if counters were reset during the block. An error of the block itself
    goes on to the caller, after the counters were read.
    """

    def __init__(
        self,
        postgres: URL | None,
        database: str | None = None,
        mongo: Database | None = None,
        redis: redis_driver.Redis | None = None,
        replicas: Sequence[URL] = (),
    ) -> None:
        self._probes: list[_PostgresProbe | _RedisProbe | _MongoProbe] = []
        self._unwatched: list[str] = []
        if mongo is not None:
            self._probes.append(_MongoProbe(mongo))
        else:
            self._unwatched += _of("MongoDB")
        if redis is not None:
            self._probes.append(_RedisProbe(redis))
        else:
            self._unwatched += _of("Redis")
        if postgres is not None:
            name = database or postgres.database
            # The probes are read in reverse order, so the primary comes last here and first in statements_by_server.
            numbered = list(enumerate(replicas, 1))
            self._probes += [_PostgresProbe(url, name, f"replica {i}") for i, url in reversed(numbered)]
            self._probes.append(_PostgresProbe(postgres, database, "primary"))
        else:
            self._unwatched += _of("PostgreSQL")

    @contextmanager
    def watch(self, *show: str) -> Iterator[Observation]:
        """Count what happens in the block; ``show`` names counters that the table shows even if zero (see
        COUNTERS)."""
        seen = Observation(show)
        for name in self._unwatched:
            seen._absent([name], f"this observer does not watch {COUNTERS[name]}", note=False)
        failure: BaseException | None = None
        with ExitStack() as stack:
            for probe in self._probes:
                stack.enter_context(self._guarded(probe, seen))
            try:
                yield seen
            except BaseException as error:
                failure = error
        seen._done = True
        problems = seen.__dict__.pop("_problems", [])
        if failure is not None:
            for problem in problems:
                failure.add_note(str(problem))
            raise failure
        if problems:
            raise problems[0]

    @contextmanager
    def _guarded(self, probe: Any, seen: Observation) -> Iterator[None]:
        """Collect a probe's error at the end of the block, so that the other probes are read and cleaned up
        all the same."""
        started = False
        try:
            with probe.watch(seen):
                started = True
                yield
        except ObserveError as problem:
            if not started:
                raise
            seen.__dict__.setdefault("_problems", []).append(problem)
