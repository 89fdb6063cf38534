"""Notebooks that are kept up to date without losing an edit; seats and words."""

from __future__ import annotations

import pytest

from workshop.classroom import roll
from workshop.classroom.homes import refresh
from workshop.state import WorkshopError


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
    assert klass.forget("ada") == ada
    assert not klass.home("ada").exists()
    assert klass.seat_of("cy", "plums") == ada
