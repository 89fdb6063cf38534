"""The counters, against real servers: each number exactly, and what must not be counted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import limited
import pandas as pd
import psycopg
import pymongo
import pytest
import redis
import redis.asyncio
from redis.cache import CacheConfig
from sqlalchemy import NullPool, Select, String, create_engine, insert, literal, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from workshop.observe import mongo_probe
from workshop.observe.observation import NotCounted, Observation, quantity
from workshop.observe.observer import Observer
from workshop.observe.postgres_probe import PostgresProbe
from workshop.servers.postgres_server import dsn


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String)


def is_not_counted(value, reason: str) -> bool:
    """Whether a counter's value says that it was not counted, for this reason."""
    assert isinstance(value, NotCounted)
    assert reason in value.reason
    return True


@pytest.fixture(scope="module")
def limited_servers() -> Iterator[Callable[..., str]]:
    """`limited_servers(limited.postgres, "own")`: the URL of such a server, started once for all tests here."""
    started: dict[tuple, str] = {}
    with contextlib.ExitStack() as stack:

        def url(server: Callable, *options: Any) -> str:
            if (server, options) not in started:
                try:
                    started[server, options] = stack.enter_context(server(*options))
                except FileNotFoundError as missing:
                    pytest.skip(str(missing))
            return started[server, options]

        yield url


@pytest.fixture
def watcher(servers, scratch):
    return Observer(servers.postgres, scratch.database)


@pytest.fixture
def engine(scratch):
    engine = create_engine(scratch)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def ask(engine, times: int = 1) -> None:
    for _ in range(times):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1")).all()


# --- PostgreSQL ---------------------------------------------------------------------------------------------


def test_null_pool_connects_each_time_and_a_pool_once(scratch, watcher):
    with watcher.watch() as seen:
        ask(create_engine(scratch, poolclass=NullPool), 20)
    assert (seen.connections, seen.statements, seen.rows, seen.rollbacks) == (20, 20, 20, 20)
    pooled = create_engine(scratch)
    with watcher.watch("connections") as seen:
        ask(pooled, 20)
    assert (seen.connections, seen.statements, seen.rollbacks, seen.commits) == (1, 20, 20, 0)
    with watcher.watch() as seen:
        ask(pooled, 20)
    assert (seen.connections, seen.statements) == (0, 20)
    pooled.dispose()


def test_connections_opened_by_threads_at_once_are_all_counted(scratch, watcher):
    for _ in range(5):
        with contextlib.ExitStack() as kept, watcher.watch() as seen:

            def connect(kept: contextlib.ExitStack = kept) -> None:
                for _ in range(3):
                    kept.enter_context(contextlib.closing(psycopg.connect(dsn(scratch))))

            threads = [threading.Thread(target=connect) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert seen.connections == 24


def test_a_login_that_the_server_counts_late_is_counted_in_its_own_block():
    # As PostgreSQL 18 did in one of sixty rounds of the test above: 24 logins of 25, and all of them ten seconds later.
    probe = PostgresProbe(make_url("postgresql://127.0.0.1/shop"), None, "primary")
    start, both = {1, 2}, {1, 2, 3, 4}
    readings = [(7, start), (8, both), (8, {4}), (9, {4}), (9, set()), (11, {5}), (11, {5, 6})]
    assert [probe._opened(1, *reading) for reading in readings] == [7, 9, 9, 9, 9, 11, 12]
    assert probe._opened(1, 3, {5, 6}) == 3  # after a reset
    assert probe._opened(2, 3, {7}) == 3  # made anew


def test_statistics_that_are_reset_and_a_database_made_anew_are_said(scratch, watcher):
    for _ in range(3):
        psycopg.connect(dsn(scratch)).close()
    with watcher.watch() as seen, psycopg.connect(dsn(scratch), autocommit=True) as connection:
        connection.execute("SELECT pg_stat_reset()")
    assert is_not_counted(seen.connections, "reset, or the database made anew")
    with watcher.watch() as seen, psycopg.connect(dsn(watcher._probes[-1].url), autocommit=True) as elsewhere:
        elsewhere.execute(f"DROP DATABASE {scratch.database} WITH (FORCE)")
        elsewhere.execute(f"CREATE DATABASE {scratch.database}")
    assert is_not_counted(seen.connections, "reset, or the database made anew")


@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}, {"isolation_level": "SERIALIZABLE"}])
def test_a_cold_engine_counts_like_a_warm_one(scratch, watcher, options):
    engine = create_engine(scratch, **options)
    both = []
    for _ in range(2):
        with watcher.watch("blocks") as seen:
            ask(engine, 3)
            with engine.begin() as connection:
                if "isolation_level" not in options:
                    connection.begin_nested().commit()
                connection.execute(text("SELECT 2"))
        both.append(seen.counts)
    assert both[0].pop("connections") == 1
    assert both[1].pop("connections") == 0
    assert both[0] == both[1]
    assert both[0]["statements"] == 4
    engine.dispose()


