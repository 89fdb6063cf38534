"""Results on disk: one JSON line per comparison, appended by notebooks that may run side by side."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["FILE", "append", "latest", "read"]

FILE = "results.jsonl"


def append(record: Mapping[str, Any], path: Path) -> None:
    """Append `record` to the file `path` as one JSON line; its folder is made if need be.

    Several processes may append at once: the line goes out in a single write under a lock. A torn last line,
    left by a process that died, is closed first, so that it spoils no other. Raises ValueError if `record` is
    not JSON (NaN is not).
    """
    try:
        line = json.dumps(dict(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"a result must be plain JSON, found {error}.") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file is closed, even if this process dies
        size = os.lseek(handle, 0, os.SEEK_END)
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            if os.read(handle, 1) != b"\n":
                line = b"\n" + line
        while line:  # one write, save where the disk is full or a signal comes in between
            line = line[os.write(handle, line) :]
    finally:
        os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """Return all records of `path`, oldest first; an absent file has none.

    A torn last line is left out silently, since its writer may be at work; any other unreadable line with a
    warning.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records, unreadable = [], 0
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
        except ValueError:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
            unreadable += i < len(lines) - 1
        else:
            records.append(_renamed(record))
    if unreadable:
        warnings.warn(f"{Path(path).name}: {unreadable} unreadable line(s) left out.", stacklevel=2)
    return records


# What earlier versions of the workbook called it.
_RENAMED = {"floor_s": "lower_bound_s", "noise_floor": "noise", "to_floor": "to_lower_bound"}


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    """The record under the names of today."""
    samples = record.get("samples")
    if isinstance(samples, dict) and "floor" in samples:
        record["samples"] = {"lower_bound" if arm == "floor" else arm: taken for arm, taken in samples.items()}
    return {_RENAMED.get(key, key): value for key, value in record.items()}


def latest(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the latest record of each (lesson, name) by its time `at`; of equal times the last."""
    found: dict[tuple[Any, Any], dict[str, Any]] = {}
    for record in sorted(records, key=_time):  # sorted() keeps the order of equal times
        key = (record.get("lesson"), record.get("name"))
        found.pop(key, None)
        found[key] = dict(record)
    return list(found.values())


def _time(record: Mapping[str, Any]) -> datetime:
    try:
        at = datetime.fromisoformat(str(record.get("at")))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return at if at.tzinfo else at.replace(tzinfo=UTC)
