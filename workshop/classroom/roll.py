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
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from workshop.learner import Place
from workshop.state import WorkshopError, is_root, lock, read_json, state_dir, write_private

SANDBOXES = 6  # lessons that a learner may have open at once
FIRST_UID = 70_000  # up to 100,000: above the accounts of people, below those that containers map
TEACHER = "teacher"
RESETS = "resets.json"  # {seat: how often it was reset}
GONE = ".gone-"  # before the name of a home that is being deleted: no learner has such a name
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

    def password_of(self, server: str, seat: int) -> str:
        """The seat's password on a server, another one after each reset: who sat there before has only the old one."""
        return self.derived(f"{server} {read_json(self.folder / RESETS).get(str(seat), 0)}", seat)

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

    def seated(self) -> dict[str, dict]:
        """{learner: {"seat", "word"}}; `word` is a hash, "" where no word opens the seat any more."""
        return read_json(self.folder / "seats.json")

    def seat_of(self, name: str, word: str) -> int | None:
        """The seat of the learner `name`, given to her with her own `word` at her first login; None for a wrong word.

        Raises WorkshopError when no seat is free.
        """
        first = _hashed(word, secrets.token_hex(8))  # takes a while, so not with the lock held
        with lock(f"{self.kind}/seats.lock", 10):
            seated = self.seated()
            if name not in seated:
                free = ({0} if name == TEACHER else {*self.seats[1:]}) - {known["seat"] for known in seated.values()}
                if not free:
                    raise WorkshopError(f"all {self.learners} places are taken: start the class with more --learners")
                self._make_home(name, min(free))  # first: where the disk is full, the next login tries it again
                seated[name] = {"seat": min(free), "word": first}
                write_private(self.folder / "seats.json", json.dumps(seated))
        known = seated[name]["word"]
        return seated[name]["seat"] if hmac.compare_digest(known, _hashed(word, known.partition("$")[0])) else None

    def shut(self, name: str) -> int:
        """From now on no word opens the learner's seat, and its passwords are others; the seat."""
        with lock(f"{self.kind}/seats.lock", 10):
            seated, resets = self.seated(), read_json(self.folder / RESETS)
            seat = seated[name]["seat"]
            seated[name]["word"] = ""
            resets[str(seat)] = resets.get(str(seat), 0) + 1
            write_private(self.folder / RESETS, json.dumps(resets))
            write_private(self.folder / "seats.json", json.dumps(seated))
            return seat

    def forget(self, name: str) -> list[Path]:
        """Give the learner's seat to who comes next and delete her home; what of homes could not be deleted.

        Her next login is a first one. Her server does not run.
        """
        homes = self.folder / "homes"
        with lock(f"{self.kind}/seats.lock", 10):
            seated = self.seated()
            if seated.pop(name, None) and self.home(name).exists():
                self.home(name).rename(homes / f"{GONE}{name}-{secrets.token_hex(4)}")
            write_private(self.folder / "seats.json", json.dumps(seated))
        for gone in homes.glob(f"{GONE}*"):  # also those of a reset that was killed here
            shutil.rmtree(gone, ignore_errors=True)
        return list(homes.glob(f"{GONE}*"))

    def _make_home(self, name: str, seat: int) -> None:
        homes = self.folder / "homes"
        homes.mkdir(mode=0o711 if is_root() else 0o700, exist_ok=True)
        home = self.home(name)
        home.mkdir(mode=0o700, exist_ok=True)
        if (uid := self.uid(seat)) is not None:
            os.chown(home, uid, uid)


def _hashed(word: str, salt: str) -> str:
    return f"{salt}${hashlib.scrypt(word.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()}"


def found(kind: str) -> Roll | None:
    """The class that is there, running or not; None where there is none."""
    known = read_json(state_dir() / kind / "class.json")
    return Roll(**known) if known else None


def opened(kind: str, learners: int | None) -> Roll:
    """The class that is there, with this many `learners` (as many as it had, 30 at first), made where there is none."""
    folder = state_dir() / kind
    folder.mkdir(mode=0o711 if is_root() else 0o700, exist_ok=True)
    roll = found(kind) or Roll(
        kind=kind,
        key=secrets.token_hex(3),
        secret=secrets.token_hex(32),
        password="-".join("".join(secrets.choice(LETTERS) for _ in range(4)) for _ in range(3)),
        teacher_password=secrets.token_urlsafe(27),
        learners=learners or 30,
    )
    # Fewer than before would leave accounts behind that nobody knows.
    roll = replace(roll, learners=max(learners or 0, roll.learners))
    for seat in (roll.seats[0], roll.seats[-1]) if is_root() else ():
        with suppress(KeyError):
            raise WorkshopError(
                f"user id {roll.uid(seat)} is {pwd.getpwuid(roll.uid(seat)).pw_name}'s, and a class needs those from "
                f"{roll.uid(roll.seats[0])} on: run it as another user than root"
            )
    write_private(folder / "class.json", json.dumps(asdict(roll)))
    return roll
