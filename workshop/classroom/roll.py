"""The class on disk: its secrets, and who has which seat. A class that was killed is found again by it.

A seat is a number; its names, passwords and user id follow from the class's secret, so there is nothing to keep
for each. Names that learners choose are given a seat when they first log in.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import pwd
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from workshop.learner import Place
from workshop.state import WorkshopError, is_root, lock, read_json, state_dir, write_private

SANDBOXES = 6  # lessons that a learner may have open at once
FIRST_UID = 70_000  # up to 100,000: above the accounts of people, below those that containers map
TEACHER = "teacher"
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # no two of them look alike on a handout


@dataclass(frozen=True)
class Roll:
    """A class. `kind` is "class" or "rehearsal", which is the folder's name, too."""

    kind: str
    key: str  # six hexadecimal digits: two classes on one server have other names
    secret: str
    password: str
    teacher_password: str
    learners: int

    @property
    def folder(self) -> Path:
        return state_dir() / self.kind

    @property
    def prefix(self) -> str:
        """Before the name of all that is made on the servers."""
        return f"workshop_{self.kind}_{self.key}_"

    @property
    def seats(self) -> range:
        """All seats; 0 is the teacher's."""
        return range(self.learners + 1)

    def account(self, seat: int) -> str:
        """The seat's PostgreSQL role and MongoDB user."""
        return f"{self.prefix}{seat:02}"

    def derived(self, what: str, seat: int = 0) -> str:
        """A secret of the seat, 32 hexadecimal digits; the same for as long as the class is kept."""
        return hmac.new(self.secret.encode(), f"{what} {seat}".encode(), hashlib.sha256).hexdigest()[:32]

    def uid(self, seat: int) -> int | None:
        """The user id that the seat's processes have; None where they have the class's, which is not root."""
        # Classes of one machine, also of several checkouts, have other ids.
        return FIRST_UID + int(self.key, 16) % 120 * 250 + seat if is_root() else None

    def place(self, seat: int, turns: int) -> Place:
        names = (self.derived(f"sandbox {number}", seat)[:8] for number in range(SANDBOXES))
        return Place(
            sandboxes=tuple(f"workshop_sandbox_{self.kind[0]}{seat:02}_{name}" for name in names),
            templates=self.prefix,
            spare=f"{self.account(seat)}_spare",
            leases=f"workshop_leases_{self.account(seat)}",
            turns=turns,
        )

    def home(self, name: str) -> Path:
        return self.folder / "homes" / name

    # --- who sits where ---------------------------------------------------------------------------------------------

    def seated(self) -> dict[str, dict]:
        """{learner: {"seat", "word"}}; `word` is a hash."""
        return read_json(self.folder / "seats.json")

    def seat_of(self, name: str, word: str) -> int | None:
        """The seat of the learner `name`, given to her with her own `word` at her first login; None for a wrong word.

        Raises WorkshopError when no seat is free.
        """
        with lock(f"{self.kind}/seats.lock", 10):
            seated = self.seated()
            if name in seated:
                salt, _, known = seated[name]["word"].partition("$")
                return seated[name]["seat"] if hmac.compare_digest(known, _hashed(word, salt)) else None
            taken = {known["seat"] for known in seated.values()}
            free = [0] if name == TEACHER else self.seats[1:]
            seat = next((seat for seat in free if seat not in taken), None)
            if seat is None:
                raise WorkshopError(f"all {self.learners} places are taken: start the class with more --learners")
            salt = secrets.token_hex(8)
            seated[name] = {"seat": seat, "word": f"{salt}${_hashed(word, salt)}"}
            write_private(self.folder / "seats.json", json.dumps(seated))
            self._make_home(name, seat)
            return seat

    def forget(self, name: str) -> int | None:
        """Take the learner's seat away and delete her home; the seat, None for somebody who has none.

        Her next login is a first one. Her server does not run.
        """
        with lock(f"{self.kind}/seats.lock", 10):
            seated = self.seated()
            seat = seated.pop(name, {}).get("seat")
            if seat is not None:
                shutil.rmtree(self.home(name), ignore_errors=True)
                write_private(self.folder / "seats.json", json.dumps(seated))
            return seat

    def _make_home(self, name: str, seat: int) -> None:
        homes = self.folder / "homes"
        homes.mkdir(mode=0o711 if is_root() else 0o700, exist_ok=True)
        home = self.home(name)
        home.mkdir(mode=0o700, exist_ok=True)
        if (uid := self.uid(seat)) is not None:
            os.chown(home, uid, uid)


def _hashed(word: str, salt: str) -> str:
    return hashlib.scrypt(word.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()


def found(kind: str) -> Roll | None:
    """The class that is there, running or not; None where there is none."""
    known = read_json(state_dir() / kind / "class.json")
    return Roll(**known) if known else None


def opened(kind: str, learners: int | None) -> Roll:
    """The class that is there, with this many `learners` (as many as it had, 30 at first), made where there is none."""
    known = found(kind)
    folder = state_dir() / kind
    folder.mkdir(mode=0o711 if is_root() else 0o700, exist_ok=True)
    letters = ["".join(secrets.choice(LETTERS) for _ in range(4)) for _ in range(3)]
    roll = Roll(
        kind=kind,
        key=known.key if known else secrets.token_hex(3),
        secret=known.secret if known else secrets.token_hex(32),
        password=known.password if known else "-".join(letters),
        teacher_password=known.teacher_password if known else secrets.token_urlsafe(27),
        # Fewer than before would leave accounts behind that nobody knows.
        learners=max(learners or (known.learners if known else 30), known.learners if known else 1),
    )
    for seat in (roll.seats[0], roll.seats[-1]) if is_root() else ():
        try:
            raise WorkshopError(
                f"user id {roll.uid(seat)} is {pwd.getpwuid(roll.uid(seat)).pw_name}'s, and a class needs those from "
                f"{roll.uid(roll.seats[0])} on: run it as another user than root"
            )
        except KeyError:
            pass
    write_private(folder / "class.json", json.dumps(asdict(roll)))
    return roll
