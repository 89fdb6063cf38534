"""What was counted while a block of code ran."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workshop.observe.statements import StatementCount
from workshop.table import Shown, Table, shorten

DEADLINE = 5
"""Seconds that connecting to a server, or one reading of its counters, may take."""

COUNTERS: dict[str, str] = {
    "statements": "PostgreSQL",
    "rows": "PostgreSQL",
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

ON_REQUEST = {"blocks", "wal_bytes"}
"""Shown only when asked for: they differ a little between runs and versions."""

_WORDS = {
    "wal_bytes": ("WAL byte", "WAL bytes"),
    "redis_commands": ("Redis command", "Redis commands"),
    "redis_hits": ("Redis hit", "Redis hits"),
    "redis_misses": ("Redis miss", "Redis misses"),
    "mongo_commands": ("MongoDB command", "MongoDB commands"),
    "documents_examined": ("document examined", "documents examined"),
    "keys_examined": ("key examined", "keys examined"),
}


class NotCounted:
    """The value of a counter that could not be counted; `reason` says why, and what an administrator would run.

    It prints as "not counted" under any format, stays so under arithmetic, is false, and every comparison with it is
    false, so that a cell which computes with counters runs on a server that lacks a right. As a float it is nan.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return "not counted"

    def __format__(self, specification: str) -> str:
        return "not counted"

    def __bool__(self) -> bool:
        return False

    def __float__(self) -> float:
        return float("nan")

    def __hash__(self) -> int:
        return id(self)

    def _itself(self, *_: Any) -> NotCounted:
        return self

    def _false(self, other: object) -> bool:
        return False

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _itself
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __divmod__ = __rdivmod__ = _itself
    __neg__ = __pos__ = __abs__ = __round__ = __floor__ = __ceil__ = _itself
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _false


def quantity(name: str, count: int | NotCounted) -> str:
    """A counter's value in words: `1 statement`, `2,000 MongoDB commands`."""
    one, many = _WORDS.get(name, (name.removesuffix("s"), name))
    return f"{many} not counted" if isinstance(count, NotCounted) else f"{count:,} {one if count == 1 else many}"


class Observation(Shown):
    """The counters of one `watch()` block, each as an attribute and by `seen["name"]`; filled when the block ends.

    statements, rows (returned or written by them), commits, rollbacks, connections (opened), blocks (of 8 kB, found
        in or read into shared buffers), wal_bytes (written by statements; commit records are not included)
    redis_commands, redis_hits, redis_misses (of key look-ups)
    mongo_commands, documents_examined, keys_examined

    A counter that could not be counted is a `NotCounted`. LookupError or AttributeError for a name that is no counter,
    RuntimeError for a counter read before the block has ended.

    The table shows the counters that are not zero, and those asked for by `watch("blocks")` or
    `seen.show("blocks", "statements")`. blocks and wal_bytes appear only when asked for.
    """

    def __init__(self, asked: Iterable[str] = ()) -> None:
        self._asked = tuple(asked)
        for name in self._asked:
            if name not in COUNTERS:
                raise ValueError(f"expected a counter among {', '.join(COUNTERS)}; found {name!r}")
        self._only = False
        self._done = False
        self._counts: dict[str, int] = {}
        self._missing: dict[str, NotCounted] = {}
        self._notes: list[str] = []
        self._statements: list[StatementCount] = []
        self._commands: list[tuple[str, str, int]] = []
        self.statements_by_server: dict[str, int | NotCounted] = {}
        """Statements on "primary", "replica 1", "replica 2", ... in the order of the URLs."""
        self.open_transaction = False
        """Whether the statement counts may be one off, because a transaction was open at the start or the end
        of the block."""

    def __getattr__(self, name: str) -> int | NotCounted:
        if name not in COUNTERS:
            raise AttributeError(f"{type(self).__name__} has no counter {name!r}; it has {', '.join(COUNTERS)}")
        return self[name]

    def __getitem__(self, name: str) -> int | NotCounted:
        if name not in COUNTERS:
            raise LookupError(f"expected a counter among {', '.join(COUNTERS)}; found {name!r}")
        if not self._done:
            raise RuntimeError(f"{name} is not counted yet: read it after the with block has ended")
        count = self._missing.get(name, self._counts.get(name))
        return NotCounted("the reading was interrupted") if count is None else count

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *self._counts])

    @property
    def counts(self) -> dict[str, int]:
        """Every counter that was counted, zeros included."""
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
        statements = self["statements"]
        rows = [
            (s.kind, s.calls, s.rows, shorten(s.text))
            for s in sorted(self._statements, key=lambda s: (s.kind != "statement", -s.calls, shorten(s.text)))
            if control or s.kind == "statement"
        ]
        notes = [f"not counted: {statements.reason}"] if isinstance(statements, NotCounted) else []
        return Table(("kind", "calls", "rows", "statement"), rows, notes, empty="no statement was counted")

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
            counted = self.counts
            names = [n for n in COUNTERS if n in self._asked or (counted.get(n) and n not in ON_REQUEST)]
        rows = [(name, self[name], COUNTERS[name]) for name in names]
        reasons = {count.reason: None for _, count, _ in rows if isinstance(count, NotCounted)}
        unsaid = [f"not counted: {reason}" for reason in reasons if not any(reason in note for note in self._notes)]
        return Table(("counter", "count", "server"), rows, [*self._notes, *unsaid], "nothing was counted")

    def _count(self, **counts: int) -> None:
        self._counts.update(counts)

    def _absent(self, names: Iterable[str], reason: str, *, note: bool = True) -> None:
        """These counters could not be counted, for one reason."""
        value = NotCounted(reason)
        for name in names:
            self._counts.pop(name, None)
            self._missing[name] = value
        if note:
            self._note(f"{', '.join(names)} not counted: {reason}")

    def _note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)
