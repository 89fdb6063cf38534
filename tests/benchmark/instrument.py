"""How true the instrument is: comparisons, a pooled query, the proxy."""

from __future__ import annotations

import re
import statistics
import subprocess
import timeit

import psycopg
from entry import entry
from sqlalchemy import create_engine, text

from workshop.far.proxy import Proxy
from workshop.measure.compare import compare
from workshop.servers import lifecycle, postgres_server
from workshop.shop import seed

RUNS = 100


def _nothing() -> None:
    pass


def around_nothing() -> dict:
    """compare()'s time for an empty function against timeit's, in the same minute, taken in turns."""
    ours, its = [], []
    for _ in range(8):
        ours.append(compare(_nothing, _nothing, pairs=20).after_s)
        its.append(statistics.median(timeit.repeat(_nothing, number=200_000, repeat=5)) / 200_000)
    ratio = statistics.median(a / b for a, b in zip(ours, its, strict=True))
    return entry(ratio, "times", at_most=1.02, at_least=0.98, compare_s=ours, timeit_s=its)


def _turns(count: int) -> int:
    """Real work on the processor."""
    x = 1
    for _ in range(count):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
    return x


def _loop(count: int):
    def run() -> None:
        _turns(count)

    return run


def false_positives(runs: int = RUNS) -> dict:
    """Of 100 comparisons of identical code, half loops and half queries, those called anything but "~"."""
    url = lifecycle.up(("postgres",)).postgres
    verdicts = []
    with psycopg.connect(postgres_server.dsn(url), autocommit=True) as connection:

        def query() -> None:
            connection.execute("SELECT count(*) FROM generate_series(1, 1000)").fetchone()

        for number in range(runs):
            work = query if number % 2 else _loop(3000)
            verdicts.append(compare(work, work, budget_s=2).verdict)
    return entry(100 * sum(v != "~" for v in verdicts) / runs, "percent", at_most=5, verdicts=verdicts)


def power(ratio: float, runs: int = 40) -> dict:
    """The share of comparisons that find a true ratio: slightly faster or more for 1.05, faster for 1.2."""
    wanted = {"faster"} if ratio > 1.15 else {"faster", "slightly faster"}
    found = [compare(_loop(round(3000 * ratio)), _loop(3000), budget_s=2) for _ in range(runs)]
    share = 100 * sum(result.verdict in wanted for result in found) / runs
    return entry(share, "percent", at_least=90, ratios=[r.ratio for r in found], verdicts=[r.verdict for r in found])


def pooled_query() -> dict:
    """A SELECT by primary key over SQLAlchemy's pool in AUTOCOMMIT against pgbench -S, one client each.

    Both are latencies; the ratio is what SQLAlchemy and Python add to a C client. There is no goal: it is told.
    """
    servers = lifecycle.up(("postgres",))
    seed.ensure(servers)
    name = "workshop_bench_pgbench"
    tools = postgres_server.programs()
    environment = _login(servers.postgres)
    with postgres_server.connect(servers.postgres) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}")
        admin.execute(f"CREATE DATABASE {name}")
    try:
        run = {"env": environment, "capture_output": True, "text": True, "check": True, "timeout": 120}
        subprocess.run([tools / "pgbench", "--initialize", "--quiet", "--scale=1", name], **run)
        engine = create_engine(servers.postgres.set(database=name), isolation_level="AUTOCOMMIT")
        statement = text("SELECT abalance FROM pgbench_accounts WHERE aid = :aid")

        def ask() -> None:
            for aid in range(1, 201):
                with engine.connect() as connection:
                    connection.scalar(statement, {"aid": aid})

        ours, its = [], []
        for _ in range(5):
            ours.append(min(timeit.repeat(ask, number=1, repeat=3)) / 200)
            said = subprocess.run([tools / "pgbench", "--select-only", "--time=2", "--no-vacuum", name], **run).stdout
            its.append(float(re.search(r"latency average = ([\d.]+) ms", said)[1]) / 1000)
        engine.dispose()
    finally:
        with postgres_server.connect(servers.postgres) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    return entry(statistics.median(ours) / statistics.median(its), "times", sqlalchemy_s=ours, pgbench_s=its)


def _login(url) -> dict[str, str]:
    import os

    login = {"PGHOST": url.host, "PGPORT": str(url.port), "PGUSER": url.username, "PGPASSWORD": url.password}
    return {**os.environ, **login}


def added_time(round_trip_ms: float) -> dict:
    """The median of what the proxy adds to PostgreSQL's answer, over what was asked for."""
    url = lifecycle.up(("postgres",)).postgres
    ratios = []
    for _ in range(5):
        with Proxy(url.host, url.port, round_trip_ms) as proxy:
            far = url.set(host=proxy.host, port=proxy.port)
            near_s, far_s = (_ping(each, 400 if round_trip_ms < 5 else 60) for each in (url, far))
            ratios.append((far_s - near_s) * 1000 / round_trip_ms)
    return entry(statistics.median(ratios), "times", at_most=1.05, at_least=0.95, ratios=ratios)


def _ping(url, times: int) -> float:
    with postgres_server.connect(url) as connection:
        connection.execute("")
        return statistics.median(timeit.repeat(lambda: connection.execute(""), number=1, repeat=times))
