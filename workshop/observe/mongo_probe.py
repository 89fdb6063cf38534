"""MongoDB's counters: the driver's commands and the database profiler."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pymongo
from pymongo import monitoring
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from workshop.observe.observation import DEADLINE, Observation, ObserveError

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
_profiling: dict[tuple[Any, str], list[Any]] = {}  # (server, database): [blocks that are open, settings before]
_profiling_lock = threading.RLock()


def _listen() -> None:
    """Register the listener, once per process, for every client created from now on."""
    global _registered
    with _profiling_lock:
        if not _registered:
            monitoring.register(_commands)
            _registered = True


class MongoProbe:
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
            if key not in _profiling:
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
                    _profiling[key] = [0, old]
                    # every operation must be recorded, whatever threshold or sampling is set
                    self._run("profile", 2, sampleRate=1.0, **({"filter": "unset"} if "filter" in old else {}))
                except OperationFailure as error:
                    _profiling.pop(key, None)
                    return (
                        f"this MongoDB user may not use the profiler ({error.details.get('codeName', 'refused')});"
                        f' an administrator runs db.grantRolesToUser(name, [{{role: "dbAdmin", db: "{key[1]}"}}])'
                    )
            _profiling[key][0] += 1
            stack.callback(self._stop_profiler, key)
            return None

    def _stop_profiler(self, key: tuple) -> None:
        """Put the profiler back as it was, when the last of the blocks that overlap has ended."""
        with _profiling_lock, pymongo.timeout(DEADLINE):
            _profiling[key][0] -= 1
            if _profiling[key][0]:
                return
            _, old = _profiling.pop(key)
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
        seen.count("MongoDB", calls, mongo_commands=sum(calls.values()))
        if refused:
            seen.absent(["documents_examined", "keys_examined"], refused)
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
            seen.absent(
                ["documents_examined", "keys_examined"],
                f"the block ran more operations than a profile of {_PROFILE_BYTES >> 20} MB holds; run fewer",
            )
        else:
            found = sums[0] if sums else {"docs": 0, "keys": 0}
            seen.count("MongoDB", {}, documents_examined=int(found["docs"]), keys_examined=int(found["keys"]))
        if entries > first and not calls:
            seen.absent(
                ["mongo_commands"],
                "the MongoClient was created before the observer, or in another process; create it after",
            )
