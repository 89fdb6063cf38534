"""The shop's rows: what is shipped, what arrives, and what is left behind when something is wrong."""

from __future__ import annotations

import contextlib
import gzip
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import checksums
import psycopg
import pymongo
import pytest
from psycopg import sql
from sqlalchemy import URL, create_engine, inspect

from workshop import sandbox
from workshop.shop import SHOP_TODAY, Base, files, mongo_loader, postgres_loader, seed
from workshop.state import WorkshopError

SMALL = 0.02
SCHEMA = ("get_columns", "get_pk_constraint", "get_foreign_keys", "get_indexes", "get_unique_constraints")


def drop_postgres(admin: URL, database: str) -> None:
    with postgres_loader.connect(admin) as connection:
        for name in (database, f"{database}_loading"):
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def open_template(admin: URL, database: str) -> URL:
    """Let the test look into a template of its own, which nobody connects to otherwise."""
    with postgres_loader.connect(admin) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(database)))
    return admin.set(database=database)


def databases(admin: URL, prefix: str) -> set[str]:
    with postgres_loader.connect(admin) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [prefix])
        return {name for (name,) in rows}


def one(url: URL, query: str) -> object:
    with postgres_loader.connect(url) as connection:
        return connection.execute(query).fetchone()[0]


@pytest.fixture
def shop(servers) -> Iterator[SimpleNamespace]:
    """Names of a test's own, so that the real workshop_shop is never touched."""
    name = f"workshop_test_{secrets.token_hex(4)}"
    with pymongo.MongoClient(servers.mongo, serverSelectionTimeoutMS=5000) as client:
        yield SimpleNamespace(name=name, postgres=servers.postgres, mongo=servers.mongo, store=client[name])
        client.drop_database(name)
    drop_postgres(servers.postgres, name)


