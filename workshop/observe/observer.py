"""The observer: the probes of up to three servers around one block of code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from sqlalchemy import URL

from workshop.observe.mongo_probe import MongoProbe
from workshop.observe.observation import COUNTERS, Observation
from workshop.observe.postgres_probe import PostgresProbe
from workshop.observe.redis_probe import RedisProbe


class Observer:
    """Reads the counters of up to three servers around a block of code.

    postgres: URL of any database of the server to watch. The counters are read from that database, or from "postgres"
        if it is the watched one; it needs the extension pg_stat_statements, else only `connections` is counted. A role
        that is no member of pg_read_all_stats counts its own statements.
    database: name of the watched database, on PostgreSQL and MongoDB alike; by default that of PostgreSQL's URL.
    mongo: URL of the server; import this module before you create the clients whose commands shall be counted.
    redis: URL of the server.
    replicas: URLs of streaming replicas, for `seen.statements_by_server`.

    A server that is None is not watched. What cannot be counted is a `NotCounted` in the observation, with the reason:
    a missing right, a server that does not answer within DEADLINE seconds, counters that were reset during the block.
    """

    def __init__(
        self,
        postgres: URL | None,
        database: str | None = None,
        mongo: str | None = None,
        redis: str | None = None,
        replicas: Sequence[URL] = (),
    ) -> None:
        self._probes: list[PostgresProbe | RedisProbe | MongoProbe] = []
        watched = {"MongoDB": mongo, "Redis": redis, "PostgreSQL": postgres}
        self._unwatched = [name for name, server in COUNTERS.items() if watched[server] is None]
        if mongo is not None:
            self._probes.append(MongoProbe(mongo, database or (postgres and postgres.database)))
        if redis is not None:
            self._probes.append(RedisProbe(redis))
        if postgres is not None:
            name = database or postgres.database
            # The probes are read in reverse order, so the primary comes last here and first in statements_by_server.
            numbered = list(enumerate(replicas, 1))
            self._probes += [PostgresProbe(url, name, f"replica {i}") for i, url in reversed(numbered)]
            self._probes.append(PostgresProbe(postgres, database, "primary"))

    def close(self) -> None:
        for probe in self._probes:
            probe.close()

    @contextmanager
    def watch(self, *show: str) -> Iterator[Observation]:
        """Count what happens in the block; `show` names counters that the table shows even if zero (see COUNTERS).

        Blocks may be nested or overlap, in one thread or in several. An error of the block goes on to the caller, after
        the counters were read.
        """
        seen = Observation(show)
        for name in self._unwatched:
            seen._absent([name], f"this observer does not watch {COUNTERS[name]}", note=False)
        try:
            with ExitStack() as stack:
                for probe in self._probes:
                    stack.enter_context(probe.watch(seen))
                yield seen
        finally:
            seen._done = True
