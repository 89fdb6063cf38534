"""One notebook's sandbox, and what it can measure there."""

from __future__ import annotations

import atexit
import html
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.metadata import version

import psycopg
import pymongo
import redis
from sqlalchemy import URL, NullPool, create_engine

from workshop import exercise, figures, plan, results, sandbox
from workshop.far import distances
from workshop.far.servers import FarServers, pinging, round_trip
from workshop.measure.compare import compare, noise_floor
from workshop.measure.result import Comparison
from workshop.observe.observation import Observation
from workshop.observe.observer import Observer
from workshop.servers.lifecycle import up
from workshop.servers.postgres_server import dsn
from workshop.servers.service import Servers
from workshop.shop import seed
from workshop.shop.postgres_loader import seeded_postgres
from workshop.state import WorkshopError, state_dir
from workshop.table import seconds

SERVERS = ("postgres", "mongo", "redis")
_open: dict[str, Lesson] = {}  # this process's lessons: running the first cell again replaces the sandbox


class Lesson:
    """A lesson's own copy of the shop, with counters and measurements. Made by `open_lesson`."""

    def __init__(self, name: str, servers: Servers, wanted: Sequence[str]) -> None:
        self.name = name
        self.servers = servers
        self.wanted = tuple(wanted)
        self._sandbox = sandbox.create(servers, name.split("-")[0], wanted)
        self._watcher: subprocess.Popen = sandbox.watch(self._sandbox)
        self.observer = Observer(
            postgres=servers.postgres if "postgres" in wanted else None,
            database=self._sandbox.name,
            mongo=pymongo.MongoClient(self.mongo_url)[self._sandbox.name] if "mongo" in wanted else None,
            redis=redis.Redis.from_url(self.redis_url, decode_responses=True) if "redis" in wanted else None,
            replicas=servers.replicas,
        )
        self._wait_for_replicas()
        with pinging(self, self.wanted[0]) as ping:
            self.round_trip_s = round_trip(ping)
            # Of three controls the middle one: a moment's load must not set the bar for the whole session.
            self.noise_floor = statistics.median(noise_floor(ping, budget_s=0.7) for _ in range(3))
        self.data = seeded_postgres(servers.postgres) or {}

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

    def _wait_for_replicas(self, deadline_s: float = 120.0) -> None:
        """Wait until each replica has replayed all that the primary has written, the sandbox's copy included."""
        if not self.servers.replicas:
            return
        with psycopg.connect(dsn(self.servers.postgres), autocommit=True) as primary:
            written = primary.execute("SELECT pg_current_wal_flush_lsn()").fetchone()[0]
        give_up = time.monotonic() + deadline_s
        for number, url in enumerate(self.servers.replicas, 1):
            with psycopg.connect(dsn(url), autocommit=True) as replica:
                behind = "SELECT pg_last_wal_replay_lsn() < %s"
                paused_long = time.monotonic() + 10
                while replica.execute(behind, [written]).fetchone()[0]:
                    if time.monotonic() > paused_long:
                        # A kernel that was killed while a lesson had paused the replay leaves it so.
                        replica.execute("SELECT pg_wal_replay_resume()")
                    if time.monotonic() > give_up:
                        raise WorkshopError(
                            f"replica {number} has not caught up within {deadline_s:.0f} s: "
                            "run `python -m workshop reset` and open the lesson again"
                        )
                    time.sleep(0.05)

    @property
    def dsn(self) -> str:
        """The same for `psycopg.connect`. It holds the password: do not print it."""
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

        `names` are counters that the table shows in any case, see `observe.COUNTERS`.
        """
        return self.observer.watch(*names)

    def compare(
        self, before: Callable, after: Callable, floor: Callable | None = None, *, name: str = "", **options
    ) -> Comparison:
        """Measure `before` against `after`, see `measure.compare`; the result is kept for `report`.

        `name` tells several comparisons of one lesson apart; running one again replaces it in the report.
        """
        result = compare(before, after, floor, name=name, noise_floor=self.noise_floor, **options)
        self._keep(result)
        return result

    def _keep(self, result: Comparison, **more: object) -> None:
        """Append the comparison to the results that `report` reads."""
        record = {
            "lesson": self.name,
            **result.as_record(),
            "round_trip_s": self.round_trip_s,
            "versions": self.versions,
            "scale": self.data.get("scale"),
            "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **more,
        }
        results.append(record, state_dir() / results.FILE)

    def at_distance(self, round_trip_ms: float) -> FarServers:
        """`with lesson.at_distance(2) as far:` leads to the same databases over a network of 2 ms more.

        `far` has the lesson's `postgres`, `dsn`, `redis_url` and `mongo_url`, and `counts("postgres")` with the
        connections, flights and bytes; see `FarServers`. 0 is the network as it is, without a proxy.
        """
        return FarServers(self, round_trip_ms)

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

        `arms(far)` is called once per distance and returns (before, after) or (before, after, floor); engines and
        clients that it makes from `far.postgres`, `far.redis_url` ... may be left to the garbage collector, or closed
        by `far.at_end(engine.dispose)`. `round_trips_ms` are added to the network's own; 0 is that alone. `budget_s`
        is for the pairs at one distance, of which there are at least 6. Other options are those of `measure.compare`.
        """
        started_here = all(service.source != "url" for service in self.servers.services.values())
        nearest = "loopback" if started_here else "your network"

        def measure_one(before, after, floor, *, added_ms, round_trip_s, **options):
            at = f"{name}, at {added_ms:g} ms" if added_ms else f"{name}, on {nearest}"
            result = compare(before, after, floor, name=at, noise_floor=self.noise_floor, **options)
            self._keep(result, round_trip_s=round_trip_s, series=name, added_round_trip_ms=added_ms)
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

    def explain(self, statement, params=None, **options) -> plan.Plan:
        """Run EXPLAIN ANALYZE on this lesson's database, see `plan.explain`."""
        engine = create_engine(self.postgres, poolclass=NullPool)
        return plan.explain(engine, statement, params, **options)

    def check(self, candidate: Callable, expected, goals: dict[str, int], **options) -> exercise.Verdict:
        """Judge a solution by its answer and by what the servers counted, see `exercise.check`."""
        return exercise.check(candidate, expected, observer=self.observer, goals=goals, **options)

    def bars(self, values: dict[str, float], title: str, xlabel: str, **options):
        """A labelled bar for each counter, see `figures.bars`."""
        return figures.bars(values, title, xlabel, **options)

    def close(self) -> None:
        """Give the sandbox back now, instead of at the kernel's end."""
        if self._watcher.poll() is None:
            self._watcher.stdin.close()
            self._watcher.wait(30)

    def _facts(self) -> list[tuple[str, str]]:
        where = [
            f"{name} {service.version} ({'your server' if service.source == 'url' else 'started here'})"
            for name, service in self.servers.services.items()
        ]
        copied = {name: self.servers.services[name] for name in ("postgres", "mongo") if name in self.wanted}
        shop = seed.status(copied.get("postgres"), copied.get("mongo"))
        rows = ", ".join(f"{count:,} {table}" for table, count in shop["rows"].items())
        return [
            ("lesson", self.name),
            ("servers", ", ".join(where)),
            ("your copy of the shop", rows),
            ("round trip", f"{seconds(self.round_trip_s)} to {self.wanted[0]} and back"),
            ("noise floor", f"{self.noise_floor:.2f}x: below this, two runs of the same code differ too"),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{label}: {value}" for label, value in self._facts())

    def _repr_html_(self) -> str:
        cells = (
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for label, value in self._facts()
        )
        return f"<table>{''.join(cells)}</table>"


def open_lesson(name: str, *, servers: Sequence[str] = ("postgres",), replicas: int = 0) -> Lesson:
    """Start what is not running, seed it where needed, and give this notebook its own copy of the shop.

    `name` is the notebook's, for instance "02-connection-pooling". `servers` says which copies it needs, of
    "postgres", "mongo" and "redis"; the round trip is that of the first. The copies go when the kernel does.
    """
    unknown = [server for server in servers if server not in SERVERS]
    if unknown or not servers:
        raise ValueError(f"servers are of {', '.join(SERVERS)}, not {', '.join(unknown) or 'none'}")
    running = up(replicas)
    seed.ensure(running)
    if name in _open:
        _open.pop(name).close()
    lesson = _open[name] = Lesson(name, running, servers)
    atexit.register(lesson.close)
    return lesson