def test_by_statement_lists_set_up_apart(scratch, watcher):
    with watcher.watch() as seen:
        ask(create_engine(scratch, poolclass=NullPool))
    kinds = [row[0] for row in seen.by_statement().rows]
    assert kinds.count("set-up") == 5
    assert seen.by_statement(control=False).rows == [("statement", 1, 1, "SELECT $1")]


def test_insert_forms(engine, scratch, watcher):
    rows = [{"name": f"n{i}"} for i in range(200)]
    with watcher.watch() as seen, engine.begin() as connection:
        connection.execute(insert(Item).returning(Item.id), rows).all()
    assert (seen.statements, seen.rows, seen.commits, seen.rollbacks) == (1, 200, 1, 0)
    with watcher.watch() as seen, engine.begin() as connection:
        connection.execute(insert(Item), rows)
    assert (seen.statements, seen.rows, seen.commits) == (200, 200, 1)
    with psycopg.connect(dsn(scratch)) as connection, connection.cursor() as cursor:
        with watcher.watch() as seen:
            cursor.executemany("INSERT INTO item (name) VALUES (%s)", [("a",)] * 50)
            with cursor.copy("COPY item (name) FROM STDIN") as copy:
                copy.write_row(("b",))
        assert (seen.statements, seen.rows, seen.connections) == (51, 51, 0)
    with watcher.watch() as seen, Session(engine) as session:
        session.add_all(Item(name="x") for _ in range(10))
        session.flush()
        session.rollback()
    assert (seen.statements, seen.rows, seen.commits, seen.rollbacks) == (1, 10, 0, 1)


def test_rollback_to_a_savepoint_is_no_rollback(engine, watcher):
    with watcher.watch() as seen, engine.connect() as connection:
        connection.begin_nested().rollback()
        connection.execute(text("/* BEGIN */ SELECT 1"))
        connection.execute(text("/* a comment\n */ -- and another\n SAVEPOINT here"))
        connection.commit()
    assert (seen.statements, seen.commits, seen.rollbacks) == (1, 1, 0)


def nested(connection, end: str) -> None:
    """A savepoint with a statement in it that ends by RELEASE ("commit") or ROLLBACK TO ("rollback"), and one in it."""
    outer = connection.begin_nested()
    connection.execute(text("SELECT 1"))
    inner = connection.begin_nested()
    connection.execute(text("SELECT 1"))
    getattr(inner, end)()
    getattr(outer, end)()


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("cold", [{}, {"isolation_level": "SERIALIZABLE"}, {"isolation_level": "AUTOCOMMIT"}, None])
def test_savepoints_with_and_without_a_new_engine(engine, scratch, watcher, cold, commit, end):
    """The set-up of a `cold` engine ends by ROLLBACK or COMMIT; savepoints of another engine must not decide which."""
    ask(engine)
    new = create_engine(scratch, **cold) if cold is not None else None
    with watcher.watch() as seen:
        with engine.connect() as connection:
            nested(connection, end)
            connection.commit() if commit else connection.rollback()
        ask(engine)  # ends by ROLLBACK
        with engine.begin() as connection:
            connection.execute(text("SELECT 1"))
        if new:
            with new.connect() as connection:
                connection.execute(text("SELECT 1"))
    autocommit = cold == {"isolation_level": "AUTOCOMMIT"}
    expected = (1 + commit, 2 - commit + (cold is not None and not autocommit))
    assert (seen.commits, seen.rollbacks) == expected
    assert seen.statements == 4 + (new is not None)
    if new:
        new.dispose()


def test_nested_sessions_of_a_new_engine(engine, scratch, watcher):
    new = create_engine(scratch)
    with watcher.watch() as seen, Session(new) as session:
        for number in range(10):
            with contextlib.suppress(ZeroDivisionError), session.begin_nested():
                session.add(Item(name=str(number)))
                session.flush()
                if number % 2:
                    raise ZeroDivisionError
        session.commit()
    new.dispose()
    assert (seen.commits, seen.rollbacks, seen.statements) == (1, 0, 10)


def test_nested_transactions_of_psycopg(engine, scratch, watcher):
    """Their savepoints are named as those of a new engine's set-up are."""
    with watcher.watch() as seen:
        with psycopg.connect(dsn(scratch)) as connection, connection.transaction():
            with connection.transaction():
                connection.execute("SELECT 1")
            with contextlib.suppress(ZeroDivisionError), connection.transaction():
                raise ZeroDivisionError
        new = create_engine(scratch, isolation_level="AUTOCOMMIT")
        ask(new)
        new.dispose()
    assert (seen.commits, seen.rollbacks) == (1, 0)


