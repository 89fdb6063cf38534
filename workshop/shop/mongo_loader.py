"""The shop in MongoDB: one collection of profiles that lessons copy."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path
from typing import Any

from pymongo import MongoClient, WriteConcern
from pymongo.collection import Collection

from workshop.shop import DATABASE
from workshop.shop.files import (
    BATCH,
    DATA,
    PROFILES,
    DataError,
    canonical,
    check_files,
    check_scale,
    check_stream,
    document_of,
    profile_lines,
    progress_bar,
    read_manifest,
    version_of_data,
)

_META = "workshop_meta"
_LOADING = f"{PROFILES}_loading"


def _uuid(collection: Collection) -> Any:
    """The collection's own identity, which a rename keeps; None when it is not there."""
    found = next(iter(collection.database.list_collections(filter={"name": collection.name})), None)
    return found["info"]["uuid"] if found else None


def _client(url: str) -> MongoClient:
    return MongoClient(url, serverSelectionTimeoutMS=10_000)


def seeded_mongo(url: str, database: str = DATABASE) -> dict[str, Any] | None:
    """What ``database`` was seeded with: scale, rows and checksums; None when it is not there or not
    complete.
    """
    with _client(url) as client:
        return _seeded_mongo(client, database)


def _seeded_mongo(client: MongoClient, database: str) -> dict[str, Any] | None:
    # The record names the collection that it describes, so it cannot be taken for another's.
    record = client[database][_META].find_one({"_id": PROFILES}, {"_id": 0})
    if record is None or record.pop("collection", None) != _uuid(client[database][PROFILES]):
        return None
    return record


def seed_mongo(
    url: str,
    database: str = DATABASE,
    scale: float = 1.0,
    progress: bool = True,
    *,
    data_dir: Path | None = None,
) -> int:
    """Fill the collection ``profiles``, or leave it when it is there at this scale; the number of documents.

    They are loaded as ``profiles_loading``, which is renamed in the last step and dropped on any error.

    Raises DataError (files), ValueError (scale) and pymongo.errors.PyMongoError (server).
    """
    check_scale(scale)
    folder = data_dir or DATA
    manifest = read_manifest(folder)
    with _client(url) as client:
        record = _seeded_mongo(client, database)
        if record and record["scale"] == scale and record["version"] == version_of_data(manifest):
            return record["rows"][PROFILES]
        check_files(folder)
        store = client[database]
        if _uuid(store[PROFILES]) and not store[_META].find_one():
            raise DataError(
                f"the MongoDB collection {database}.{PROFILES} was not made by the workbook: expected its "
                f"record in {_META}, "
                "found none; rename that collection or drop it, then run `python -m workshop reset`"
            )
        # Until the rename nothing counts, so a loading write need not wait for the journal.
        loading = store.get_collection(_LOADING, write_concern=WriteConcern(w=1, j=False))
        try:
            loading.drop()
            rows, sha256 = _load_mongo(loading, scale, manifest, folder, progress)
            if scale == 1:
                check_stream(PROFILES, rows, sha256, manifest)
            record = {
                "scale": scale,
                "version": version_of_data(manifest),
                "rows": {PROFILES: rows},
                "checksums": {PROFILES: sha256},
            }
            store[_META].replace_one({"_id": PROFILES}, {**record, "collection": _uuid(loading)}, upsert=True)
            loading.rename(PROFILES, dropTarget=True)
        except BaseException:
            loading.drop()
            raise
        return rows


def _load_mongo(
    loading: Collection, scale: float, manifest: dict[str, Any], folder: Path, progress: bool
) -> tuple[int, str]:
    """Insert the profiles in unordered batches; their number and SHA-256."""
    digest, rows = hashlib.sha256(), 0
    lines = profile_lines(scale, folder)
    with progress_bar("MongoDB", manifest["tables"][PROFILES]["rows"] * scale, progress) as bar:
        while batch := list(islice(lines, BATCH)):
            digest.update(b"".join(batch))
            loading.insert_many(map(document_of, batch), ordered=False)
            rows += len(batch)
            bar.update(len(batch))
    if (count := loading.count_documents({})) != rows:
        raise DataError(
            f"{PROFILES} holds {count:,} documents, expected {rows:,}: run `python -m workshop reset` to load it again"
        )
    return rows, digest.hexdigest()


def profiles_checksum(collection: Collection) -> str:
    """SHA-256 of the documents as canonical JSON lines in order of _id; at scale 1 it is the manifest's."""
    digest = hashlib.sha256()
    for document in collection.find().sort("_id"):
        digest.update(canonical(document))
    return digest.hexdigest()
