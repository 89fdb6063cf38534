"""Results on disk: one JSON line per comparison, appended by notebooks that may run side by side."""

from __future__ import annotations

import fcntl
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FILE", "append", "latest", "read"]

FILE = "results.jsonl"


def append(record: Mapping[str, Any], path: Path) -> None:
    """Append `record` to the file `path` as one JSON line; its folder is made if need be.

    Several processes may append at once: the line goes out under a lock. It begins with a line break, so that a
    torn line, left by a process that died, spoils no other. Raises ValueError if `record` is not JSON (NaN is not).
    Where the file cannot be written, it warns: what was measured is worth more than its record.
    """
    try:
        line = b"\n" + json.dumps(dict(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"a result must be plain JSON, found {error}.") from error
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, even if this process dies
            while line:  # one write, save where the disk is full or a signal comes in between
                line = line[file.write(line) :]
    except OSError as error:
        warnings.warn(f"not kept in {path.name} ({error.strerror}): run the cell again when it can be", stacklevel=2)


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
            records.append(record)
    if unreadable:
        warnings.warn(f"{Path(path).name}: {unreadable} unreadable line(s) left out.", stacklevel=2)
    return records


def latest(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the last record of each comparison, oldest first; `records` are in the order of time, as `read`.

    One at several distances has a record for each; its nearest has another name where the servers are somebody's.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for record in records:
        parts = (record.get("lesson"), record.get("series") or record.get("name"), record.get("added_round_trip_ms"))
        key = tuple(map(str, parts))  # of a learner's file, which may hold anything
        found.pop(key, None)
        found[key] = dict(record)
    return list(found.values())