def test_what_a_function_runs_belongs_to_its_caller(engine, watcher):
    with watcher.watch() as seen, engine.connect() as connection:
        connection.execute(text("SET LOCAL pg_stat_statements.track = 'all'"))
        connection.execute(text("DO $$BEGIN PERFORM count(*) FROM item; PERFORM count(*) FROM item; END$$"))
    assert seen.statements == 2


def test_writes_make_wal_and_reads_do_not(engine, scratch, watcher):
    with watcher.watch() as seen, engine.begin() as connection:
        connection.execute(insert(Item), {"name": "a"})
    assert seen.wal_bytes > 0
    with psycopg.connect(dsn(scratch), autocommit=True) as connection:
        connection.execute("VACUUM item")  # sets the hint bits, which a read would log on a cluster with checksums
    with watcher.watch() as seen, engine.connect() as connection:
        connection.execute(select(Item)).all()
    assert (seen.wal_bytes, seen.rows) == (0, 1)
    assert 0 < seen.blocks < 5


def test_only_the_watched_database_counts(engine, servers, watcher):
    other = create_engine(servers.postgres, poolclass=NullPool)
    with watcher.watch() as seen:
        ask(other, 3)
    assert not any(seen.counts.values())
    assert repr(seen) == "nothing was counted"


def test_the_last_select_of_an_open_transaction_is_reported(engine, watcher):
    one: Select = select(literal(1))  # with a parameter: without, the driver uses the simple protocol
    with engine.connect() as connection:
        with watcher.watch() as seen:
            connection.execute(one).all()
        assert seen.open_transaction
        assert seen.notes[0].startswith("a transaction is still open")
        with watcher.watch() as seen:
            connection.commit()
        assert seen.open_transaction
        assert seen.notes[0].startswith("a transaction was already open")
        connection.execute(one).all()
        with watcher.watch() as seen:  # an open transaction that does nothing in the block disturbs nothing
            ask(engine)
        assert (seen.statements, seen.notes) == (1, [])
    with watcher.watch() as seen, engine.connect() as connection:
        connection.execute(one).all()
    assert (seen.statements, seen.open_transaction, seen.notes) == (1, False, [])


def test_an_error_in_the_block_goes_on_and_the_counters_are_read(engine, watcher):
    with pytest.raises(ZeroDivisionError), watcher.watch() as seen:
        ask(engine, 2)
        raise ZeroDivisionError
    assert seen.statements == 2


def test_a_reset_in_the_block_is_noticed(engine, servers, watcher):
    def reset() -> None:
        with psycopg.connect(dsn(servers.postgres)) as connection:
            connection.execute(
                "SELECT pg_stat_statements_reset(0, oid, 0) FROM pg_database WHERE datname = %s",
                (engine.url.database,),
            )

    ask(engine, 2)
    with watcher.watch() as seen:
        reset()
    assert is_not_counted(seen.statements, "reset")
    assert seen.connections == 0
    ask(engine, 2)
    with watcher.watch() as seen:
        reset()
        ask(engine)
    assert is_not_counted(seen.statements, "reset")


def test_without_the_extension_the_table_says_why(engine, scratch, servers):
    # a URL whose database lacks the extension, watching another one
    watcher = Observer(scratch, "postgres")
    with watcher.watch("statements") as seen:
        ask(create_engine(servers.postgres.set(database="postgres"), poolclass=NullPool))
    assert seen.connections >= 1
    assert "statements" not in seen.counts
    assert is_not_counted(seen["statements"], "CREATE EXTENSION pg_stat_statements in the database 'workshop_test_")
    assert repr(seen).count("the extension pg_stat_statements is missing") == 1
    assert repr(seen.by_statement()).count("the extension pg_stat_statements is missing") == 1


def test_the_urls_own_database_is_watched_from_elsewhere(engine, scratch):
    with Observer(scratch).watch() as seen:
        ask(engine)
    assert seen.statements == 1


def test_what_cannot_be_read_is_said_in_one_sentence(scratch, servers):
    with Observer(servers.postgres, "nowhere").watch() as seen:
        pass
    assert is_not_counted(seen.statements, "expected a database 'nowhere'")
    assert is_not_counted(seen.connections, "expected a database 'nowhere'")
    with Observer(servers.postgres.set(port=1), scratch.database).watch() as seen:
        pass
    assert is_not_counted(seen.statements, "PostgreSQL's counters cannot be read from 127.0.0.1:1: ")
    assert len(seen.notes) == 1
    assert str(servers.postgres.password) not in seen.notes[0]
    with pytest.raises(ValueError, match="expected a counter among"):
        Observation(["queries"])


