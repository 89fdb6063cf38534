"""The shop on all servers: seed what is missing, and say what is there.

Nothing is loaded before the SHA-256 of every file has been checked, and what is loaded appears under its name
in the last step: PostgreSQL's database is renamed, MongoDB's collection is renamed. So a store holds the
whole shop or none of it.

The unit of size is the scale: 1 is the data as shipped (100,000 customers), 0.2 its first fifth of customers
with their orders, 10 is ten copies with shifted ids. Streams are made block by block, so memory does not grow
with the scale.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
from pymongo.errors import PyMongoError

from workshop.servers.service import Servers, Service
from workshop.shop import WITH_BIOGRAPHIES
from workshop.shop.files import read_manifest, version_of_data
from workshop.shop.mongo_loader import seed_mongo, seeded_mongo
from workshop.shop.postgres_loader import seed_postgres, seeded_postgres
from workshop.state import WorkshopError


def ensure(servers: Servers, scale: float | None = None, *, biographies: bool = False, anew: bool = False) -> None:
    """Seed what is not seeded yet, PostgreSQL and MongoDB at the same time; `anew`: also what is.

    The shop with `biographies` is made when somebody asks for it, and made anew where it is there.
    Without a `scale` it is that of the shop that is there, PostgreSQL's where the two stores differ, or 1. A shop that
    was loaded from other files than those in data/ now is replaced. Seeding anew happens beside the shop that is there
    and takes its place in the last step: copies that are open stay as they are.

    Raises ValueError for a scale out of range, else WorkshopError.
    """
    found = []  # (what it was seeded with, how to seed it)
    if "postgres" in servers:
        found.append((seeded_postgres(servers.postgres), partial(seed_postgres, servers.postgres)))
        rich = seeded_postgres(servers.postgres, WITH_BIOGRAPHIES)
        if biographies or (anew and rich):
            found.append((rich, partial(seed_postgres, servers.postgres, biographies=True)))
    if "mongo" in servers:
        found.append((seeded_mongo(servers.mongo), partial(seed_mongo, servers.mongo)))
    scale = scale or next((record["scale"] for record, _ in found if record), 1.0)
    current = (scale, version_of_data(read_manifest()))
    missing = [seed for record, seed in found if anew or not record or (record["scale"], record["version"]) != current]
    if not missing:
        return
    with ThreadPoolExecutor(len(missing)) as pool:
        loading = [pool.submit(seed, scale=scale, anew=anew) for seed in missing]
    failed = [error for future in loading if (error := future.exception())]
    for error in failed:
        if not isinstance(error, (psycopg.Error, PyMongoError)):
            raise error
    if failed:
        reasons = "; ".join(" ".join(str(error).split()) for error in failed)
        raise WorkshopError(f"the shop could not be loaded, run the command again: {reasons}") from failed[0]


def status(postgres: Service | None, mongo: Service | None) -> dict[str, Any]:
    """{"scale", "rows": {table: n}} of what is seeded; a scale of None and no rows where nothing is."""
    records = [
        seeded_postgres(postgres.url) if postgres else None,
        seeded_mongo(mongo.url) if mongo else None,
    ]
    found = [record for record in records if record]
    rows = {table: count for record in found for table, count in record["rows"].items()}
    return {"scale": found[0]["scale"] if found else None, "rows": rows}
