"""Redis's counters: INFO commandstats and INFO stats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis as redis_driver

from workshop.observe.observation import DEADLINE, Observation, ObserveError


class RedisProbe:
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