def test_statements_by_server(engine, scratch, servers):
    # the primary stands in for a replica: what matters here is that each server is read for itself
    watcher = Observer(servers.postgres, scratch.database, replicas=[servers.postgres])
    with watcher.watch() as seen:
        ask(engine, 2)
    assert seen.statements_by_server == {"primary": 2, "replica 1": 2}
    assert seen.statements == 2


def test_a_replica_that_is_down_is_not_counted_and_stops_nothing(engine, scratch, servers):
    watcher = Observer(servers.postgres, scratch.database, replicas=[servers.postgres, servers.postgres.set(port=1)])
    with watcher.watch() as seen:
        ask(engine, 2)
    by_server = seen.statements_by_server
    assert list(by_server) == ["primary", "replica 1", "replica 2"]
    assert (by_server["primary"], by_server["replica 1"], seen.statements) == (2, 2, 2)
    assert is_not_counted(by_server["replica 2"], "refused")
    assert [note.startswith("statements on replica 2 not counted:") for note in seen.notes] == [True]


# --- the table ----------------------------------------------------------------------------------------------


def test_table_shows_what_is_not_zero_or_asked_for(engine, watcher):
    ask(engine)
    with watcher.watch("commits") as seen:
        with pytest.raises(RuntimeError, match="after the with block"):
            _ = seen.statements
        assert repr(seen).startswith("still counting")
        ask(engine, 2)
    assert repr(seen) == (
        "counter     count  server\n"
        "statements      2  PostgreSQL\n"
        "rows            2  PostgreSQL\n"
        "commits         0  PostgreSQL\n"
        "rollbacks       2  PostgreSQL"
    )
    assert repr(seen.show("connections")) == "counter      count  server\nconnections      0  PostgreSQL"
    assert "<td" in seen._repr_html_()
    assert repr(seen.show("rows", "redis_hits")) == (
        "counter     count        server\n"
        "rows        2            PostgreSQL\n"
        "redis_hits  not counted  Redis\n"
        "note: not counted: this observer does not watch Redis"
    )
    for unknown in (lambda: seen["queries"], lambda: seen.queries):
        with pytest.raises((LookupError, AttributeError), match="statements, rows,"):
            unknown()


def test_html_is_escaped(engine, watcher):
    with watcher.watch() as seen, engine.connect() as connection:
        connection.execute(text('SELECT 1 AS "<b>"'))
    assert "<b>" not in seen.by_statement()._repr_html_()
    assert "&lt;b&gt;" in seen.by_statement()._repr_html_()


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("statements", 1, "1 statement"),
        ("statements", 2000, "2,000 statements"),
        ("redis_misses", 1, "1 Redis miss"),
        ("mongo_commands", 1, "1 MongoDB command"),
        ("documents_examined", 1, "1 document examined"),
        ("keys_examined", 0, "0 keys examined"),
        ("wal_bytes", 2, "2 WAL bytes"),
        ("connections", 1, "1 connection"),
    ],
)
def test_quantity(name, count, words):
    assert quantity(name, count) == words
    assert quantity("wal_bytes", NotCounted("why")) == "WAL bytes not counted"


