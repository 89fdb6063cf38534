"""Fixtures: the real servers, and databases on them that go after each test."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import psycopg
import pymongo
import pytest
import redis
from nbval.plugin import IPyNbCell
from sqlalchemy import URL

from workshop import results, sandbox
from workshop.servers import lifecycle
from workshop.servers.postgres_server import dsn
from workshop.servers.service import Servers
from workshop.shop import seed
from workshop.state import setting, state_dir

# Each process of `pytest -n` has servers of its own, so what a whole server counts is one test's or one notebook's.
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
COMMON_STATE = state_dir() if WORKER else None
if WORKER:
    os.environ["WORKSHOP_STATE"] = str(COMMON_STATE / WORKER)


def pytest_xdist_auto_num_workers() -> int:
    """Two for `-n auto`; none beside the only one where URLs lead all of them to the same servers."""
    return 0 if any(setting(f"WORKSHOP_{name}_URL") for name in ("POSTGRES", "REDIS", "MONGO")) else 2


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cells of notebooks, so that `make test` can leave out what stands under "Going further"."""
    lengths: dict[Path, int] = {}
    for item in items:
        if isinstance(item, IPyNbCell):
            if item.path not in lengths:
                cells = takewhile(lambda cell: not cell.source.startswith("## Going further"), item.parent.nb.cells)
                lengths[item.path] = sum(cell.cell_type == "code" for cell in cells)
            item.add_marker("lesson")
            if item.cell_num >= lengths[item.path]:
                item.add_marker("long")


def pytest_sessionfinish() -> None:
    """Stop the worker's own servers and keep what its notebooks measured, as a run in the lab would."""
    if WORKER:
        own = COMMON_STATE / WORKER
        lifecycle.down()
        for record in results.read(own / results.FILE):
            results.append(record, COMMON_STATE / results.FILE)
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(scope="session")
def servers() -> Servers:
    """The workbook's servers, started where they are not running. They stay up, as after `make lab`."""
    return lifecycle.up()


def _scratch(servers: Servers) -> Iterator[URL]:
    name = f"workshop_test_{secrets.token_hex(4)}"
    with psycopg.connect(dsn(servers.postgres), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield servers.postgres.set(database=name)
    sandbox.drop_postgres(servers.postgres, name)


@pytest.fixture
def scratch(servers: Servers) -> Iterator[URL]:
    """A fresh, empty PostgreSQL database."""
    yield from _scratch(servers)


@pytest.fixture(scope="module")
def scratch_of_module(servers: Servers) -> Iterator[URL]:
    """One database for a module, empty at its beginning: for tests that leave nothing behind, or say what."""
    yield from _scratch(servers)


@pytest.fixture
def scratch_mongo(servers: Servers) -> Iterator[pymongo.database.Database]:
    """A fresh MongoDB database."""
    with pymongo.MongoClient(servers.mongo, serverSelectionTimeoutMS=5000) as client:
        name = f"workshop_test_{secrets.token_hex(4)}"
        yield client[name]
        client.drop_database(name)


@pytest.fixture
def scratch_redis_url(servers: Servers) -> Iterator[str]:
    """The URL of an empty Redis database."""
    box = sandbox.create(servers, "test", ["redis"])
    yield box.redis
    box.drop()


@pytest.fixture
def scratch_redis(scratch_redis_url: str) -> Iterator[redis.Redis]:
    """A client on it."""
    with redis.Redis.from_url(scratch_redis_url, decode_responses=True) as client:
        yield client


def _own_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="workshop test ", dir="/tmp"))  # a space in the path, on purpose
    folder.chmod(0o711)  # pytest's tmp_path is closed to the account that runs PostgreSQL for root
    for variable in ("POSTGRES_URL", "REPLICA_URLS", "REDIS_URL", "MONGO_URL"):
        monkeypatch.setenv(f"WORKSHOP_{variable}", "")  # empty, so that a .env does not speak either
    monkeypatch.setenv("WORKSHOP_STATE", str(folder))
    yield folder
    lifecycle.down()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of the test's own: its servers start from nothing and are stopped afterwards."""
    yield from _own_state(monkeypatch)


@pytest.fixture(scope="module")
def small_shop() -> Iterator[Servers]:
    """Servers of the module's own with a hundredth of the shop: copies of it take next to no time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for _ in _own_state(monkeypatch):
            servers = lifecycle.up()
            seed.ensure(servers, 0.01)
            yield servers
