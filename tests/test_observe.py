"""The counters, against real servers: each number exactly, and what must not be counted."""

from __future__ import annotations

import threading

import psycopg
import pymongo
import pytest
import redis
from sqlalchemy import NullPool, Select, String, create_engine, insert, literal, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from workshop.observe import mongo_probe
from workshop.observe.observation import NotCounted, Observation, ObserveError, quantity
from workshop.observe.observer import Observer


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String)


def dsn(url) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


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
    kept = []

    def connect() -> None:
        kept.extend(psycopg.connect(dsn(scratch)) for _ in range(3))

    threads = [threading.Thread(target=connect) for _ in range(8)]
    with watcher.watch() as seen:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        psycopg.connect(dsn(scratch)).close()
    for connection in kept:
        connection.close()
    assert seen.connections == 25


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
    assert (seen.statements, seen.rows, seen.commits, seen.rollbacks, seen.transactions) == (1, 200, 1, 0, 1)
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


def test_a_reset_in_the_block_is_an_error_and_does_not_hide_the_blocks_own(engine, servers, watcher):
    def reset() -> None:
        with psycopg.connect(dsn(servers.postgres)) as connection:
            connection.execute(
                "SELECT pg_stat_statements_reset(0, oid, 0) FROM pg_database WHERE datname = %s",
                (engine.url.database,),
            )

    ask(engine, 2)
    with pytest.raises(ObserveError, match="only to grow"), watcher.watch():
        reset()
    ask(engine, 2)
    with pytest.raises(ObserveError, match="only to grow"), watcher.watch():
        reset()
        ask(engine)
    with pytest.raises(ZeroDivisionError) as caught, watcher.watch():
        reset()
        raise ZeroDivisionError
    assert "only to grow" in caught.value.__notes__[0]


def test_without_the_extension_the_table_says_why(engine, scratch, servers):
    # a URL whose database lacks the extension, watching another one
    watcher = Observer(scratch, "postgres")
    with watcher.watch("statements") as seen:
        ask(create_engine(servers.postgres.set(database="postgres"), poolclass=NullPool))
    assert seen.connections >= 1
    assert "statements" not in seen
    assert not hasattr(seen, "statements")
    with pytest.raises(NotCounted, match="CREATE EXTENSION pg_stat_statements"):
        seen["statements"]
    assert "the extension pg_stat_statements is missing" in repr(seen)


def test_the_urls_own_database_is_watched_from_elsewhere(engine, scratch):
    with Observer(scratch).watch() as seen:
        ask(engine)
    assert seen.statements == 1


def test_errors_in_one_sentence(scratch, servers):
    with (
        pytest.raises(ObserveError, match="expected a database 'nowhere'"),
        Observer(servers.postgres, "nowhere").watch(),
    ):
        pass
    with pytest.raises(ObserveError, match="expected to read PostgreSQL's counters") as caught:  # noqa: SIM117
        with Observer(servers.postgres.set(port=1), scratch.database).watch():
            pass
    assert str(servers.postgres.password) not in str(caught.value)
    with pytest.raises(ValueError, match="expected a counter among"):
        Observation(["queries"])


def test_statements_by_server(engine, scratch, servers):
    # the primary stands in for a replica: what matters here is that each server is read for itself
    watcher = Observer(servers.postgres, scratch.database, replicas=[servers.postgres])
    with watcher.watch() as seen:
        ask(engine, 2)
    assert seen.statements_by_server == {"primary": 2, "replica 1": 2}
    assert seen.statements == 2


# --- the table ----------------------------------------------------------------------------------------------


def test_table_shows_what_is_not_zero_or_asked_for(engine, watcher):
    ask(engine)
    with watcher.watch("commits") as seen:
        with pytest.raises(NotCounted, match="after the with block"):
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
    with pytest.raises(NotCounted, match="does not watch Redis"):
        seen.show("redis_hits")
    with pytest.raises(KeyError):
        seen["queries"]


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


# --- Redis --------------------------------------------------------------------------------------------------


def test_redis_hits_misses_and_commands(scratch_redis):
    watcher = Observer(None, redis=scratch_redis)
    with watcher.watch() as seen:
        scratch_redis.set("a", 1)
        scratch_redis.get("a")
        scratch_redis.get("b")
        scratch_redis.mget("a", "a", "c")
    assert (seen.redis_commands, seen.redis_hits, seen.redis_misses) == (4, 3, 2)
    with watcher.watch() as seen, scratch_redis.pipeline(transaction=False) as pipe:
        for _ in range(10):
            pipe.get("a")
        pipe.execute()
    assert (seen.redis_commands, seen.redis_hits, seen.redis_misses) == (10, 10, 0)
    assert seen.by_command().rows == [("Redis", "get", 10)]


def test_a_new_redis_client_counts_like_an_old_one(scratch_redis):
    options = {
        k: v
        for k, v in scratch_redis.get_connection_kwargs().items()
        if k in ("host", "port", "db", "username", "password")
    }
    with Observer(None, redis=scratch_redis).watch() as seen, redis.Redis(**options) as client:
        client.get("a")
    assert (seen.redis_commands, seen.redis_misses, seen.redis_hits) == (1, 1, 0)


def test_a_reset_of_redis_counters_is_an_error(scratch_redis):
    watcher = Observer(None, redis=scratch_redis)
    scratch_redis.config_resetstat()
    scratch_redis.set("a", 1)  # neither hit nor miss: only the command's own count goes back
    with (
        pytest.raises(ObserveError, match="Redis's counters only to grow"),
        watcher.watch(),
    ):
        scratch_redis.config_resetstat()


# --- MongoDB ------------------------------------------------------------------------------------------------


@pytest.fixture
def mongo(servers, scratch_mongo):
    """An observer of a fresh database with 1,000 documents, and a collection by a client created after it."""
    Observer(None, mongo=scratch_mongo)
    with pymongo.MongoClient(servers.mongo) as client:
        collection = client[scratch_mongo.name].things
        collection.insert_many([{"_id": i, "n": i, "k": i} for i in range(1000)])
        collection.create_index("k")
        # by a client that is heard, so that the observer's own commands must be told apart
        yield Observer(None, mongo=collection.database), collection


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


def test_somebody_elses_profile_is_left_alone(mongo, scratch_mongo):
    watcher, things = mongo
    scratch_mongo.create_collection("system.profile", capped=True, size=1 << 20)
    scratch_mongo.command("profile", 1, slowms=5000)
    with watcher.watch() as seen:
        things.find_one({"_id": 1})
    assert seen.mongo_commands == 1
    assert "used by someone else" in repr(seen)
    with pytest.raises(NotCounted, match="used by someone else"):
        _ = seen.documents_examined
    assert profiler(scratch_mongo) == (1, ["system.profile"])


def test_a_full_profile_is_not_summed(mongo, monkeypatch):
    monkeypatch.setattr(mongo_probe, "_PROFILE_BYTES", 64 * 1024)
    watcher, things = mongo
    with watcher.watch() as seen:
        for i in range(300):
            things.find_one({"_id": i})
    assert seen.mongo_commands == 300
    assert "documents_examined" not in seen


def test_a_client_from_before_the_observer_is_noticed(mongo, scratch_mongo, monkeypatch):
    watcher, things = mongo
    monkeypatch.setattr(mongo_probe._commands, "started", lambda event: None)
    with watcher.watch() as seen:
        things.find_one({"_id": 1})
    assert seen.documents_examined == 1
    with pytest.raises(NotCounted, match="created before the observer"):
        _ = seen.mongo_commands