def test_a_cell_that_computes_with_what_was_not_counted_runs():
    one, other = NotCounted("why"), NotCounted("because")
    assert (f"{one}", f"{one:,}", f"{one / 1e6:8.1f}", f"{one!r}") == ("not counted",) * 4
    assert str(sum([one, 3, other])) == str(round(2 * one / 10 - 1)) == str(-one % 7 // 2) == "not counted"
    for value in (one, other, 3, "not counted", None):
        assert not (one == value or one != value or one < value or one <= value or one > value or one >= value)
        assert not (value == one or value != one)
    assert not one
    assert (max(5, one), min(5, one)) == (5, 5)
    table = pd.DataFrame({"statements": [one, 6]}, index=["lazily", "together"])
    table["milliseconds"] = 2 * table["statements"]
    assert table.to_string().split("\n")[1].split() == ["lazily", "not", "counted", "not", "counted"]
    assert "not counted" in table.T._repr_html_()
    assert math.isnan(float(one))


# --- Redis --------------------------------------------------------------------------------------------------


@pytest.fixture
def redis_watcher(scratch_redis_url):
    return Observer(None, redis=scratch_redis_url)


def test_redis_hits_misses_and_commands(redis_watcher, scratch_redis):
    with redis_watcher.watch() as seen:
        scratch_redis.set("a", 1)
        scratch_redis.get("a")
        scratch_redis.get("b")
        scratch_redis.mget("a", "a", "c")
    assert (seen.redis_commands, seen.redis_hits, seen.redis_misses) == (4, 3, 2)
    with redis_watcher.watch() as seen, scratch_redis.pipeline(transaction=False) as pipe:
        for _ in range(10):
            pipe.get("a")
        pipe.execute()
    assert (seen.redis_commands, seen.redis_hits, seen.redis_misses) == (10, 10, 0)
    assert seen.by_command().rows == [("Redis", "get", 10)]


def test_a_new_redis_client_counts_like_an_old_one(redis_watcher, scratch_redis_url):
    with redis_watcher.watch() as seen, redis.Redis.from_url(scratch_redis_url) as client:
        client.get("a")
    assert (seen.redis_commands, seen.redis_misses, seen.redis_hits) == (1, 1, 0)


def test_a_reset_of_redis_counters_is_noticed(redis_watcher, scratch_redis):
    scratch_redis.config_resetstat()
    scratch_redis.set("a", 1)  # neither hit nor miss: only the command's own count goes back
    with redis_watcher.watch() as seen:
        scratch_redis.config_resetstat()
    assert is_not_counted(seen.redis_hits, "reset")
    assert seen.redis_commands == 1


@contextlib.contextmanager
def another_process(client, script: str):
    """redis-cli's part: a Redis client in another process, which runs `script` and stays connected."""
    options = {k: v for k, v in client.get_connection_kwargs().items() if k in ("host", "port", "db", "password")}
    program = f"import redis\nr = redis.Redis(**{options!r})\n{script}\nprint('done', flush=True)\ninput()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "done\n"
    yield
    process.communicate("\n", timeout=10)


def test_what_other_redis_clients_do_is_not_counted(redis_watcher, scratch_redis):
    scratch_redis.set("a", 1)
    with another_process(scratch_redis, "r.get('a')"):  # connected and idle disturbs nothing
        with redis_watcher.watch() as seen:
            scratch_redis.get("a")
        assert (seen.redis_commands, seen.redis_hits) == (1, 1)
    with redis_watcher.watch("redis_hits") as seen:
        scratch_redis.mget("a", "b")
        with another_process(scratch_redis, "r.get('a'); r.get('b')"):
            pass
    assert seen.redis_commands == 1
    assert is_not_counted(seen.redis_hits, "other clients used this Redis server")
    assert repr(seen).count("other clients used this Redis server") == 1
    with redis_watcher.watch() as seen:  # a lease's heartbeat looks nothing up
        scratch_redis.mget("a", "b")
        with another_process(scratch_redis, "r.ping(); r.expire('a', 600)"):
            pass
    assert (seen.redis_commands, seen.redis_hits, seen.redis_misses) == (1, 1, 1)


def test_a_script_is_one_command(redis_watcher, scratch_redis):
    with redis_watcher.watch() as seen:
        scratch_redis.eval("return redis.call('GET', KEYS[1])", 1, "a")
    assert seen.redis_commands == 1
    assert is_not_counted(seen.redis_hits, "script")


def test_every_way_of_sending_a_redis_command_counts_once(redis_watcher, scratch_redis):
    options = {
        k: v for k, v in scratch_redis.get_connection_kwargs().items() if k in ("host", "port", "db", "password")
    }
    with redis_watcher.watch() as seen:
        with scratch_redis.pipeline(transaction=True) as pipe:
            pipe.set("a", 1).set("a", 2).incr("a").execute()
        with scratch_redis.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe("news")
            scratch_redis.publish("news", "x")
        scratch_redis.acl_whoami()

        async def ask() -> None:
            async with redis.asyncio.Redis(**options) as client:
                await client.get("a")
                async with client.pipeline(transaction=False) as pipe:
                    await pipe.get("a").get("b").execute()

        asyncio.run(ask())
        with redis.Redis(**options, protocol=3, cache_config=CacheConfig()) as near:
            assert [near.get("a") for _ in range(5)] == [b"3"] * 5
    assert {command: calls for _, command, calls in seen.by_command().rows} == {
        "multi": 1,
        "set": 2,
        "incrby": 1,
        "exec": 1,
        "subscribe": 1,
        "publish": 1,
        "acl whoami": 1,
        "get": 4,
    }
    assert (seen.redis_hits, seen.redis_misses) == (3, 1)


# --- MongoDB ------------------------------------------------------------------------------------------------


@pytest.fixture
def mongo(servers, scratch_mongo):
    """An observer of a fresh database with 1,000 documents, and a collection by a client created after it."""
    Observer(None, scratch_mongo.name, servers.mongo)
    with pymongo.MongoClient(servers.mongo) as client:
        collection = client[scratch_mongo.name].things
        collection.insert_many([{"_id": i, "n": i, "k": i} for i in range(1000)])
        collection.create_index("k")
        # its own client is heard, too, so that the observer's own commands must be told apart
        yield Observer(None, scratch_mongo.name, servers.mongo), collection


def test_mongo_examines_every_document_without_an_index(mongo):
    watcher, things = mongo
    with watcher.watch("keys_examined") as seen:
        assert things.find_one({"n": 999})
    assert (seen.documents_examined, seen.keys_examined, seen.mongo_commands) == (1000, 0, 1)
    with watcher.watch() as seen:
        assert things.find_one({"k": 999})
    assert (seen.documents_examined, seen.keys_examined, seen.mongo_commands) == (1, 1, 1)


def test_a_bulk_write_is_one_command(mongo):
    watcher, things = mongo
    update = {"$inc": {"seen": 1}}
    with watcher.watch() as seen:
        things.bulk_write([pymongo.UpdateOne({"_id": i}, update) for i in range(1000)])
    assert (seen.mongo_commands, seen.documents_examined) == (1, 1000)
    with watcher.watch() as seen:
        for i in range(1000):
            things.update_one({"_id": i}, update)
    assert (seen.mongo_commands, seen.documents_examined) == (1000, 1000)
    with watcher.watch() as seen:
        things.update_many({"k": {"$lt": 10}}, update)
    assert (seen.mongo_commands, seen.documents_examined, seen.keys_examined) == (1, 10, 10)
    assert seen.by_command().rows == [("MongoDB", "update", 1)]


def test_a_batch_is_a_command(mongo):
    watcher, things = mongo
    with watcher.watch() as seen:
        assert len(list(things.find(batch_size=300))) == 1000
    assert seen.by_command().rows == [("MongoDB", "find", 1), ("MongoDB", "getMore", 3)]
    assert (seen.mongo_commands, seen.documents_examined) == (4, 1000)


def profiler(database) -> tuple[int, list[str]]:
    """The profiler's level, and its collection; asked in the observer's name, so that it does not count."""
    options = {"comment": mongo_probe._COMMENT}
    names = database.list_collection_names(filter={"name": "system.profile"}, **options)
    return database.command("profile", -1, **options)["was"], names


def test_the_profiler_is_put_back(mongo, scratch_mongo):
    watcher, things = mongo
    with pytest.raises(ZeroDivisionError), watcher.watch() as seen:
        assert profiler(scratch_mongo)[0] == 2
        things.find_one({"_id": 1})
        raise ZeroDivisionError
    assert (seen.mongo_commands, seen.documents_examined) == (1, 1)
    assert profiler(scratch_mongo) == (0, [])
    # what an interrupted notebook left behind is taken over and removed
    scratch_mongo.create_collection(
        "system.profile", capped=True, size=mongo_probe._PROFILE_BYTES, max=mongo_probe._PROFILE_DOCUMENTS
    )
    scratch_mongo.command("profile", 2)
    with watcher.watch() as seen:
        things.find_one({"_id": 1})
    assert seen.documents_examined == 1
    assert profiler(scratch_mongo) == (0, [])


def test_blocks_may_be_nested(mongo, scratch_mongo):
    watcher, things = mongo
    with watcher.watch() as outer:
        things.find_one({"_id": 1})
        with watcher.watch() as inner:
            things.find_one({"n": 999})
        things.find_one({"_id": 1})
    assert (inner.mongo_commands, inner.documents_examined) == (1, 1000)
    assert (outer.mongo_commands, outer.documents_examined) == (3, 1002)
    assert profiler(scratch_mongo) == (0, [])


def test_blocks_may_overlap(mongo, scratch_mongo, servers):
    watcher, things = mongo
    other = Observer(None, scratch_mongo.name, servers.mongo)  # as another lesson object in this kernel would
    with contextlib.closing(other):
        a, b = watcher.watch(), other.watch()
        first = a.__enter__()
        things.find_one({"_id": 1})
        second = b.__enter__()
        things.find_one({"n": 999})
        a.__exit__(None, None, None)
        assert profiler(scratch_mongo)[0] == 2
        things.find_one({"_id": 1})
        b.__exit__(None, None, None)
    assert (first.mongo_commands, first.documents_examined) == (2, 1001)
    assert (second.mongo_commands, second.documents_examined) == (2, 1001)
    assert profiler(scratch_mongo) == (0, [])


def test_blocks_of_two_threads_overlap(mongo, scratch_mongo):
    watcher, things = mongo
    together = threading.Barrier(2, timeout=30)
    counts = []

    def observe(other_goes_on: bool) -> None:
        for _ in range(5):
            together.wait()
            with watcher.watch() as seen:
                together.wait()
                things.find_one({"n": 999})
                together.wait()
                if other_goes_on:
                    together.wait()  # until the other block has ended
                    things.find_one({"_id": 1})
            if not other_goes_on:
                together.wait()
            counts.append((seen.mongo_commands, seen.documents_examined))

    threads = [threading.Thread(target=observe, args=[longer]) for longer in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(counts) == [(2, 2000)] * 5 + [(3, 2001)] * 5
    assert profiler(scratch_mongo) == (0, [])


def test_the_servers_sampling_of_slow_operations_is_left_as_it_is(mongo, scratch_mongo):
    watcher, things = mongo
    own = {"slowms": 70, "sampleRate": 0.0, "filter": {"op": "none of these"}}
    scratch_mongo.command("profile", 0, **own)
    try:
        with watcher.watch() as seen:
            things.find_one({"n": 999})
            during = scratch_mongo.command("profile", -1, comment=mongo_probe._COMMENT)
        after = scratch_mongo.command("profile", -1)
    finally:
        scratch_mongo.command("profile", 0, slowms=100, sampleRate=1.0, filter="unset")
    assert (seen.mongo_commands, seen.documents_examined) == (1, 1000)
    assert (during["sampleRate"], during["slowms"]) == (after["sampleRate"], after["slowms"]) == (0.0, 70)
    assert "filter" in after


def test_a_reading_that_was_interrupted_can_be_shown(scratch, watcher, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PostgresProbe, "_fill", interrupted)
    with pytest.raises(KeyboardInterrupt), watcher.watch("blocks") as seen:
        pass
    assert "not counted: the reading was interrupted" in repr(seen)
    assert is_not_counted(seen.statements, "interrupted")


def test_somebody_elses_profile_is_left_alone(mongo, scratch_mongo):
    watcher, things = mongo
    scratch_mongo.create_collection("system.profile", capped=True, size=1 << 20)
    scratch_mongo.command("profile", 1, slowms=5000)
    with watcher.watch() as seen:
        things.find_one({"_id": 1})
    assert seen.mongo_commands == 1
    assert "used by someone else" in repr(seen)
    assert is_not_counted(seen.documents_examined, "used by someone else")
    assert profiler(scratch_mongo) == (1, ["system.profile"])


def test_a_full_profile_is_not_summed(mongo, monkeypatch):
    monkeypatch.setattr(mongo_probe, "_PROFILE_BYTES", 64 * 1024)
    watcher, things = mongo
    with watcher.watch() as seen:
        for i in range(300):
            things.find_one({"_id": i})
    assert seen.mongo_commands == 300
    assert is_not_counted(seen.documents_examined, "more operations than a profile")


def test_a_client_from_before_the_observer_is_noticed(mongo, scratch_mongo, monkeypatch):
    watcher, things = mongo
    monkeypatch.setattr(mongo_probe._commands, "started", lambda event: None)
    with watcher.watch() as seen:
        things.find_one({"_id": 1})
    assert seen.documents_examined == 1
    assert is_not_counted(seen.mongo_commands, "created before the observer")


# --- servers with few rights --------------------------------------------------------------------------------


@contextlib.contextmanager
def learner_database(url: str):
    """A database of the role with few rights: its URL, and the observer's."""
    maintenance = make_url(url).set(drivername="postgresql+psycopg")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE workshop_test")
        try:
            yield maintenance.set(database="workshop_test"), maintenance
        finally:
            connection.execute("DROP DATABASE workshop_test WITH (FORCE)")


@pytest.mark.parametrize(
    ("statements", "command"),
    [
        (
            "none",
            "an administrator adds it to shared_preload_libraries, restarts the server"
            " and runs CREATE EXTENSION pg_stat_statements in the database 'postgres'",
        ),
        ("absent", "an administrator runs CREATE EXTENSION pg_stat_statements in the database 'postgres'"),
    ],
)
def test_without_pg_stat_statements_connections_are_counted(limited_servers, statements, command):
    with learner_database(limited_servers(limited.postgres, statements)) as (url, maintenance):
        with Observer(maintenance, url.database).watch("statements") as seen:
            ask(create_engine(url, poolclass=NullPool), 3)
        assert seen.connections == 3
        assert is_not_counted(seen.statements, command)
        assert is_not_counted(seen.statements_by_server["primary"], command)
        table = repr(seen)
        assert table.startswith(
            "counter      count        server\nstatements   not counted  PostgreSQL\nconnections  3"
        )
        assert table.count(command) == 1
        assert seen.counts == {"connections": 3}


def test_a_role_counts_its_own_statements_and_is_told_of_others(limited_servers):
    url = limited_servers(limited.postgres, "own")
    with learner_database(url) as (learner, maintenance):
        watcher, engine = Observer(maintenance, learner.database), create_engine(learner)
        with watcher.watch() as seen:
            ask(engine, 3)
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE item (id int)"))
                connection.execute(text("INSERT INTO item SELECT generate_series(1, 100)"))
        assert (seen.statements, seen.rows, seen.commits, seen.rollbacks, seen.connections) == (5, 103, 1, 3, 1)
        assert seen.wal_bytes > 0
        assert seen.notes == []
        with watcher.watch() as seen:
            ask(engine, 2)
            with psycopg.connect(url.replace("learner:", "admin:"), dbname=learner.database) as other:
                other.execute("SELECT 1")
        assert (seen.statements, seen.connections) == (2, 1)
        assert len(seen.notes) == 1
        assert seen.notes[0].endswith("an administrator runs GRANT pg_read_all_stats TO learner")
        engine.dispose()
    with learner_database(limited_servers(limited.postgres, "all")) as (learner, maintenance):
        with Observer(maintenance, learner.database).watch() as seen:
            ask(create_engine(learner, poolclass=NullPool), 2)
            admin = limited_servers(limited.postgres, "all").replace("learner:", "admin:")
            with psycopg.connect(admin, dbname=learner.database) as other:
                other.execute("SELECT 1")
        assert (seen.statements, seen.notes) == (3, [])


def test_a_switched_off_pg_stat_statements_is_said(limited_servers):
    url = limited_servers(limited.postgres, "own")
    admin_url = url.replace("learner:", "admin:")
    with learner_database(url) as (learner, maintenance), psycopg.connect(admin_url, autocommit=True) as admin:
        for name, off, on in (("compute_query_id", "off", "auto"), ("pg_stat_statements.track", "none", "top")):
            admin.execute(f"ALTER ROLE learner SET {name} = {off}")
            with Observer(maintenance, learner.database).watch() as seen:
                ask(create_engine(learner, poolclass=NullPool))
            admin.execute(f"ALTER ROLE learner RESET {name}")
            assert is_not_counted(seen.statements, f"ALTER SYSTEM SET {name} = {on}")
        with Observer(maintenance, learner.database).watch() as seen:
            ask(create_engine(learner, poolclass=NullPool))
        assert seen.statements == 1


def test_without_info_redis_commands_are_counted(limited_servers):
    url = limited_servers(limited.redis_server, False)
    with redis.Redis.from_url(url) as client, Observer(None, redis=url).watch() as seen:
        client.get("a")
    assert seen.redis_commands == 1
    assert is_not_counted(seen.redis_hits, "an administrator runs ACL SETUSER learner +info")
    assert len(seen.notes) == 1
    url = limited_servers(limited.redis_server, True)
    with redis.Redis.from_url(url) as client, Observer(None, redis=url).watch() as seen:
        client.get("a")
    assert (seen.redis_commands, seen.redis_misses) == (1, 1)


def test_without_the_profiler_mongo_commands_are_counted(limited_servers):
    url = limited_servers(limited.mongo)
    watcher = Observer(None, "workshop_test", url)
    with contextlib.closing(watcher), pymongo.MongoClient(url) as client:
        things = client.workshop_test.things
        things.insert_one({"_id": 1})
        with watcher.watch() as seen:
            things.find_one({"_id": 1})
        assert seen.mongo_commands == 1
        command = 'db.getSiblingDB("admin").grantRolesToUser("learner", [{role: "dbAdminAnyDatabase", db: "admin"}])'
        assert is_not_counted(seen.documents_examined, command)
        assert len(seen.notes) == 1
        # and with that grant it is counted
        with pymongo.MongoClient(url.replace("learner:", "admin:")) as admin:
            admin.admin.command("grantRolesToUser", "learner", roles=["dbAdminAnyDatabase"])
        with watcher.watch() as seen:
            things.find_one({"_id": 1})
        assert (seen.documents_examined, seen.notes) == (1, [])


def test_a_closed_observer_holds_no_connection(servers, scratch, scratch_mongo, scratch_redis_url):
    url = f"{servers.mongo}{'&' if '?' in servers.mongo else '?'}appName=workshop-test-close"

    def open_connections() -> int:
        operations = scratch_mongo.client.admin.aggregate(
            [
                {"$currentOp": {"allUsers": True, "idleConnections": True}},
                {"$match": {"appName": "workshop-test-close"}},
            ]
        )
        return len(list(operations))

    watcher = Observer(servers.postgres, scratch.database, url, scratch_redis_url)
    with watcher.watch():
        pass
    assert open_connections() > 0
    watcher.close()
    give_up = time.monotonic() + 10
    while open_connections() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert open_connections() == 0
