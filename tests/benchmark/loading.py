"""How fast servers start, the shop is loaded and copies are made."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from entry import abba, entry, seconds
from psycopg import sql

from workshop import sandbox
from workshop.servers import lifecycle, mongo_server, postgres_server
from workshop.shop import DATABASE, files, postgres_loader, seed
from workshop.state import CHECKOUT

TEMPLATE = "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY"


def _environment(url) -> dict[str, str]:
    """For psql and createdb; the password goes by the environment, unseen in a list of processes."""
    login = {"PGHOST": url.host, "PGPORT": str(url.port), "PGUSER": url.username, "PGPASSWORD": url.password}
    return {**os.environ, **login, "PGCLIENTENCODING": "UTF8"}


def loader(pairs: int = 4) -> dict:
    """The loader's speed over that of `psql \\copy`, all four tables.

    Both fill the same bare table in one transaction with the same options. The loader starts from the shipped files: it
    expands them and hashes every byte; psql is given plain files that were expanded beforehand.
    """
    servers = lifecycle.up(("postgres",))
    database = f"workshop_bench_{secrets.token_hex(4)}"
    tools = postgres_server.programs()
    total = {"loader": 0.0, "psql": 0.0}
    samples: dict[str, dict] = {}
    with postgres_server.connect(servers.postgres) as admin:
        admin.execute(f"CREATE DATABASE {database} TEMPLATE template0 ENCODING 'UTF8'")
    try:
        with (
            tempfile.TemporaryDirectory(prefix="workshop-bench-") as folder,
            postgres_server.connect(servers.postgres, database) as connection,
        ):
            cursor = connection.cursor()
            cursor.execute("SET synchronous_commit = off")
            for table in files.TABLES:
                path = Path(folder) / f"{table}.csv"
                path.write_bytes(b"".join(files.table_stream(table)))
                postgres_loader.create_bare_table(cursor, table)
                columns = ", ".join(files.copy_columns(table))
                script = (
                    f"SET synchronous_commit = off;\nBEGIN;\nTRUNCATE {table};\n"
                    f"\\copy {table} ({columns}) FROM '{path}' WITH (FORMAT csv, HEADER, FREEZE)\nCOMMIT;\n"
                )

                def load(table: str = table) -> None:
                    with connection.transaction():
                        cursor.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))
                        postgres_loader.copy_table(cursor, table, files.table_stream(table), lambda rows: None)

                def psql(script: str = script) -> None:
                    subprocess.run(
                        [tools / "psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", database],
                        input=script,
                        env=_environment(servers.postgres),
                        text=True,
                        check=True,
                        timeout=300,
                    )

                load(), psql()
                ours, its = abba(load, psql, pairs)
                samples[table] = {"loader_s": ours, "psql_s": its}
                total["loader"] += statistics.median(ours)
                total["psql"] += statistics.median(its)
    finally:
        with postgres_server.connect(servers.postgres) as admin:
            admin.execute(f"DROP DATABASE {database} WITH (FORCE)")
    return entry(total["psql"] / total["loader"], "times", at_least=0.95, **samples)


def one_copy(pairs: int = 6) -> dict:
    """A sandbox of PostgreSQL alone against createdb -T, both with dropping what was made."""
    servers = lifecycle.up(("postgres",))
    seed.ensure(servers)
    tools = postgres_server.programs()
    run = {"env": _environment(servers.postgres), "check": True, "timeout": 120}

    def ours() -> None:
        sandbox.create(servers, "bench", ("postgres",)).drop()

    def createdb() -> None:
        name = f"workshop_bench_{secrets.token_hex(4)}"
        subprocess.run([tools / "createdb", "-T", DATABASE, "--strategy=file_copy", name], **run)
        subprocess.run([tools / "dropdb", "--force", name], **run)

    ours(), createdb()
    sandboxes, databases = abba(ours, createdb, pairs)
    ratio = statistics.median(sandboxes) / statistics.median(databases)
    return entry(ratio, "times", at_most=1.2, sandbox_s=sandboxes, createdb_s=databases)


def copies_at_once(count: int = 12, pairs: int = 2) -> dict:
    """Twelve sandboxes opened at once against twelve bare CREATE DATABASE at once; dropping is not timed."""
    servers = lifecycle.up(("postgres",))
    seed.ensure(servers)

    def ours() -> float:
        with ThreadPoolExecutor(count) as pool:
            made: list[sandbox.Sandbox] = []
            work = range(count)
            took = seconds(
                lambda: made.extend(pool.map(lambda _: sandbox.create(servers, "bench", ("postgres",)), work))
            )
            list(pool.map(lambda box: box.drop(), made))
        return took

    def bare() -> float:
        names = [f"workshop_bench_{secrets.token_hex(4)}" for _ in range(count)]

        def create(name: str) -> None:
            with postgres_server.connect(servers.postgres) as connection:
                connection.execute(sql.SQL(TEMPLATE).format(sql.Identifier(name), sql.Identifier(DATABASE)))

        with ThreadPoolExecutor(count) as pool:
            took = seconds(lambda: list(pool.map(create, names)))
            list(pool.map(lambda name: sandbox.drop_postgres(servers.postgres, name), names))
        return took

    taken: dict[str, list[float]] = {"sandboxes_s": [], "bare_s": []}
    for number in range(pairs):
        sides = [("sandboxes_s", ours), ("bare_s", bare)]
        for name, work in sides if number % 2 == 0 else reversed(sides):
            taken[name].append(work())
    ratio = statistics.median(taken["sandboxes_s"]) / statistics.median(taken["bare_s"])
    return entry(ratio, "times", at_most=1.3, **taken)


LOAD = """
import resource, sys, time
from workshop.servers import lifecycle
from workshop.shop import mongo_loader, postgres_loader

