"""Servers with the rights that servers give: a CREATEDB role, a Redis user and a MongoDB user without more.

    python tests/limited.py [--statistics] -- COMMAND ...

runs COMMAND with `WORKSHOP_POSTGRES_URL`, `WORKSHOP_REDIS_URL` and `WORKSHOP_MONGO_URL` set to private servers: Debian's
PostgreSQL 15 where it is installed (else the workbook's), without pg_stat_statements or, with `--statistics`, with the
extension and without the right to read what others did; Redis with one database; MongoDB with readWrite on `workshop_*`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pymongo
import redis

from workshop.servers import mongo_server, postgres_server, redis_server
from workshop.servers.process import as_account, give, free_port

DEBIAN = Path("/usr/lib/postgresql/15/bin")
PASSWORD = "limited"


@contextlib.contextmanager
def _running(command: list, log: Path, ready, **options) -> Iterator[None]:
    with open(log, "w") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output, **options)
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                ready()
                break
            except Exception:
                if process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-500:]}") from None
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def postgres(folder: Path, statistics: bool = False) -> Iterator[str]:
    """The URL of a role that has CREATEDB and nothing else."""
    tools = DEBIAN if DEBIAN.is_dir() else postgres_server.programs().folder
    data, port = folder / "postgres", free_port()
    data.mkdir(mode=0o700)
    give(data)
    subprocess.run(
        [tools / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"],
        check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_account(),
    )
    command = [tools / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-k", ""]
    command += ["-c", "shared_preload_libraries=pg_stat_statements"] if statistics else []
    admin = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    with _running(command, folder / "postgres.log", lambda: psycopg.connect(admin).close(), cwd=folder, **as_account()):
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE learner LOGIN CREATEDB PASSWORD '{PASSWORD}'")
            if statistics:
                connection.execute("CREATE EXTENSION pg_stat_statements")
        yield f"postgresql://learner:{PASSWORD}@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def redis_with_one_database(folder: Path) -> Iterator[str]:
    """The URL of a user without CONFIG, INFO and CLIENT LIST, on a server with one database."""
    port = free_port()
    command = [redis_server.programs() / "redis-server", "--port", port, "--bind", "127.0.0.1", "--databases", 1]
    command += ["--dir", folder, "--save", ""]
    admin = redis.Redis(port=port)
    with _running(command, folder / "redis.log", admin.ping):
        admin.acl_setuser(
            "learner", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"],
            categories=["+@all", "-@admin", "-@dangerous"], commands=["+info|server", "+flushdb", "+keys"],
        )
        yield f"redis://learner:{PASSWORD}@127.0.0.1:{port}/0"


@contextlib.contextmanager
def mongo(folder: Path) -> Iterator[str]:
    """The URL of a user with readWrite and nothing else: MongoDB has no patterns for databases' names, so on any."""
    data, port = folder / "mongo", free_port()
    data.mkdir()
    (folder / "key").write_text("limited" * 10)
    (folder / "key").chmod(0o600)
    command = [mongo_server.programs() / "mongod", "--dbpath", data, "--port", port, "--bind_ip", "127.0.0.1"]
    command += ["--replSet", "limited", "--keyFile", folder / "key", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]
    admin = pymongo.MongoClient(port=port, directConnection=True, serverSelectionTimeoutMS=500)

    def answers() -> None:
        admin.admin.command("hello")

    with _running(command, folder / "mongo.log", answers):
        admin.admin.command("replSetInitiate", {"_id": "limited", "members": [{"_id": 0, "host": f"127.0.0.1:{port}"}]})
        while not admin.admin.command("hello")["isWritablePrimary"]:
            time.sleep(0.05)
        admin.admin.command("createUser", "root", pwd=PASSWORD, roles=["root"])
        admin.close()
        with pymongo.MongoClient(f"mongodb://root:{PASSWORD}@127.0.0.1:{port}/?directConnection=true") as root:
            root.admin.command("createUser", "learner", pwd=PASSWORD, roles=["readWriteAnyDatabase"])
        yield f"mongodb://learner:{PASSWORD}@127.0.0.1:{port}/?replicaSet=limited&authSource=admin"


@contextlib.contextmanager
def servers(statistics: bool = False) -> Iterator[dict[str, str]]:
    """The three, as environment variables; they and their data are gone after the block."""
    folder = Path(tempfile.mkdtemp(prefix="workshop-limited-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with contextlib.ExitStack() as stack:
            yield {
                "WORKSHOP_POSTGRES_URL": stack.enter_context(postgres(folder, statistics)),
                "WORKSHOP_REPLICA_URLS": "",
                "WORKSHOP_REDIS_URL": stack.enter_context(redis_with_one_database(folder)),
                "WORKSHOP_MONGO_URL": stack.enter_context(mongo(folder)),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    cut = sys.argv.index("--")
    with servers("--statistics" in sys.argv[:cut]) as environment:
        sys.exit(subprocess.run(sys.argv[cut + 1 :], env={**os.environ, **environment}).returncode)
