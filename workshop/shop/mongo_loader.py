"""The shop in MongoDB: one collection of profiles that lessons copy."""

from __future__ import annotations

import secrets
import time
from itertools import islice
from typing import Any

from pymongo import MongoClient, WriteConcern
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from workshop.progress import bar
from workshop.servers.mongo_server import connect
from workshop.shop import DATABASE
from workshop.shop.files import (
    BATCH,
    PROFILES,
    DataError,
    check_files,
    check_scale,
    document_of,
    profile_lines,
    read_manifest,
    version_of_data,
)
from workshop.state import WorkshopError

META = "workshop_meta"
TURN_S = 10  # how long a seeder that was killed keeps the next one waiting
TURN_DEADLINE_S = 1800.0
LOADING = f"{PROFILES}_loading"


def _uuid(collection: Collection) -> Any:
    """The collection's own identity, which a rename keeps; None when it is not there."""
    found = next(iter(collection.database.list_collections(filter={"name": collection.name})), None)
    return found["info"]["uuid"] if found else None


def seeded_mongo(url: str, database: str = DATABASE) -> dict[str, Any] | None:
    """What `database` was seeded with: scale and rows; None when it is not there or not complete."""
    with connect(url) as client:
        return _seeded_mongo(client, database)


def _seeded_mongo(client: MongoClient, database: str) -> dict[str, Any] | None:
    # The record names the collection that it describes, so it cannot be taken for another's.
    record = client[database][META].find_one({"_id": PROFILES}, {"_id": 0})
    if record is None or record.pop("collection", None) != _uuid(client[database][PROFILES]):
        return None
    return record


def seed_mongo(url: str, database: str = DATABASE, scale: float = 1.0, *, anew: bool = False) -> int:
    """Fill the collection `profiles`, or leave it when it is there at this scale and not wanted `anew`; its documents.

    They are loaded as `profiles_loading`, which is renamed in the last step and dropped on any error; when the seeder
    itself is stopped, the next one goes on behind its last whole batch. Of several seeders on one server one works and
    the others wait for it.

    Raises DataError (files), ValueError (scale) and pymongo.errors.PyMongoError (server).
    """
    check_scale(scale)
    manifest = read_manifest()
    with connect(url) as client:

        def rows_if_done() -> int | None:
            record = _seeded_mongo(client, database)
            done = record and record["scale"] == scale and record["version"] == version_of_data(manifest)
            return record["rows"][PROFILES] if done else None

        if not anew and (rows := rows_if_done()):
            return rows
        check_files()
        store = client[database]
        if _uuid(store[PROFILES]) and not store[META].find_one({"_id": PROFILES}):
            raise DataError(
                f"the MongoDB collection {database}.{PROFILES} was not made by the workbook: expected its record in "
                f"{META}, found none; rename that collection or drop it, then run `python -m workshop reset`"
            )
        with _Turn(store[META]) as turn:
            if not anew and (rows := rows_if_done()):
                return rows
            # Until the rename nothing counts, so a loading write need not wait for the journal.
            loading = store.get_collection(LOADING, write_concern=WriteConcern(w=1, j=False))
            try:
                begun = {"_id": LOADING, "scale": scale, "version": version_of_data(manifest)}
                if store[META].find_one({"_id": LOADING}) != {**begun, "collection": _uuid(loading)}:
                    loading.drop()
                    store.create_collection(LOADING)
                    store[META].replace_one({"_id": LOADING}, {**begun, "collection": _uuid(loading)}, upsert=True)
                rows = _load_mongo(loading, scale, manifest, turn)
                record = {"scale": scale, "version": version_of_data(manifest), "rows": {PROFILES: rows}}
                turn.extend()  # raises when another seeder has taken over
                store[META].replace_one({"_id": PROFILES}, {**record, "collection": _uuid(loading)}, upsert=True)
                loading.rename(PROFILES, dropTarget=True)
            except TurnLost:
                raise
            except Exception:
                turn.extend()  # who has lost it drops nothing: by now that is another seeder's load
                loading.drop()
                store[META].delete_one({"_id": LOADING})
                raise
            store[META].delete_one({"_id": LOADING})
            return rows


class TurnLost(WorkshopError):
    """A seeder was away for so long that another one took its turn."""


class _Turn:
    """The seeders' turn: a document that one of them holds until a time by the server's clock, and extends."""

    def __init__(self, meta: Collection) -> None:
        self._meta = meta
        self._token = secrets.token_hex(8)
        self._extended = 0.0

    def __enter__(self) -> _Turn:
        give_up = time.monotonic() + TURN_DEADLINE_S
        over = {"$expr": {"$lt": ["$until", "$$NOW"]}}
        never_taken = {"token": {"$exists": False}}
        while not (self._write(over) or self._write(never_taken, upsert=True)):
            if time.monotonic() > give_up:
                raise WorkshopError(
                    f"another process has seeded MongoDB for {TURN_DEADLINE_S:.0f} s: wait for it or end it, "
                    "then run the command again"
                )
            time.sleep(0.2)
        return self

    def __exit__(self, *exception: object) -> None:
        self._meta.delete_one({"_id": "turn", "token": self._token})

    def extend(self) -> None:
        """Hold it for TURN_S seconds more. Raises TurnLost when another seeder has it."""
        if not self._write({"token": self._token}):
            raise TurnLost("another process seeds this MongoDB now: wait for it, then run the command again")

    def extend_in_time(self) -> None:
        if time.monotonic() - self._extended > TURN_S / 4:
            self.extend()

    def _write(self, condition: dict[str, Any], upsert: bool = False) -> bool:
        until = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": TURN_S}}
        turn = [{"$set": {"token": self._token, "until": until}}]
        try:
            done = self._meta.update_one({"_id": "turn", **condition}, turn, upsert=upsert)
        except DuplicateKeyError:  # it is there, and somebody's
            return False
        self._extended = time.monotonic()
        return bool(done.matched_count or done.upserted_id)


def _load_mongo(loading: Collection, scale: float, manifest: dict[str, Any], turn: _Turn) -> int:
    """Insert the profiles that are not there yet, in batches; their number."""
    rows = 0
    # The profiles' ids count from 1, in order; only the last batch of a seeder that was stopped can be a part.
    there = loading.count_documents({}) // BATCH * BATCH
    loading.delete_many({"_id": {"$gt": there}})
    lines = profile_lines(scale)
    with bar("MongoDB", manifest["tables"][PROFILES]["rows"] * scale, unit=" rows") as shown:
        while batch := list(islice(lines, BATCH)):
            if rows >= there:
                loading.insert_many(map(document_of, batch), ordered=False)
            rows += len(batch)
            turn.extend_in_time()
            shown.update(len(batch))
    if (count := loading.count_documents({})) != rows:
        raise DataError(
            f"{PROFILES} holds {count:,} documents, expected {rows:,}: run `python -m workshop reset` to load it again"
        )
    return rows
