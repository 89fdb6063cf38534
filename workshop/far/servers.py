"""A lesson's servers seen from farther away: the URLs that lead through a proxy."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import psycopg
import pymongo
import redis
from pymongo.uri_parser import parse_uri
from sqlalchemy import URL

from workshop.far.proxy import Counts, Proxy, checked_bandwidth, checked_round_trip
from workshop.servers.postgres_server import dsn
from workshop.state import WorkshopError


class Servers(Protocol):
    """What a lesson and `FarServers` have in common: the ways to one sandbox."""

    @property
    def postgres(self) -> URL: ...
    @property
    def dsn(self) -> str: ...
    @property
    def redis_url(self) -> str: ...
    @property
    def mongo_url(self) -> str: ...


class FarServers:
    """The lesson's own databases, `round_trip_ms` (0 to 1000) farther away, over a link of `mbit_s` Mbit/s (None: no
    limit): the same data, other URLs.

    A context manager; the proxies behind the URLs start when a URL is first asked for and end with the block. Each
    server has a link of its own. With 0 and no limit there is no proxy: the URLs are the lesson's own.
    """

    def __init__(self, near: Servers, round_trip_ms: float, mbit_s: float | None = None) -> None:
        self.round_trip_ms = checked_round_trip(round_trip_ms)
        self.mbit_s = checked_bandwidth(mbit_s)
        self._direct = not self.round_trip_ms and self.mbit_s is None
        self._near = near
        self._proxies: dict[str, Proxy] = {}
        self._urls: dict[str, str] = {}
        self._at_end = ExitStack()
        self._over = False

    def __enter__(self) -> FarServers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._over = True
        with ExitStack() as proxies:
            for proxy in self._proxies.values():
                proxies.callback(proxy.close)
            self._at_end.close()
            # Pools that nobody holds any more close their connections now, while there is somebody to say goodbye to.
            gc.collect()

    def __repr__(self) -> str:
        return f"<the sandbox, {self.round_trip_ms:g} ms farther away>"  # the URLs hold passwords

    def at_end(self, function: Callable[[], object]) -> None:
        """Call `function` (`engine.dispose`, `client.close`) at the end of the block, before the proxies end."""
        self._at_end.callback(function)

    @property
    def postgres(self) -> URL:
        """For `create_engine`, as `lesson.postgres`."""
        near = self._near.postgres
        if self._direct:
            return near
        host = near.host or near.query.get("host", "127.0.0.1")
        if not isinstance(host, str) or "," in host or host.startswith("/"):
            raise WorkshopError(
                "a network distance needs one PostgreSQL server that is reached by TCP, found a list of hosts or a "
                "Unix socket: name one host in WORKSHOP_POSTGRES_URL"
            )
        proxy = self._proxy("postgres", host, near.port or int(str(near.query.get("port", 5432))))
        # libpq connects to hostaddr; the host's name stays, for certificates and password files.
        query = {k: v for k, v in near.query.items() if k not in ("host", "port")}
        return near.set(host=host, port=proxy.port, query={**query, "hostaddr": proxy.host})

    @property
    def dsn(self) -> str:
        """The same for `psycopg.connect`. It holds the password: do not print it."""
        return dsn(self.postgres)

    @property
    def redis_url(self) -> str:
        """For `Redis.from_url`, as `lesson.redis_url`. It holds the password: do not print it."""
        near = self._near.redis_url
        if self._direct:
            return near
        url = urlsplit(near)
        if not url.hostname:
            raise WorkshopError(
                "a network distance needs a Redis that is reached by TCP, found a Unix socket: "
                "name a redis:// URL in WORKSHOP_REDIS_URL"
            )
        proxy = self._proxy("redis", url.hostname, url.port or 6379)
        # The certificate names the server, not the proxy; who signed it is checked all the same.
        more = {"ssl_check_hostname": "false"} if url.scheme == "rediss" else {}
        return _through(url, proxy, dict(parse_qsl(url.query)) | more)

    @property
    def mongo_url(self) -> str:
        """For `MongoClient`, as `lesson.mongo_url`; the database's name is the same. Do not print it."""
        near = self._near.mongo_url
        if self._direct:
            return near
        if "mongo" not in self._urls:
            with pymongo.MongoClient(near, serverSelectionTimeoutMS=10_000) as client:
                client.admin.command("ping")
                address = client.primary or client.address  # of a replica set's members the one that takes writes
            if address is None or address[1] is None:
                raise WorkshopError(
                    "a network distance needs a MongoDB that is reached by TCP, found a Unix socket: "
                    "name a mongodb://host:port URL in WORKSHOP_MONGO_URL"
                )
            proxy = self._proxy("mongo", address[0], address[1])
            url = urlsplit(near)
            # A driver that looks for the members of the replica set finds their own addresses and leaves the proxy.
            leave = {"replicaset", "directconnection", "loadbalanced", "srvservicename", "srvmaxhosts"}
            query = {k: v for k, v in parse_qsl(url.query) if k.lower() not in leave} | {"directConnection": "true"}
            given = parse_uri(near)["options"]  # a mongodb+srv URL has options in the DNS too
            if "authsource" in given:
                query = {k: v for k, v in query.items() if k.lower() != "authsource"} | {
                    "authSource": given["authsource"]
                }
            if given.get("tls"):
                query = {k: v for k, v in query.items() if k.lower() not in ("tls", "ssl")} | {
                    "tls": "true",
                    "tlsAllowInvalidHostnames": "true",
                }
            self._urls["mongo"] = _through(url._replace(scheme="mongodb", path=url.path or "/"), proxy, query)
        return self._urls["mongo"]

    @property
    def servers(self) -> list[str]:
        """The servers that were asked for so far through a proxy, in that order."""
        return list(self._proxies)

    def counts(self, server: str | None = None) -> Counts:
        """Connections, round trips and bytes to `server` since the start or the last `reset()`; see `Proxy`.

        `server` is "postgres", "redis" or "mongo"; it may be left out when only one was used.
        """
        return self._used(server).counts()

    def reset(self, server: str | None = None) -> None:
        """Count from zero again."""
        self._used(server).reset()

    def _used(self, server: str | None) -> Proxy:
        if self._direct:
            raise WorkshopError("nothing is counted at distance 0, where there is no proxy: ask for at_distance(0.5)")
        if server is None and len(self._proxies) == 1:
            (server,) = self._proxies
        if server not in self._proxies:
            raise WorkshopError(
                f"expected one of the servers used at this distance ({', '.join(self._proxies) or 'none yet'}), "
                f"found {server!r}: connect through .postgres, .redis_url or .mongo_url first"
            )
        return self._proxies[server]

    def _proxy(self, server: str, host: str, port: int) -> Proxy:
        if self._over:
            raise WorkshopError("this distance has ended: use its URLs inside the with block")
        if server not in self._proxies:
            proxy = Proxy(host, port, self.round_trip_ms, self.mbit_s)
            proxy.__enter__()
            self._proxies[server] = proxy
        return self._proxies[server]


