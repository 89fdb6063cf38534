"""One notebook's sandbox, and what it can measure there."""

from __future__ import annotations

import atexit
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version

import pymongo.errors
import redis
from psycopg import errors as pg
from sqlalchemy import URL, Executable, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from workshop import exercise, passed, plan, results, sandbox
from workshop.far import distances
from workshop.far.servers import FarServers, pinging, round_trip
from workshop.measure.compare import compare
from workshop.measure.result import Comparison
from workshop.observe.observation import Observation
from workshop.observe.observer import Observer
from workshop.servers.extra import ExtraServers
from workshop.servers.lifecycle import NAMES, up
from workshop.servers.postgres_server import dsn, wait_for_replicas
from workshop.servers.service import Servers
from workshop.shop import seed
from workshop.state import WorkshopError, state_dir
from workshop.table import Shown, Table, seconds
from workshop.turns import turn

UNAUTHORIZED = 13  # MongoDB's code
# A missing right; a table or setting that is not there; an extension that is not installed, or not loaded at the start.
REFUSED = (
    *(pg.InsufficientPrivilege, pg.UndefinedTable, pg.UndefinedObject),
    *(pg.FeatureNotSupported, pg.ObjectNotInPrerequisiteState),
)
_open: dict[str, Lesson] = {}  # this process's lessons: running the first cell again replaces the sandbox


