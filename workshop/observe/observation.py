"""What was counted while a block of code ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workshop.table import Table, shorten

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
    """A counter's value in words: "1 statement", "2,000 MongoDB commands"."""
    words = PLURAL.get(name, name)
    if count == 1:
        words = SINGULAR.get(name, words.removesuffix("s"))
    return f"{count:,} {words}"


class ObserveError(RuntimeError):
    """A counter could not be read, or what was read cannot be trusted."""


class NotCounted(float):
    """In the place of a count that could not be taken; `reason` says why, and what an administrator would run.

    It prints as "not counted" in any format, stays what it is under arithmetic, and every comparison with it is false:
    so code that shows counts goes on where one is missing. As a float it is NaN.
    """

    reason: str

    def __new__(cls, reason: str) -> NotCounted:
        value = super().__new__(cls, "nan")
        value.reason = reason
        return value

    def __repr__(self) -> str:
        return "not counted"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "not counted"

    def _itself(self, *_: object) -> NotCounted:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _itself
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _itself
    __neg__ = __abs__ = __round__ = _itself


@dataclass(frozen=True)
class StatementCount:
    """One normalised statement: `kind` is statement, transaction control, driver or set-up."""

    kind: str
    text: str
    calls: int
    rows: int
    wal_bytes: int
    blocks: int


class Observation:
    """The counters of one `watch()` block, each as an attribute and by `seen["name"]`; filled when the
    block ends.

    statements, rows (returned or written by them), commits, rollbacks, transactions (both together),
        connections (opened), blocks (of 8 kB, found in or read into shared buffers), wal_bytes (written by
        statements; commit records are not included)
    redis_commands, redis_hits, redis_misses (of key look-ups)
    mongo_commands, documents_examined, keys_examined

    A counter that could not be taken is a `NotCounted`, and the table's notes say why. The table shows the counters
    that are not zero, and those asked for by `watch("blocks")` or `seen.show("blocks", "statements")`; blocks,
    wal_bytes and transactions only when asked for.
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
        self.statement_counts: list[StatementCount] = []
        self._commands: list[tuple[str, str, int]] = []
        self.statements_by_server: dict[str, int | NotCounted] = {}
        """Statements on "primary", "replica 1", "replica 2", ... in the order of the URLs."""
        self.open_transaction = False
        """Whether the statement counts may be one off, because a transaction was open at the start or the end
        of the block."""

    def __getattr__(self, name: str) -> int | NotCounted:
        if name not in COUNTERS:
            raise AttributeError(f"{type(self).__name__} has no counter {name!r}; it has {', '.join(COUNTERS)}")
        if not self._done:
            raise AttributeError(f"{name} is not counted yet: read it after the with block has ended")
        return self[name]

    def __getitem__(self, name: str) -> int | NotCounted:
        if name in self._counts:
            return self._counts[name]
        if name not in COUNTERS:
            raise KeyError(f"expected a counter among {', '.join(COUNTERS)}; found {name!r}")
        if not self._done:
            raise KeyError(f"{name} is not counted yet: read it after the with block has ended")
        return NotCounted(self._missing.get(name, "this observation did not ask its server"))

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
        """PostgreSQL statements with calls and rows, most frequent first; `control`: BEGIN too."""
        if isinstance(self["statements"], NotCounted):
            return Table((), (), [f"statements not counted: {self['statements'].reason}"], "no statement was counted")
        rows = [
            (s.kind, s.calls, s.rows, shorten(s.text))
            for s in sorted(self.statement_counts, key=lambda s: (s.kind != "statement", -s.calls, shorten(s.text)))
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
        rows = [(name, self[name], COUNTERS[name]) for name in names]
        notes = [
            *self._notes,
            *(f"{n} was not counted: {self._missing[n]}" for n in self._asked if n in self._missing),
        ]
        return Table(("counter", "count", "server"), rows, list(dict.fromkeys(notes)), "nothing was counted")

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def count(self, server: str, commands: Mapping[str, int], **counts: int) -> None:
        """Record a probe's counts, and its server's `commands` for `by_command()`."""
        self._counts.update(counts)
        self._commands += [(server, name, n) for name, n in commands.items() if n]

    def done(self) -> None:
        """The block has ended: the counts may be read."""
        self._done = True

    def absent(self, names: Iterable[str], reason: str, *, note: bool = True) -> None:
        for name in names:
            self._counts.pop(name, None)
            self._missing[name] = reason
        if note:
            self.note(f"{', '.join(names)} not counted: {reason}")

    def note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)


def counters_of(server: str) -> list[str]:
    return [name for name, where in COUNTERS.items() if where == server]
