"""The shop on all servers: seed what is missing, say what is there, remove it.

Nothing is loaded before the SHA-256 of every file has been checked, and what is loaded appears under its name
in the last step: PostgreSQL's database is renamed, MongoDB's collection is renamed. So a store holds the
whole shop or none of it.

The unit of size is the scale: 1 is the data as shipped (100,000 customers), 0.2 its first fifth of customers
with their orders, 10 is ten copies with shifted ids. Streams are made block by block, so memory does not grow
with the scale.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from workshop.servers.service import Servers, Service
from workshop.shop import DATABASE
from workshop.shop.files import PROFILES, read_manifest, version_of_data
from workshop.shop.mongo_loader import _LOADING, _META, _client, seed_mongo, seeded_mongo
from workshop.shop.postgres_loader import _drop_ours, connect, seed_postgres, seeded_postgres
from workshop.state import lock


def ensure(servers: Servers, scale: float | None = None) -> None:
    """Seed what is not seeded yet, PostgreSQL and MongoDB at the same time.

    Without a `scale` a shop that is there keeps its own; a missing one is made at the scale of the other store,
    or at 1. A shop that was loaded from other files than those in data/ now is replaced.
    """
    records = [seeded_postgres(servers.postgres), seeded_mongo(servers.mongo)]
    wanted = scale or next((record["scale"] for record in records if record), 1.0)
    version = version_of_data(read_manifest())
    if all(record and (record["scale"], record["version"]) == (wanted, version) for record in records):
        return
    with lock("seed.lock", 1800), ThreadPoolExecutor(2) as pool:
        loading = [
            pool.submit(seed_postgres, servers.postgres, wanted),
            pool.submit(seed_mongo, servers.mongo, scale=wanted),
        ]
    for future in loading:
        future.result()


def status(postgres: Service | None, mongo: Service | None) -> dict[str, Any]:
    """{"scale", "rows": {table: n}} of what is seeded; a scale of None and no rows where nothing is."""
    records = [
        seeded_postgres(postgres.url) if postgres else None,
        seeded_mongo(mongo.url) if mongo else None,
    ]
    found = [record for record in records if record]
    rows = {table: count for record in found for table, count in record["rows"].items()}
    return {"scale": found[0]["scale"] if found else None, "rows": rows}


def remove(servers: Servers) -> None:
    """Drop the seeded shop from both stores; what the workbook did not make stays."""
    with connect(servers.postgres) as admin:
        _drop_ours(admin, DATABASE)
    with _client(servers.mongo) as client:
        if client[DATABASE][_META].find_one():
            for collection in (PROFILES, _LOADING, _META):
                client[DATABASE].drop_collection(collection)