@pytest.fixture(scope="module")
def full(servers) -> Iterator[SimpleNamespace]:
    """The whole shop at scale 1 under a name of its own, both stores loaded side by side as `up` does."""
    name = f"workshop_test_{secrets.token_hex(4)}"
    with pymongo.MongoClient(servers.mongo, serverSelectionTimeoutMS=5000) as client:
        try:
            with ThreadPoolExecutor(2) as pool:
                load = partial(postgres_loader.seed_postgres, database=name, biographies=True)
                postgres = pool.submit(load, servers.postgres)
                mongo = pool.submit(mongo_loader.seed_mongo, servers.mongo, name)
                rows = {**postgres.result(), files.PROFILES: mongo.result()}
            url = open_template(servers.postgres, name)
            yield SimpleNamespace(name=name, rows=rows, url=url, store=client[name], servers=servers)
        finally:
            client.drop_database(name)
            drop_postgres(servers.postgres, name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of data/ to damage."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("manifest.json", *files.FILES.values()):
        shutil.copy(files.DATA / name, folder)
    return folder


# --- what is shipped


def test_manifest_agrees_with_the_files() -> None:
    manifest = files.check_files()
    shipped = {path.name for path in files.DATA.glob("*.gz")}
    assert shipped == set(manifest["files"]) == set(files.FILES.values())
    assert sum(entry["bytes"] for entry in manifest["files"].values()) <= 15_000_000
    for name, entry in manifest["files"].items():
        with gzip.open(files.DATA / name) as file:
            assert sum(1 for _ in file) - name.endswith(".csv.gz") == entry["rows"]


def test_streams_are_those_of_the_manifest_every_time() -> None:
    assert files.stream_checksums() == files.read_manifest()["tables"]


@pytest.mark.long
def test_two_copies_and_a_part_keep_their_references() -> None:
    scale = 1.01
    streams = {table: b"".join(files.table_stream(table, scale)).splitlines()[1:] for table in files.TABLES}
    people = [line.split(b",", 3) for line in streams["customers"]]
    assert [int(person[0]) for person in people] == list(range(1, 101_001))
    assert len({person[2] for person in people}) == 101_000
    assert len({line.split(b",", 1)[0] for line in streams["products"]}) == len(streams["products"]) == 4_000
    orders = dict(line.split(b",", 2)[:2] for line in streams["orders"])
    assert len(orders) == len(streams["orders"]) > 300_000
    assert {int(customer) for order, customer in orders.items() if int(order) <= 300_000} <= set(range(1, 100_001))
    added = {int(customer) for order, customer in orders.items() if int(order) > 300_000}
    assert added <= set(range(100_001, 101_001))
    with_items = {line.split(b",", 1)[0] for line in streams["order_items"]}
    assert with_items == set(orders)  # no order without items, and no item without an order
    *_, last = islice(files.profile_lines(scale), 102_000)
    assert json.loads(last)["_id"] == 101_000
    assert json.loads(last)["email"].encode() == people[-1][2]


@pytest.mark.parametrize("scale", [0, 0.009, 101, float("nan")])
def test_a_scale_out_of_range_is_refused(servers, scale: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number from 0\.01 to 100"):
        postgres_loader.seed_postgres(servers.postgres, scale, database="workshop_test_never")
    with pytest.raises(ValueError, match=r"expected a number from 0\.01 to 100"):
        mongo_loader.seed_mongo(servers.mongo, "workshop_test_never", scale)


# --- what arrives


def test_checksums_on_the_servers_are_those_of_the_manifest(full) -> None:
    expected = files.read_manifest()["tables"]
    del expected["customers"]  # these have their biographies
    expected["customers"] = expected.pop(files.CUSTOMERS_WITH_BIOGRAPHIES)
    assert full.rows == {name: entry["rows"] for name, entry in expected.items()}
    with postgres_loader.connect(full.url) as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'")  # the checksum must not depend on it
        found = {table: checksums.table_checksum(connection, table) for table in files.TABLES}
    found[files.PROFILES] = checksums.profiles_checksum(full.store[files.PROFILES])
    assert found == {name: entry["sha256"] for name, entry in expected.items()}
    assert postgres_loader.seeded_postgres(full.servers.postgres, full.name)["scale"] == 1


def test_a_changed_row_changes_the_checksum(full) -> None:
    engine = create_engine(full.url)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET TimeZone = 'Asia/Tokyo'")
        before = checksums.table_checksum(connection, "products")
        # The caller's transaction goes on with the caller's settings.
        assert connection.exec_driver_sql("SHOW TimeZone").scalar() == "Asia/Tokyo"
        connection.exec_driver_sql("UPDATE products SET price = price + 0.01 WHERE id = 4000")
        assert checksums.table_checksum(connection, "products") != before
        connection.rollback()
        assert checksums.table_checksum(connection, "products") == before
    engine.dispose()


def test_rows_are_as_the_lessons_need_them(full) -> None:
    short, mean, long = (
        one(full.url, f"SELECT {what}(octet_length(bio)) FROM customers") for what in ("min", "avg", "max")
    )
    assert short >= 2050
    assert 2500 < mean < 2900
    assert 5000 < long < 6200
    assert one(full.url, "SELECT attstorage::text FROM pg_attribute WHERE attname = 'bio'") == "e"
    assert 80 <= one(full.url, "SELECT count(*) FROM customers WHERE email LIKE '%@company.com'") <= 200
    assert one(full.url, "SELECT count(DISTINCT email) FROM customers") == 100_000
    backwards = "SELECT ordered_at < lag(ordered_at) OVER (ORDER BY id) AS b FROM orders"
    assert one(full.url, f"SELECT count(*) FROM ({backwards}) AS o WHERE b") == 0
    assert one(full.url, "SELECT max(ordered_at) FROM orders") < SHOP_TODAY
    assert one(full.url, "SELECT max(last_login) FROM customers") < SHOP_TODAY
    wrong_dates = """
        SELECT count(*) FROM customers AS c
        LEFT JOIN (SELECT customer_id, max((ordered_at AT TIME ZONE 'UTC')::date) AS latest
                   FROM orders GROUP BY 1) AS o
        ON o.customer_id = c.id WHERE c.last_purchase_date IS DISTINCT FROM o.latest"""
    assert one(full.url, wrong_dates) == 0
    # Visible to all: an index-only scan needs no heap fetch, and no later VACUUM changes a lesson's counters.
    hidden = "SELECT sum(relpages - relallvisible) FROM pg_class WHERE relname = ANY('{%s}')"
    assert one(full.url, hidden % ",".join(files.TABLES)) == 0
    assert one(full.url, "SELECT pg_database_size(current_database())") <= 550 * 2**20


def test_new_rows_get_new_ids(full) -> None:
    for table in files.TABLES:
        query = f"SELECT nextval(pg_get_serial_sequence('{table}', 'id')) > max(id) FROM {table}"
        assert one(full.url, query) is True


def test_the_seeded_schema_is_that_of_the_models(full, scratch) -> None:
    described = []
    for url in (full.url, scratch):
        engine = create_engine(url)
        if url is scratch:
            Base.metadata.create_all(engine)
        inspector = inspect(engine)
        described.append({(table, what): getattr(inspector, what)(table) for table in files.TABLES for what in SCHEMA})
        engine.dispose()
    for columns in described:  # types compare by identity
        for column in (column for key, value in columns.items() if key[1] == "get_columns" for column in value):
            column["type"] = repr(column["type"])
    assert described[0] == described[1]


def test_a_second_time_returns_at_once(full, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(postgres_loader, "check_files", refuse)
    monkeypatch.setattr(mongo_loader, "check_files", refuse)
    rows = postgres_loader.seed_postgres(full.servers.postgres, database=full.name)
    assert {
        **rows,
        files.PROFILES: mongo_loader.seed_mongo(full.servers.mongo, full.name),
    } == full.rows


@pytest.mark.long
def test_a_small_shop_is_whole_and_another_scale_replaces_it(shop) -> None:
    for scale in (0.01, SMALL):
        rows = postgres_loader.seed_postgres(shop.postgres, scale, database=shop.name)
        assert mongo_loader.seed_mongo(shop.mongo, shop.name, scale) == rows["customers"] == scale * 100_000
        assert postgres_loader.seeded_postgres(shop.postgres, shop.name)["scale"] == scale
        assert mongo_loader.seeded_mongo(shop.mongo, shop.name)["scale"] == scale
    assert databases(shop.postgres, shop.name) == {shop.name}
    assert set(shop.store.list_collection_names()) == {files.PROFILES, "workshop_meta"}
    with gzip.open(files.DATA / "orders.csv.gz", "rt") as file:
        kept = {row[0] for row in (line.split(",") for line in list(file)[1:]) if int(row[1]) <= 2_000}
    with gzip.open(files.DATA / "order_items.csv.gz", "rt") as file:
        items = sum(line.split(",", 1)[0] in kept for line in file)
    assert rows == {"customers": 2_000, "products": 4_000, "orders": len(kept), "order_items": items}
    url = open_template(shop.postgres, shop.name)
    assert {table: one(url, f"SELECT count(*) FROM {table}") for table in files.TABLES} == rows
    assert one(url, "SELECT count(*) FROM orders LEFT JOIN customers c ON c.id = customer_id WHERE c IS NULL") == 0
    assert one(url, "SELECT count(DISTINCT order_id) FROM order_items JOIN orders o ON o.id = order_id") == len(kept)
    assert shop.store[files.PROFILES].count_documents({}) == 2_000


def test_the_shop_is_a_template_for_a_role_that_is_no_superuser(shop) -> None:
    role, clone = f"{shop.name}_role", f"{shop.name}_clone"
    with postgres_loader.connect(shop.postgres) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'made-up'")
        try:
            url = shop.postgres.set(username=role, password="made-up")
            rows = postgres_loader.seed_postgres(url, SMALL, database=shop.name)
            with postgres_loader.connect(url) as plain:
                plain.execute(f"CREATE DATABASE {clone} TEMPLATE {shop.name}")
            assert one(url.set(database=clone), "SELECT count(*) FROM order_items") == rows["order_items"]
            with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
                postgres_loader.connect(url, shop.name)
        finally:
            drop_postgres(shop.postgres, clone)
            drop_postgres(shop.postgres, shop.name)
            admin.execute(f"DROP ROLE {role}")


# --- what is left behind when something is wrong


def cut_the_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + content[len(content) // 2 + 1000 :])


def change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("orders.csv.gz", Path.unlink),
    "empty": ("products.csv.gz", lambda path: path.write_bytes(b"")),
    "truncated": ("order_items.csv.gz", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "middle deleted": ("customers.csv.gz", cut_the_middle),
    "altered": ("profiles.ndjson.gz", change_one_byte),
    "a folder": ("orders.csv.gz", lambda path: (path.unlink(), path.mkdir())),
    "no manifest": ("manifest.json", Path.unlink),
    "half a manifest": ("manifest.json", lambda path: path.write_bytes(path.read_bytes()[:200])),
    "another JSON": ("manifest.json", lambda path: path.write_text("[]")),
    "a manifest without files": ("manifest.json", lambda path: path.write_text('{"files": {}, "tables": {}}')),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_data_is_one_sentence_and_loads_nothing(
    shop, data: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, damage = DAMAGE[case]
    damage(data / name)
    monkeypatch.setattr(files, "DATA", data)
    for load in (
        lambda: postgres_loader.seed_postgres(shop.postgres, SMALL, database=shop.name),
        lambda: mongo_loader.seed_mongo(shop.mongo, shop.name, SMALL),
    ):
        with pytest.raises(files.DataError) as caught:
            load()
        text = str(caught.value)
        assert text.startswith(f"data/{name} is missing or damaged: expected ") and ", found " in text
        assert text.endswith(f"restore it with `git checkout -- data/{name}`, then run `python -m workshop reset`")
        assert "\n" not in text
    assert databases(shop.postgres, shop.name) == set()
    assert shop.store.list_collection_names() == []


@pytest.mark.long
def test_a_failure_half_way_leaves_the_earlier_shop_as_it_was(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres_loader.seed_postgres(shop.postgres, 0.01, database=shop.name)
    mongo_loader.seed_mongo(shop.mongo, shop.name, 0.01)
    before = postgres_loader.seeded_postgres(shop.postgres, shop.name), mongo_loader.seeded_mongo(shop.mongo, shop.name)
    kept_orders, lines = files._kept_orders, files.profile_lines

    def no_orders(*arguments: object) -> bytearray:
        assert f"{shop.name}_loading" in databases(shop.postgres, shop.name)
        kept_orders(*arguments)
        raise KeyboardInterrupt

    def three_thousand(*arguments: object) -> Iterator[bytes]:
        for number, line in enumerate(lines(*arguments)):
            if number == 3_000:
                assert f"{files.PROFILES}_loading" in shop.store.list_collection_names()
                raise KeyboardInterrupt
            yield line

    monkeypatch.setattr(files, "_kept_orders", no_orders)
    monkeypatch.setattr(mongo_loader, "profile_lines", three_thousand)
    with pytest.raises(KeyboardInterrupt):
        postgres_loader.seed_postgres(shop.postgres, SMALL, database=shop.name)
    with pytest.raises(KeyboardInterrupt):
        mongo_loader.seed_mongo(shop.mongo, shop.name, 0.05)
    assert (
        postgres_loader.seeded_postgres(shop.postgres, shop.name),
        mongo_loader.seeded_mongo(shop.mongo, shop.name),
    ) == before
    assert shop.store[files.PROFILES].count_documents({}) == 1_000

    # The next ones go on behind what is whole: three tables, and one batch of 2,000.
    monkeypatch.undo()
    made, inserted = [], []
    table_stream, insert_many = files.table_stream, pymongo.collection.Collection.insert_many

    def insert(collection, documents, **options):
        batch = list(documents)
        inserted.append(batch[0]["_id"])
        return insert_many(collection, batch, **options)

    monkeypatch.setattr(postgres_loader, "table_stream", lambda name, *a: made.append(name) or table_stream(name, *a))
    monkeypatch.setattr(pymongo.collection.Collection, "insert_many", insert)
    rows = postgres_loader.seed_postgres(shop.postgres, SMALL, database=shop.name)
    assert mongo_loader.seed_mongo(shop.mongo, shop.name, 0.05) == 5_000
    assert made == ["order_items"] and inserted == [2_001, 4_001]
    assert rows["customers"] == 2_000
    assert databases(shop.postgres, shop.name) == {shop.name}
    assert set(shop.store.list_collection_names()) == {files.PROFILES, "workshop_meta"}


def test_a_session_in_the_new_shop_costs_nobody_the_earlier_one(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = postgres_loader.seed_postgres(shop.postgres, 0.01, database=shop.name)
    monkeypatch.setattr(postgres_loader, "SWAP_DEADLINE_S", 1)
    load = postgres_loader._load_postgres
    with contextlib.ExitStack() as monitoring:

        def load_watched(connection: psycopg.Connection, *arguments: object) -> None:
            load(connection, *arguments)
            monitoring.enter_context(postgres_loader.connect(shop.postgres, f"{shop.name}_loading"))

        monkeypatch.setattr(postgres_loader, "_load_postgres", load_watched)
        with pytest.raises(WorkshopError, match=r"found a session \(pid \d+\) that stays: end it, then run"):
            postgres_loader.seed_postgres(shop.postgres, 0.01, database=shop.name, anew=True)
    assert postgres_loader.seeded_postgres(shop.postgres, shop.name)["rows"] == rows
    assert databases(shop.postgres, shop.name) == {shop.name}


def test_a_seeder_that_lost_its_turn_leaves_its_successors_load(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken_over(lines: Iterable[bytes], number: int) -> Iterator[bytes]:
        for count, line in enumerate(lines):
            if count == number:
                shop.store[mongo_loader.META].update_one({"_id": "turn"}, {"$set": {"token": "the next one's"}})
                raise pymongo.errors.BulkWriteError({"writeErrors": []})  # both insert the same profiles
            yield line

    lines = mongo_loader.profile_lines
    monkeypatch.setattr(mongo_loader, "profile_lines", lambda scale: taken_over(lines(scale), 3_000))
    with pytest.raises(mongo_loader.TurnLost):
        mongo_loader.seed_mongo(shop.mongo, shop.name, 0.05)
    assert shop.store[mongo_loader.LOADING].count_documents({}) == 2_000


def test_what_a_server_refuses_while_it_is_loaded_is_one_sentence(servers, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise psycopg.errors.DiskFull("could not extend file:\nNo space left on device")

    monkeypatch.setattr(seed, "seed_postgres", full)
    monkeypatch.setattr(seed, "seed_mongo", full)
    with pytest.raises(WorkshopError) as caught:
        seed.ensure(servers, 0.01, anew=True)
    assert str(caught.value).count("could not extend file: No space left on device") == 2
    assert "\n" not in str(caught.value)


def test_what_a_killed_loader_left_is_cleared_away(shop) -> None:
    with postgres_loader.connect(shop.postgres) as admin:
        admin.execute(f"CREATE DATABASE {shop.name}_loading")
        admin.execute(f'COMMENT ON DATABASE {shop.name}_loading IS \'{{"workshop": "loading"}}\'')
    shop.store[f"{files.PROFILES}_loading"].insert_one({"_id": 1})
    postgres_loader.seed_postgres(shop.postgres, 0.01, database=shop.name)
    mongo_loader.seed_mongo(shop.mongo, shop.name, 0.01)
    assert databases(shop.postgres, shop.name) == {shop.name}
    assert set(shop.store.list_collection_names()) == {files.PROFILES, "workshop_meta"}


def test_a_shop_whose_drop_was_cut_short_is_made_anew(shop) -> None:
    with postgres_loader.connect(shop.postgres) as admin:
        for _ in range(2):
            rows = postgres_loader.seed_postgres(shop.postgres, 0.01, database=shop.name)
            assert postgres_loader.seeded_postgres(shop.postgres, shop.name)["rows"] == rows
            mark = "UPDATE pg_database SET datconnlimit = -2, datistemplate = false WHERE datname = %s"
            admin.execute(mark, [shop.name])  # as PostgreSQL leaves it
            assert postgres_loader.seeded_postgres(shop.postgres, shop.name) is None
    sandbox.drop_postgres(shop.postgres, shop.name)
    assert databases(shop.postgres, shop.name) == set()


def test_somebody_elses_database_is_never_dropped(shop) -> None:
    with postgres_loader.connect(shop.postgres) as admin:
        admin.execute(f"CREATE DATABASE {shop.name}")
        admin.execute(f"COMMENT ON DATABASE {shop.name} IS 'payroll'")
    shop.store[files.PROFILES].insert_one({"_id": 1})
    with pytest.raises(files.DataError, match="was not made by the workbook"):
        postgres_loader.seed_postgres(shop.postgres, 0.01, database=shop.name)
    with pytest.raises(files.DataError, match="was not made by the workbook"):
        mongo_loader.seed_mongo(shop.mongo, shop.name, 0.01)
    assert databases(shop.postgres, shop.name) == {shop.name}
    assert shop.store.list_collection_names() == [files.PROFILES]
