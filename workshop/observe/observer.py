"""The observer: the probes of up to three servers around one block of code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from pymongo.database import Database
from redis import Redis
from sqlalchemy import URL

from workshop.observe.mongo_probe import MongoProbe
from workshop.observe.observation import COUNTERS, Observation, ObserveError, counters_of
from workshop.observe.postgres_probe import PostgresProbe
from workshop.observe.redis_probe import RedisProbe


class Observer:
    """Reads the counters of up to three servers around a block of code.

    postgres: URL of any database of the server to watch, by a role that may read all statistics (superuser,
        or a member of pg_read_all_stats). The counters are read from that database, or from "postgres" if it
        is the watched one; it needs the extension pg_stat_statements, else only `connections` is counted.
    database: name of the watched database; by default the URL's.
    mongo: the watched database; create the observer before the clients whose commands shall be counted.
    redis: any client of the watched server.
    replicas: URLs of streaming replicas, for `seen.statements_by_server`.

    A server that is None is not watched. Errors: :class:`ObserveError`, in one sentence, if a server does not
    answer within DEADLINE seconds, or if counters were reset during the block. An error of the block itself
    goes on to the caller, after the counters were read.
    """

    def __init__(
        self,
        postgres: URL | None,
        database: str | None = None,
        mongo: Database | None = None,
        redis: Redis | None = None,
        replicas: Sequence[URL] = (),
    ) -> None:
        self._probes: list[PostgresProbe | RedisProbe | MongoProbe] = []
        self._unwatched: list[str] = []
        if mongo is not None:
            self._probes.append(MongoProbe(mongo))
        else:
            self._unwatched += counters_of("MongoDB")
        if redis is not None:
            self._probes.append(RedisProbe(redis))
        else:
            self._unwatched += counters_of("Redis")
        if postgres is not None:
            name = database or postgres.database
            # The probes are read in reverse order, so the primary comes last here and first in statements_by_server.
            numbered = list(enumerate(replicas, 1))
            self._probes += [PostgresProbe(url, name, f"replica {i}") for i, url in reversed(numbered)]
            self._probes.append(PostgresProbe(postgres, database, "primary"))
        else:
            self._unwatched += counters_of("PostgreSQL")

    @contextmanager
    def watch(self, *show: str) -> Iterator[Observation]:
        """Count what happens in the block; `show` names counters that the table shows even if zero (see
        COUNTERS)."""
        seen = Observation(show)
        for name in self._unwatched:
            seen.absent([name], f"this observer does not watch {COUNTERS[name]}", note=False)
        failure: BaseException | None = None
        problems: list[ObserveError] = []
        with ExitStack() as stack:
            for probe in self._probes:
                stack.enter_context(_collecting(problems, probe.watch(seen)))
            try:
                yield seen
            except BaseException as error:
                failure = error
        seen.done()
        if failure is not None:
            for problem in problems:
                failure.add_note(str(problem))
            raise failure
        if problems:
            raise problems[0]


@contextmanager
def _collecting(problems: list[ObserveError], watch: AbstractContextManager[None]) -> Iterator[None]:
    """Put aside a probe's error at the end of the block, so that the other probes are read and cleaned up too."""
    started = False
    try:
        with watch:
            started = True
            yield
    except ObserveError as problem:
        if not started:
            raise
        problems.append(problem)
