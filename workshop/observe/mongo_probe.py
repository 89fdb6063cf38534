"""MongoDB's counters: the driver's commands and the database profiler."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pymongo
from pymongo import monitoring
from pymongo.errors import OperationFailure, PyMongoError

from workshop.observe.observation import DEADLINE, Observation
from workshop.observe.windows import Windows

_PROFILE_BYTES = 32 * 1024 * 1024
# an unusual limit, by which a profile left by an interrupted notebook is known as the workbook's own
_PROFILE_DOCUMENTS = 1_000_003
_COMMENT = "workshop observer"
_UNAUTHORIZED = 13
_UNHEARD = {"killCursors", "endSessions", "saslStart", "saslContinue", "authenticate"}
_ADMIN_COMMANDS = {"commitTransaction", "abortTransaction", "bulkWrite"}


class _Commands(monitoring.CommandListener):
    """Counts the commands sent by this process's clients, for the open blocks that watch the database."""

    def __init__(self) -> None:
        self.windows: Windows[tuple[str, Counter[str]]] = Windows()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        name = event.command_name
        if not self.windows.open or name in _UNHEARD or event.command.get("comment") == _COMMENT:
            return
        with self.windows.lock:
            for database, counter in self.windows.open:
                if event.database_name == database or name in _ADMIN_COMMANDS:
                    counter[name] += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Nothing to do: a command counts when it is sent."""

    failed = succeeded


_commands = _Commands()
monitoring.register(_commands)  # for every client created from now on


@dataclass
class _Profiler:
    """A profiler that this process has switched on: for how many blocks, and the level that it had before."""

    blocks: int
    level: int


_profilers: dict[tuple[str, str], _Profiler] = {}  # by the server's process and the database
_lock = threading.Lock()


class _CannotProfile(Exception):
    """The profiler may not or cannot be used; the message says why."""


class MongoProbe:
    """The counters of one MongoDB database."""

    EXAMINED = ("documents_examined", "keys_examined")

    def __init__(self, url: str, database: str | None) -> None:
        if not database:
            raise ValueError("expected the name of the database to watch; found none")
        milliseconds = DEADLINE * 1000
        client = pymongo.MongoClient(url, serverSelectionTimeoutMS=milliseconds, connectTimeoutMS=milliseconds)
        self.database = client[database]

    def close(self) -> None:
        self.database.client.close()

    def _run(self, command: str, value: Any, **options: Any) -> dict[str, Any]:
        return self.database.command(command, value, **options, comment=_COMMENT)

    @contextmanager
    def watch(self, seen: Observation) -> Iterator[None]:
        profiler, first, reason = None, 0, None
        try:
            with pymongo.timeout(DEADLINE):
                profiler = self._start_profiler()
                first = self._profiled_so_far()
        except (PyMongoError, _CannotProfile) as error:
            reason = self._sentence(error)
        calls: Counter[str] = Counter()
        try:
            with _commands.windows.window((self.database.name, calls)):
                yield
        finally:
            try:
                self._fill(seen, calls, first, reason)
            finally:
                if profiler:
                    self._stop_profiler(profiler, seen)

    def _sentence(self, error: Exception) -> str:
        """Why the profiler could not be used, and what an administrator would run."""
        if not isinstance(error, OperationFailure) or error.code != _UNAUTHORIZED:
            return str(error) if isinstance(error, _CannotProfile) else f"MongoDB's profiler cannot be used: {error}"
        try:
            with pymongo.timeout(DEADLINE):
                user = self._run("connectionStatus", 1)["authInfo"]["authenticatedUsers"][0]
        except (PyMongoError, LookupError):
            user = {"user": "USER", "db": "admin"}
        return (
            "this account may not use the profiler; an administrator runs"
            f' db.getSiblingDB("{user["db"]}").grantRolesToUser("{user["user"]}",'
            ' [{role: "dbAdminAnyDatabase", db: "admin"}])'
        )

    def _start_profiler(self) -> tuple[str, str]:
        """Switch the profiler on, or join those in this process who have; what `_stop_profiler` takes."""
        key = (str(self._run("hello", 1)["topologyVersion"]["processId"]), self.database.name)
        with _lock:
            # two clients of one server must not switch its profiler off under each other
            if key not in _profilers:
                _profilers[key] = _Profiler(0, self._switch_on())
            _profilers[key].blocks += 1
        return key

    def _switch_on(self) -> int:
        """Record every operation, in a system.profile of our own; return the level before."""
        level = self._run("profile", -1)["was"]
        info = self.database.list_collections(filter={"name": "system.profile"}, comment=_COMMENT)
        options = next((c["options"] for c in info), None)
        if options is not None and options.get("max") != _PROFILE_DOCUMENTS:
            raise _CannotProfile(
                f"the profiler of the database {self.database.name!r} is used by someone else;"
                " switch it off and drop system.profile there"
            )
        if options is not None:
            self._run("profile", 0)
            self._run("drop", "system.profile")
            level = 0
        self._run("create", "system.profile", capped=True, size=_PROFILE_BYTES, max=_PROFILE_DOCUMENTS)
        self._run("profile", 2)  # every operation, whatever threshold, sampling or filter is set for slow ones
        return level

    def _stop_profiler(self, key: tuple[str, str], seen: Observation) -> None:
        """Leave the profiler; the last block to leave puts the level back."""
        with _lock:
            profiler = _profilers[key]
            profiler.blocks -= 1
            if profiler.blocks:
                return
            del _profilers[key]
            try:
                with pymongo.timeout(DEADLINE):
                    self._run("profile", 0)
                    self._run("drop", "system.profile")
                    self._run("profile", profiler.level)
            except PyMongoError as error:
                seen._note(
                    f"MongoDB's profiler could not be switched off in {self.database.name!r} ({error});"
                    " run db.command('profile', 0)"
                )

    def _profiled(self, *stages: dict[str, Any]) -> list[dict[str, Any]]:
        """Run an aggregation over the profile, leaving out what the observer did itself."""
        own = [{"ns": f"{self.database.name}.system.profile"}, {"command.comment": _COMMENT}]
        pipeline = [{"$match": {"$nor": own}}, *stages]
        return list(self.database["system.profile"].aggregate(pipeline, comment=_COMMENT))

    def _profiled_so_far(self) -> int:
        found = self._profiled({"$count": "n"})
        return int(found[0]["n"]) if found else 0

    def _fill(self, seen: Observation, calls: Counter[str], first: int, reason: str | None) -> None:
        seen._count(mongo_commands=calls.total())
        seen._commands += [("MongoDB", name, n) for name, n in calls.items()]
        entries = first
        if not reason:
            try:
                with pymongo.timeout(DEADLINE):
                    entries = self._profiled_so_far()
                    examined = self._examined(first, entries)
            except (PyMongoError, _CannotProfile) as error:
                reason = self._sentence(error)
        if reason:
            seen._absent(self.EXAMINED, reason)
        else:
            seen._count(documents_examined=examined[0], keys_examined=examined[1])
        if entries > first and not calls:
            seen._absent(
                ["mongo_commands"],
                "the MongoClient was created before the observer, or in another process; create it after",
            )

    def _examined(self, first: int, entries: int) -> tuple[int, int]:
        """Documents and keys that the operations after the `first` ones examined."""
        sums = self._profiled(
            {"$skip": first},
            {"$group": {"_id": None, "docs": {"$sum": "$docsExamined"}, "keys": {"$sum": "$keysExamined"}}},
        )
        storage = self.database["system.profile"].aggregate([{"$collStats": {"storageStats": {}}}], comment=_COMMENT)
        size = next(iter(storage))["storageStats"]["size"]
        # near its limit the capped collection drops its oldest entries, and the sums would be too low
        if size > _PROFILE_BYTES * 0.95 or entries < first:
            raise _CannotProfile(
                f"the block ran more operations than a profile of {_PROFILE_BYTES >> 20} MB holds; run fewer"
            )
        return (int(sums[0]["docs"]), int(sums[0]["keys"])) if sums else (0, 0)