class Lesson(Shown):
    """A lesson's own copy of the shop, with counters and measurements. Made by `open_lesson`."""

    def __init__(self, name: str, servers: Servers, wanted: Sequence[str], biographies: bool) -> None:
        self.name = name
        self.servers = servers
        self.wanted = tuple(wanted)
        self._sandbox = sandbox.create(servers, name.split("-")[0], wanted, biographies=biographies)
        self._watcher: subprocess.Popen | None = None
        self._extra: list[ExtraServers] = []
        try:
            self._begin(wanted)
        except BaseException:  # a kept traceback would keep the watcher waiting, and the copies there
            self._give_back()
            raise

    def _begin(self, wanted: Sequence[str]) -> None:
        """All that may fail, or be interrupted, when the copies are there."""
        servers = self.servers
        self._watcher = sandbox.watch(self._sandbox)
        self.observer = Observer(
            postgres=servers.postgres if "postgres" in wanted else None,
            database=self._sandbox.name,
            mongo=servers.mongo if "mongo" in wanted else None,
            redis=self._sandbox.redis if "redis" in wanted else None,
            replicas=servers.replicas,
        )
        if servers.replicas:
            wait_for_replicas(servers.postgres, servers.replicas)
        with pinging(self, self.wanted[0]) as ping:
            self.round_trip_s = round_trip(ping)
        self.data = seed.status(*(servers.services.get(copied) for copied in ("postgres", "mongo")))

    def start_extra(self, *, postgres: int = 0, redis: int = 0) -> ExtraServers:
        """So many PostgreSQL servers, and a Redis Cluster of so many nodes, for this lesson: they stop when it ends.

        They are started here, also where the lesson's own servers are somebody's by URL. See `servers.extra`.
        """
        started = ExtraServers(postgres, redis)
        self._extra.append(started)
        return started

    def _need(self, server: str) -> None:
        if server not in self.wanted:
            raise WorkshopError(
                f"this lesson was opened with {', '.join(self.wanted)} and not with {server}: "
                f"name it in open_lesson(..., servers=({', '.join(map(repr, (*self.wanted, server)))}))"
            )

    @property
    def postgres(self) -> URL:
        """The URL of this lesson's PostgreSQL database, for `create_engine`; its repr hides the password."""
        self._need("postgres")
        return self._sandbox.postgres

    @property
    def replicas(self) -> list[URL]:
        """The URLs of this lesson's database on the streaming replicas, read-only; see `open_lesson(replicas=...)`."""
        return [url.set(database=self._sandbox.name) for url in self.servers.replicas]

    @property
    def dsn(self) -> str:
        """The lesson's PostgreSQL database for `psycopg.connect`. It holds the password: do not print it."""
        return dsn(self.postgres)

    @property
    def mongo_url(self) -> str:
        """For `MongoClient`; the lesson's database is `mongo_database`. It holds the password: do not print it."""
        self._need("mongo")
        return self.servers.mongo

    @property
    def mongo_database(self) -> str:
        self._need("mongo")
        return self._sandbox.name

    @property
    def redis_url(self) -> str:
        """The URL of this lesson's Redis database. It holds the password: do not print it."""
        self._need("redis")
        return self._sandbox.redis

    @property
    def versions(self) -> dict[str, str]:
        libraries = ("sqlalchemy", "psycopg", "redis", "pymongo")
        drivers = {f"python-{name}" if name == "redis" else name: version(name) for name in libraries}
        return {"python": platform.python_version(), **self.servers.versions, **drivers}

    def observe(self, *names: str) -> AbstractContextManager[Observation]:
        """`with lesson.observe() as seen:` counts what servers and drivers see until the block ends.

        `names` are counters that the table shows in any case, see `observe.observation.COUNTERS`.
        """
        return self.observer.watch(*names)

    def compare(
        self, before: Callable, after: Callable, lower_bound: Callable | None = None, *, name: str = "", **options
    ) -> Comparison:
        """Measure `before` against `after`, see `measure.compare.compare`; the result is kept for `report`.

        `name` tells several comparisons of one lesson apart; running one again replaces it in the report.
        """
        with turn():
            result = compare(before, after, lower_bound, name=name, **options)
        self._keep(result)
        return result

    def _keep(self, result: Comparison, **more: object) -> None:
        """Append the comparison to the results that `report` reads."""
        record = {
            "lesson": self.name,
            **result.as_record(),
            "round_trip_s": self.round_trip_s,
            "versions": self.versions,
            "scale": self.data["scale"],
            "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **more,
        }
        results.append(record, state_dir() / results.FILE)

    def at_distance(self, round_trip_ms: float, mbit_s: float | None = None) -> FarServers:
        """`with lesson.at_distance(2) as far:` leads to the same databases over a network of 2 ms more.

        `mbit_s` limits its bandwidth as well, in million bits a second in each direction.

        `far` has the lesson's `postgres`, `dsn`, `redis_url` and `mongo_url`, and `counts("postgres")` with the
        connections, round trips and bytes; see `FarServers`. 0 is the network as it is, without a proxy.
        """
        return FarServers(self, round_trip_ms, mbit_s)

    def compare_at_distances(
        self,
        arms: Callable[[FarServers], Sequence[Callable]],
        *,
        name: str,
        round_trips_ms: Sequence[float] = (0, 0.5, 2, 20),
        budget_s: float = 2.0,
        **options,
    ) -> distances.Distances:
        """Measure the gain at several network distances; each comparison is kept for `report`.

        `arms(far)` is called once per distance and returns (before, after) or (before, after, lower_bound); engines and
        clients that it makes from `far.postgres`, `far.redis_url` ... may be left to the garbage collector, or closed
        by `far.at_end(engine.dispose)`. `round_trips_ms` are added to the network's own; 0 is that alone. `budget_s`
        is for the pairs at one distance, of which there are at least 6. Other options are those of `measure.compare`.
        """
        started_here = all(service.source != "url" for service in self.servers.services.values())
        nearest = "loopback" if started_here else "your network"

        def measure_one(before, after, lower_bound, *, added_ms, round_trip_s, **options):
            at = f"{name}, at {added_ms:g} ms" if added_ms else f"{name}, on {nearest}"
            with turn():
                result = compare(before, after, lower_bound, name=at, **options)
            self._keep(result, round_trip_s=round_trip_s, series=name, added_round_trip_ms=added_ms, nearest=nearest)
            return result

        return distances.compare_at_distances(
            self,
            arms,
            measure_one,
            name=name,
            round_trips_ms=round_trips_ms,
            near_round_trip_s=self.round_trip_s,
            nearest=nearest,
            budget_s=budget_s,
            **options,
        )

    def explain(self, statement: Executable | str) -> plan.Plan:
        """Run EXPLAIN ANALYZE on this lesson's database, see `plan.explain`."""
        return plan.explain(create_engine(self.postgres, poolclass=NullPool), statement)

    def check(
        self,
        candidate: Callable,
        expected,
        at_most: Mapping[str, int],
        at_least: Mapping[str, int] | None = None,
        *,
        observer: Observer | None = None,
        **options,
    ) -> exercise.Verdict:
        """Judge a solution by its answer and by what the servers counted, see `exercise.check`.

        `observer` watches other servers than the lesson's own.
        """
        options |= {"at_most": at_most, "at_least": at_least}
        verdict = exercise.check(candidate, expected, observer=observer or self.observer, **options)
        if verdict:
            passed.keep(self.name, verdict.reason)
        return verdict

    @contextmanager
    def allowed(self, needs: str) -> Iterator[None]:
        """`with lesson.allowed("GRANT ..."):` leaves the block when the server refuses it, with one sentence.

        So it does where an older server does not know a setting or a table. The sentence has the server's own reason,
        and `needs`: what an administrator would run. Other errors go on.
        """
        try:
            yield
        except (*REFUSED, DBAPIError) as error:
            refused = error.orig if isinstance(error, DBAPIError) else error
            if not isinstance(refused, REFUSED):
                raise
            print(f"Left out here: {refused.diag.message_primary}. An administrator would run: {needs}")
        except pymongo.errors.OperationFailure as error:
            if error.code != UNAUTHORIZED:
                raise
            print(f"Left out here: {error.details['codeName']}. An administrator would run: {needs}")
        except redis.exceptions.NoPermissionError as error:
            print(f"Left out here: {error}. An administrator would run: {needs}")

    def close(self) -> None:
        """Give the sandbox back now, instead of at the kernel's end."""
        while self._extra:
            self._extra.pop().close()
        self.observer.close()
        self._give_back()

    def _give_back(self) -> None:
        self._sandbox.drop()
        if self._watcher:
            self._watcher.kill()  # nothing is left for it to do
            self._watcher.wait()
            self._watcher.stdin.close()

    def table(self) -> Table:
        """What is displayed: where the lesson runs."""
        where = [
            f"{name} {service.version} ({'your server' if service.source == 'url' else 'started here'})"
            for name, service in self.servers.services.items()
        ]
        rows = ", ".join(f"{count:,} {table}" for table, count in self.data["rows"].items())
        facts = [
            ("lesson", self.name),
            ("servers", ", ".join(where)),
            ("your copy of the shop", rows or "an empty Redis database"),
            ("round trip", f"{seconds(self.round_trip_s)} to {self.wanted[0]} and back"),
        ]
        return Table(("", ""), [*facts, *(("note", note) for note in self.servers.notes)])

    def __repr__(self) -> str:
        return "\n".join(f"{label}: {value}" for label, value in self.table().rows)


def open_lesson(
    name: str, *, servers: Sequence[str] = ("postgres",), replicas: int = 0, biographies: bool = False
) -> Lesson:
    """Start those of `servers` that are not running, seed them, and give this notebook its own copy of the shop.

    `name` is the notebook's, for instance "02-connection-pooling". `servers` says which it needs, of "postgres",
    "mongo" and "redis"; the round trip is that of the first. With `biographies` customers have a `bio`, which makes the
    copy 450 MB in place of 160, and takes some ten seconds the first time. The copies go when the kernel does.

    Raises WorkshopError, in one sentence, when a server cannot be had, and ValueError for a name that is no server's.
    """
    unknown = [server for server in servers if server not in NAMES]
    if unknown or not servers:
        raise ValueError(f"servers are of {', '.join(NAMES)}, not {', '.join(unknown) or 'none'}")
    running = up(servers, replicas)
    seed.ensure(running, biographies=biographies)
    if name in _open:
        _open.pop(name).close()
    lesson = _open[name] = Lesson(name, running, servers, biographies)
    return lesson


@atexit.register
def _close_all() -> None:
    while _open:
        _open.popitem()[1].close()
