"""Notebooks that are kept up to date without losing an edit; seats and words."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workshop.classroom import hub, roll
from workshop.classroom.homes import refresh
from workshop.state import WorkshopError, lock


@pytest.fixture
def folders(tmp_path):
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    shipped.mkdir()
    for name in ("00-a.ipynb", "01-b.ipynb"):
        (shipped / name).write_text(f"{name} first")
    assert refresh(own, shipped) == []
    return shipped, own


def test_what_was_not_touched_is_replaced(folders):
    shipped, own = folders
    (shipped / "00-a.ipynb").write_text("second")
    assert refresh(own, shipped) == []
    assert (own / "00-a.ipynb").read_text() == "second"


def test_an_edit_stays_and_the_new_one_lies_beside_it(folders):
    shipped, own = folders
    (own / "00-a.ipynb").write_text("my own")
    assert refresh(own, shipped) == []  # nothing new: nothing beside it
    (shipped / "00-a.ipynb").write_text("second")
    assert refresh(own, shipped) == ["00-a.new.ipynb"]
    assert refresh(own, shipped) == []
    (own / "00-a.new.ipynb").write_text("edited too")
    (shipped / "00-a.ipynb").write_text("third")
    assert refresh(own, shipped) == ["00-a.new-2.ipynb"]
    found = {path.name: path.read_text() for path in own.glob("00*")}
    assert found == {"00-a.ipynb": "my own", "00-a.new.ipynb": "edited too", "00-a.new-2.ipynb": "third"}


def test_what_was_deleted_stays_away_until_it_is_new(folders):
    shipped, own = folders
    (own / "01-b.ipynb").unlink()
    refresh(own, shipped)
    assert not (own / "01-b.ipynb").exists()
    (shipped / "01-b.ipynb").write_text("second")
    refresh(own, shipped)
    assert (own / "01-b.ipynb").read_text() == "second"


def test_a_copy_that_was_cut_short_does_not_count_as_edited(folders, monkeypatch):
    shipped, own = folders
    (shipped / "00-a.ipynb").write_text("second")

    def half(source: Path, target: Path) -> None:
        target.write_text(source.read_text()[:3])
        raise OSError("no space left on device")

    with monkeypatch.context() as full, pytest.raises(OSError, match="no space"):
        full.setattr(shutil, "copyfile", half)
        refresh(own, shipped)
    assert refresh(own, shipped) == []
    assert (own / "00-a.ipynb").read_text() == "second"


def test_seats_are_given_once_and_words_are_asked_again(own_state):
    klass = roll.opened("class", 2)
    ada, bob = klass.seat_of("ada", "apples"), klass.seat_of("bob", "pears")
    assert {ada, bob} == {1, 2}
    assert klass.seat_of("ada", "apples") == ada
    assert klass.seat_of("ada", "pears") is None
    assert klass.seat_of(roll.TEACHER, "taught") == 0
    with pytest.raises(WorkshopError, match="more --learners"):
        klass.seat_of("cy", "plums")
    assert roll.opened("class", None) == klass  # a killed class is found again
    (klass.home("ada") / "note").touch()
    passwords = {klass.password_of("postgres", seat) for seat in klass.seats}
    assert klass.shut("ada") == ada
    assert klass.seat_of("ada", "apples") is None
    assert klass.password_of("postgres", ada) not in passwords
    assert {klass.password_of("postgres", seat) for seat in klass.seats if seat != ada} < passwords
    assert klass.forget("ada") == []
    assert not klass.home("ada").exists()
    assert klass.seat_of("cy", "plums") == ada


def test_a_login_whose_home_cannot_be_made_is_tried_again(own_state):
    klass = roll.opened("class", 1)
    (klass.folder / "homes").touch()  # in its way
    with pytest.raises(OSError):
        klass.seat_of("ada", "apples")
    (klass.folder / "homes").unlink()
    assert klass.seat_of("ada", "apples") == 1 and klass.home("ada").is_dir()


def test_what_of_a_home_cannot_be_deleted_is_told_and_nobody_waits_for_it(own_state, monkeypatch):
    klass = roll.opened("class", 1)
    klass.seat_of("ada", "apples")
    with monkeypatch.context() as stubborn:

        def rmtree(*_: object, **__: object) -> None:
            with lock("class/seats.lock", 1):
                pass

        stubborn.setattr(shutil, "rmtree", rmtree)
        [left] = klass.forget("ada")
    assert left.is_dir() and not klass.home("ada").exists()
    klass.seat_of("bob", "pears")
    assert klass.forget("bob") == [] and not left.exists()


def test_the_hub_goes_on_while_a_login_waits(own_state):
    authenticator = hub.ClassAuthenticator(user_password="of the class", allow_all=True)
    authenticator.roll = SimpleNamespace(seat_of=lambda *_: time.sleep(1) or 1)

    async def others() -> float:
        login = asyncio.create_task(
            authenticator.authenticate(None, {"username": "ada", "password": "of the class", "otp": "apples"})
        )
        start = time.monotonic()
        await asyncio.sleep(0.1)
        waited = time.monotonic() - start
        assert (await login)["name"] == "ada"
        return waited

    assert asyncio.run(others()) < 0.5
