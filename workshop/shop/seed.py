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
from workshop.shop.files import read_manifest, version_of_data
from workshop.shop.mongo_loader import seed_mongo, seeded_mongo
from workshop.shop.postgres_loader import seed_postgres, seeded_postgres


def ensure(servers: Servers, scale: float | None = None, *, anew: bool = False) -> None:
    """Seed what is not seeded yet, PostgreSQL and MongoDB at the same time; `anew`: also what is.

    Without a `scale` a shop that is there keeps its own; a missing one is made at the scale of the other store, or at
    1. A shop that was loaded from other files than those in data/ now is replaced. Seeding anew happens beside the shop
    that is there and takes its place in the last step: copies that are open stay as they are.
    """
    seeders = {"postgres": (seeded_postgres, seed_postgres), "mongo": (seeded_mongo, seed_mongo)}
    wanted = {name: seeders[name] for name in seeders if name in servers}
    urls = {name: servers.services[name].url for name in wanted}
    records = {name: seeded(urls[name]) for name, (seeded, _) in wanted.items()}
    scale = scale or next((record["scale"] for record in records.values() if record), 1.0)
    version = version_of_data(read_manifest())
    missing = [n for n, r in records.items() if anew or not r or (r["scale"], r["version"]) != (scale, version)]
    if not missing:
        return
    with ThreadPoolExecutor(len(missing)) as pool:
        loading = [pool.submit(wanted[name][1], urls[name], scale=scale, anew=anew) for name in missing]
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