def peak_mb():
    if sys.platform == "linux":  # where ru_maxrss begins with the peak of the process that started this one
        return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

database, scale, (postgres, mongo) = sys.argv[1], float(sys.argv[2]), (lifecycle.up().postgres, lifecycle.up().mongo)
before_mb = peak_mb()
start = time.perf_counter()
postgres_loader.seed_postgres(postgres, scale, database=database)
between = time.perf_counter()
mongo_loader.seed_mongo(mongo, database, scale)
end = time.perf_counter()
print(between - start, end - between, peak_mb() - before_mb)
"""


def load_by_scale(scales: tuple[float, ...] = (0.2, 1, 5)) -> dict:
    """The exponent with which the time to load both stores grows with the scale: 1 is linear.

    Samples: the seconds of each store, its bytes on disk, and how much memory (MB) the loader took at its peak.
    """
    servers = lifecycle.up()
    found: dict[str, dict] = {}
    for scale in scales:
        database = f"workshop_bench_{secrets.token_hex(4)}"
        command = [sys.executable, "-c", LOAD, database, str(scale)]
        try:
            run = {"cwd": CHECKOUT, "capture_output": True, "text": True, "check": True, "timeout": 1800}
            postgres_s, mongo_s, peak_mb = map(float, subprocess.run(command, **run).stdout.split())
            with postgres_server.connect(servers.postgres) as admin, mongo_server.connect(servers.mongo) as client:
                (size,) = admin.execute("SELECT pg_database_size(%s)", [database]).fetchone()
                stored = client[database].command("dbStats")["totalSize"]
            took = {"postgres_s": postgres_s, "mongo_s": mongo_s, "peak_mb": peak_mb}
            found[str(scale)] = {**took, "postgres_bytes": size, "mongo_bytes": stored}
        finally:
            with postgres_server.connect(servers.postgres) as admin, mongo_server.connect(servers.mongo) as client:
                client.drop_database(database)
                for name in (database, f"{database}_loading"):
                    if admin.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is not None:
                        admin.execute(f"ALTER DATABASE {name} IS_TEMPLATE false")
                        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    whole = {scale: took["postgres_s"] + took["mongo_s"] for scale, took in found.items()}
    least, most = str(scales[0]), str(scales[-1])
    exponent = math.log(whole[most] / whole[least]) / math.log(scales[-1] / scales[0])
    return entry(exponent, "", at_least=0.8, at_most=1.2, **found)


STEPS = """
import time
start = time.perf_counter()
def step(name):
    global start
    now = time.perf_counter()
    print(name, now - start, flush=True)
    start = now
from workshop.servers import lifecycle
from workshop.shop import seed
from workshop.shop.mongo_loader import seed_mongo
from workshop.shop.postgres_loader import seed_postgres
step("imports")
servers = lifecycle.up(("postgres",))
step("PostgreSQL made and started")
servers = lifecycle.up(("redis", "mongo"))
step("Redis and MongoDB made and started")
seed_postgres(lifecycle.up(("postgres",)).postgres)
step("PostgreSQL seeded")
seed_mongo(servers.mongo)
step("MongoDB seeded")
"""


def up_from_nothing() -> dict:
    """`python -m workshop up` in an empty state folder; and its steps, one after the other, in another one."""
    whole, steps = [], {}
    for part in ("whole", "steps"):
        folder = Path(tempfile.mkdtemp(prefix="workshop-bench-", dir="/tmp"))
        folder.chmod(0o711)  # the account that runs PostgreSQL for root passes through it
        urls = dict.fromkeys(("POSTGRES_URL", "REPLICA_URLS", "REDIS_URL", "MONGO_URL"), "")
        environment = {**os.environ, **{f"WORKSHOP_{k}": v for k, v in urls.items()}, "WORKSHOP_STATE": str(folder)}
        run = {"cwd": CHECKOUT, "env": environment, "capture_output": True, "text": True, "check": True, "timeout": 300}
        try:
            if part == "whole":
                whole.append(seconds(lambda run=run: subprocess.run([sys.executable, "-m", "workshop", "up"], **run)))
            else:
                lines = subprocess.run([sys.executable, "-c", STEPS], **run).stdout.splitlines()
                steps = {name: float(took) for name, took in (line.rsplit(" ", 1) for line in lines)}
        finally:
            subprocess.run([sys.executable, "-m", "workshop", "down"], **run)
            shutil.rmtree(folder, ignore_errors=True)
    return entry(whole[0], "s", at_most=8, whole_s=whole, steps_s=steps)


def up_when_running(times: int = 7) -> dict:
    """`python -m workshop up` where all runs and is seeded: the median."""
    command = [sys.executable, "-m", "workshop", "up"]
    run = {"cwd": CHECKOUT, "capture_output": True, "check": True, "timeout": 120}
    subprocess.run(command, **run)
    taken = [seconds(lambda: subprocess.run(command, **run)) for _ in range(times)]
    return entry(statistics.median(taken), "s", at_most=0.4, up_s=taken)
