"""A learner's notebooks: a copy of those that are shipped, kept up to date without losing an edit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from itertools import count
from pathlib import Path

from workshop.state import read_json, write_private

SHIPPED = ".shipped.json"  # in the learner's folder: {file: SHA-256 of what was copied there}
COPIED = ("*.ipynb", "*.md", "*.png", "*.csv", "*.json")


def refresh(folder: Path, source: Path) -> list[str]:
    """Bring the files of `source` to `folder`; the names of those that lie beside an edited one.

    What the learner has not touched is replaced. What she has edited (or deleted) stays as it is; where the shipped one
    has changed since, it is put beside hers, as NAME.new.ipynb, then NAME.new-2.ipynb and so on.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    known = read_json(folder / SHIPPED)
    beside = []
    for new in sorted(path for pattern in COPIED for path in source.glob(pattern)):
        digest, own = _digest(new), folder / new.name
        if known.get(new.name) == digest:
            continue  # nothing new since the last time, whatever she has done to it
        if own.exists() and _digest(own) not in (known.get(new.name), digest):
            own = _free(folder, new, digest)
            beside.append(own.name)
        shutil.copyfile(new, folder / ".copying")
        os.replace(folder / ".copying", own)  # in one step: half a one would count as edited
        known[new.name] = digest
    write_private(folder / SHIPPED, json.dumps(known, indent=1))
    return beside


def _free(folder: Path, new: Path, digest: str) -> Path:
    """A name beside the learner's file that no other file has, unless that is the very same."""
    for number in count(1):
        path = folder / f"{new.stem}.new{f'-{number}' if number > 1 else ''}{new.suffix}"
        if not path.exists() or _digest(path) == digest:
            return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