def _through(url: SplitResult, proxy: Proxy, query: dict[str, str]) -> str:
    """`url` with the proxy's address; user and password stay as they are written."""
    login, at, _ = url.netloc.rpartition("@")
    return url._replace(netloc=f"{login}{at}{proxy.host}:{proxy.port}", query=urlencode(query)).geturl()


@contextmanager
def pinging(servers: Servers, which: str) -> Iterator[Callable[[], object]]:
    """The smallest request that a server answers, on one warm connection; `which`: "postgres", "redis", "mongo"."""
    if which == "postgres":
        with psycopg.connect(servers.dsn, autocommit=True) as connection:
            yield lambda: connection.execute("")  # an empty query: the protocol's own ping
    elif which == "redis":
        with redis.Redis.from_url(servers.redis_url) as client:
            yield client.ping
    else:
        with pymongo.MongoClient(servers.mongo_url) as client:
            yield lambda: client.admin.command("ping")


def round_trip(ping: Callable[[], object], times: int = 200, budget_s: float = 2.0) -> float:
    """The median time of a ping, in seconds; of at least three, and `times` where the budget allows."""
    ping()
    samples: list[float] = []
    while len(samples) < times and (len(samples) < 3 or sum(samples) < budget_s):
        start = time.perf_counter()
        ping()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)
