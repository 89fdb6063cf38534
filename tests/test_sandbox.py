"""A lesson's databases go when its process does, and nothing else ever goes."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psycopg
import pymongo
import pytest
import redis
from psycopg import sql

from workshop import sandbox
from workshop.servers.postgres_server import dsn
from workshop.shop import postgres_loader, seed

WANTED = ("postgres", "mongo", "redis")


@pytest.fixture(scope="module")
def shop(servers):
    seed.ensure(servers)
    return servers


def databases(servers) -> set[str]:
    with psycopg.connect(dsn(servers.postgres)) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database")}


def stores_holding(servers, box: dict) -> set[str]:
    """Which servers still hold something of the sandbox."""
    found = {"postgres"} if box["name"] in databases(servers) else set()
    with pymongo.MongoClient(servers.mongo) as client:
        found |= {"mongo"} if box["name"] in client.list_database_names() else set()
    with redis.Redis.from_url(servers.redis, decode_responses=True) as client:
        registered = client.hexists(sandbox.REDIS_REGISTRY, box["redis_database"])
    with redis.Redis.from_url(sandbox.redis_database_url(servers.redis, box["redis_database"])) as client:
        found |= {"redis"} if registered or client.dbsize() else set()
    return found


def wait_until_gone(servers, box: dict) -> None:
    give_up = time.monotonic() + 20
    while stores_holding(servers, box):
        assert time.monotonic() < give_up, f"still in {stores_holding(servers, box)}"
        time.sleep(0.1)


LESSON = """
import json, sys
from dataclasses import asdict
import redis
from workshop import sandbox
from workshop.servers import lifecycle
box = sandbox.create(lifecycle.up(), "test", ("postgres", "mongo", "redis"))
if {watched}:
    watcher = sandbox.watch(box)
redis.Redis.from_url(box.redis).set("something", "of the lesson")
print(json.dumps(asdict(box)), flush=True)
sys.stdin.read()
"""


def start_lesson(watched: bool) -> tuple[subprocess.Popen, dict]:
    process = subprocess.Popen(
        [sys.executable, "-c", LESSON.format(watched=watched)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, json.loads(process.stdout.readline())


def test_a_killed_kernel_leaves_nothing(shop):
    process, box = start_lesson(watched=True)
    assert stores_holding(shop, box) == set(WANTED)
    process.kill()
    process.wait(10)
    wait_until_gone(shop, box)


def test_what_a_power_cut_left_is_dropped_by_the_next_lesson(shop):
    process, box = start_lesson(watched=False)  # as if the watcher had been killed too
    sandbox.reap(shop)
    assert stores_holding(shop, box) == set(WANTED)  # its process lives: hands off
    process.kill()
    process.wait(10)
    assert stores_holding(shop, box) == set(WANTED)
    assert box["name"] in sandbox.reap(shop)
    assert stores_holding(shop, box) == set()


def test_what_the_workbook_did_not_make_is_never_dropped(shop):
    lookalike = f"{sandbox.PREFIX}of_somebody_else"
    with psycopg.connect(dsn(shop.postgres), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {lookalike}")
        try:
            for comment in (
                None,
                "a colleague's",
                '{"workshop": "sandbox", "home": "another", "pid": 1, "created": 0}',
            ):
                connection.execute(sql.SQL(f"COMMENT ON DATABASE {lookalike} IS {{}}").format(sql.Literal(comment)))
                assert sandbox.reap(shop) == []
                assert lookalike in databases(shop)
        finally:
            connection.execute(f"DROP DATABASE {lookalike}")


def test_a_sandbox_is_a_copy_with_every_row(shop):
    box = sandbox.create(shop, "test", WANTED)
    try:
        with psycopg.connect(dsn(box.postgres)) as connection:
            rows = {
                table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("customers", "products", "orders", "order_items")
            }
        assert rows == postgres_loader.seeded_postgres(shop.postgres)["rows"]
        with pymongo.MongoClient(shop.mongo) as client:
            assert client[box.name].profiles.estimated_document_count() == rows["customers"]
        with redis.Redis.from_url(box.redis) as client:
            assert client.dbsize() == 0
    finally:
        box.drop()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:p@h:1/0", "redis://:p@h:1/7"),
        ("redis://:p@h:1", "redis://:p@h:1/7"),
        ("rediss://u:p@h:1/2?ssl_cert_reqs=none", "rediss://u:p@h:1/7?ssl_cert_reqs=none"),
    ],
)
def test_redis_database_url(url, expected):
    assert sandbox.redis_database_url(url, 7) == expected
