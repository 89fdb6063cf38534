"""A class from its start to its end, as a teacher and two learners meet it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from certipy import Certipy
from playwright.sync_api import Browser, Page, expect, sync_playwright
from traitlets.config import Config

from workshop import learner, state
from workshop.classroom import accounts, command, hub, roll
from workshop.servers import lifecycle
from workshop.servers.postgres_server import connect
from workshop.servers.process import ServerProcess, free_port
from workshop.shop.postgres_loader import seeded_postgres
from workshop.state import CHECKOUT, WorkshopError, is_root

pytestmark = pytest.mark.timeout(900)
START_S, OPEN_S, END_S = (
    240,
    90,
    240,
)  # the first and the last longer than the code's own deadlines, or this fails first
PROGRAM = os.environ.get("CHROMIUM")


def workshop(*options: str) -> list[str]:
    return [sys.executable, "-m", "workshop", "classroom", *options]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A class's process from when it has printed its address, and what it has printed."""
    log = folder / "printed"
    with open(log, "w", encoding="utf-8") as printed:
        process = subprocess.Popen(workshop(*options), stdout=printed, stderr=printed, cwd=CHECKOUT)
    try:
        give_up = time.monotonic() + START_S
        while "Ctrl-C" not in log.read_text():
            assert process.poll() is None and time.monotonic() < give_up, log.read_text()[-2000:]
            time.sleep(0.2)
        yield process, log.read_text()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(END_S)


def left(folder: Path) -> list[str]:
    """Processes that work in the class's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.cwd():
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            pass
    return found


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--ip", "192.168.1.5"], "passwords would cross the network in clear"),
        (["--ip", "somewhere"], "is an address"),
        (["--certificate", "x"], "come together"),
        (["--learners", "0"], "a number from 1 to 200"),
        (["--delete-homes"], "comes with --close"),
        (["--port", "70000"], "a number from 1 to 65535"),
        (["--scale", "1000"], "a number from 0.01 to 100"),
        (["--certificate", __file__, "--key", __file__], "are no certificate and its key"),
    ],
)
def test_wrong_use(options, sentence):
    done = subprocess.run(workshop(*options), capture_output=True, text=True, cwd=CHECKOUT, timeout=60)
    assert done.returncode == 2 and sentence in done.stderr


def test_a_class_that_runs_is_not_ended_by_a_second_command(own_state):
    with command.only_one("class"):
        for options in (["--learners", "2"], ["--close"]):
            done = subprocess.run(workshop(*options), capture_output=True, text=True, cwd=CHECKOUT, timeout=60)
            assert done.returncode == 1 and "a class runs already" in done.stderr
        assert not (own_state / "class").exists()


def test_who_stands_in_the_classs_folder_is_not_of_the_class(own_state, monkeypatch):
    klass = roll.opened("class", 1)
    (own_state / "link").symlink_to(own_state)
    monkeypatch.setenv("WORKSHOP_STATE", str(own_state / "link"))  # a process tells its folder without links
    sleep = ["sleep", "60"]
    teachers = subprocess.Popen(sleep, cwd=klass.folder)
    learners = subprocess.Popen(sleep, cwd=klass.folder, env={**os.environ, learner.VARIABLE: "{}"})
    try:
        command._Hub(klass).stop()
        learners.wait(5)
        assert teachers.poll() is None
    finally:
        teachers.kill()
        teachers.wait()


def test_a_rehearsal_does_not_go_on_with_one_that_was_killed(own_state, monkeypatch):
    home = roll.opened("rehearsal", 30).home("learner-01")
    home.mkdir(parents=True)
    monkeypatch.setattr(accounts, "remove", lambda *_: None)
    monkeypatch.setattr(lifecycle, "up", lambda *_: None)

    def hold(kind: str, given: Namespace) -> int:
        assert not home.exists() and roll.opened(kind, given.learners).learners == 5
        return 0

    monkeypatch.setattr(command, "_hold", hold)
    assert command.main(["--rehearse", "--learners", "5"]) == 0


def test_ipv6_and_a_hub_that_does_not_start(own_state, monkeypatch):
    try:
        command._port("::1", command.PORT)
    except WorkshopError as lacking:
        pytest.skip(str(lacking))
    given = Namespace(ip="::1", port=command.PORT, certificate=None, key=None, spawner="local", image="", network="")
    klass = roll.opened("class", 1)
    monkeypatch.setattr(ServerProcess, "start", Mock(side_effect=WorkshopError("run `python -m workshop reset`")))
    monkeypatch.setenv(command.KIND, "")  # so that both are put back
    with pytest.raises(WorkshopError, match=r"read .*/class/hub/server\.log"):
        command._Hub(klass).start(given, "127.0.0.1")
    configuration = Config()
    hub.configure(configuration, "class")
    assert re.fullmatch(r"http://\[::1\]:\d+", configuration.JupyterHub.bind_url)


def test_passwords_that_learners_can_read_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "is_root", lambda: True)
    monkeypatch.setattr(command, "ENV_FILE", tmp_path / ".env")
    assert ".env" not in command._apart_in_words("local")
    (tmp_path / ".env").touch(0o644)
    assert "`chmod 600` it" in command._apart_in_words("local")
    (tmp_path / ".env").chmod(0o640)
    assert ".env" not in command._apart_in_words("local")


def test_ctrl_c_ends_a_class_that_is_not_ready_yet(own_state):
    options = ("--learners", "2", "--scale", "0.02", "--port", str(free_port()))
    process = subprocess.Popen(workshop(*options), cwd=CHECKOUT)
    try:
        while not (own_state / "postgres" / "run.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(END_S) == 130
    finally:
        process.kill()


def test_a_class_is_killed_found_again_and_closed(own_state, tmp_path):
    options = ("--learners", "2", "--scale", "0.02", "--port", str(free_port()))
    folder = own_state / "class"
    with running(tmp_path, *options) as (process, printed):
        password = re.search(r"its password: +(\S+)", printed)[1]
        assert ("files are kept apart" if is_root() else "are not kept apart") in printed
        assert password in (folder / "handout.txt").read_text()
        assert "<svg" in (folder / "handout.html").read_text() and (folder / "handout.html").stat().st_mode & 0o77 == 0
        process.kill()
        process.wait()
    assert left(folder)  # its hub lives on, and is found
    other = ("--scale", "0.03")  # for a shop that is not there yet
    with running(tmp_path, *options, *other, *_certificate(tmp_path / "tls")) as (_, printed):
        assert password in printed and "https://127.0.0.1" in printed
        if PROGRAM:
            _in_chromium(printed, own_state)
    _cut_a_drop_short(roll.found("class").place(0, 0).spare)
    closing = subprocess.run(workshop("--close"), capture_output=True, text=True, cwd=CHECKOUT, timeout=END_S)
    assert closing.returncode == 0 and "notebooks stay" in closing.stdout, closing.stderr
    assert not PROGRAM or (folder / "homes" / "ada" / "notebooks" / "00-start-here.ipynb").exists()
    assert command.main(["--close", "--delete-homes"]) == 0
    assert not folder.exists() and not left(folder)
    if not PROGRAM:
        pytest.skip("all but the browser's part has passed: that needs CHROMIUM, the path of a Chromium")


def _cut_a_drop_short(database: str) -> None:
    """As the end of a class leaves the copy that a learner's watcher is just dropping."""
    postgres = lifecycle.up(("postgres",)).postgres
    assert seeded_postgres(postgres)["scale"] == 0.02
    with connect(postgres) as admin:
        changed = admin.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [database])
        assert changed.rowcount == 1
    state.leave()


def _certificate(folder: Path) -> tuple[str, ...]:
    """The options for one that nobody knows."""
    authority = Certipy(store_dir=str(folder))
    authority.create_ca("authority")
    files = authority.create_signed_pair("class", "authority")["files"]
    return "--certificate", files["cert"], "--key", files["key"]


def _in_chromium(printed: str, state: Path) -> None:
    address = re.search(r"The class: +(\S+)", printed)[1]
    password = re.search(r"its password: +(\S+)", printed)[1]
    teachers = re.search(r"you are: +teacher, password (\S+)", printed)[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM)
        ada, bob = _visitor(browser), _visitor(browser)
        _log_in(ada, address, "ada", password, "apples")
        _log_in(bob, address, "bob", password, "pears")
        for page in (ada, bob):
            heading = page.locator(".jp-NotebookPanel h1").first
            expect(heading).to_contain_text("00", timeout=OPEN_S * 1000)
        _is_apart(bob, address, password)
        _kernels_speak_over_files(state / "class" / "homes")
        _kept(state, "ada", "bob")

        teacher = _visitor(browser)
        teacher.goto(f"{address}services/class/")
        _fill_in(teacher, "teacher", teachers, "")
        expect(teacher.locator("h1")).to_have_text("The class")
        for name in ("ada", "bob"):
            expect(teacher.locator("tr", has_text=name)).to_be_visible()
        expect(teacher.locator("tr", has_text="ada").locator("td").nth(1)).to_have_text("1")
        expect(teacher.locator("tr", has_text="bob")).to_contain_text("own")
        teacher.get_by_role("link", name="x vs. y").click()
        expect(teacher.locator("img")).to_be_visible()
        teacher.on("dialog", lambda dialog: dialog.accept())
        [server] = _processes(state / "class" / "homes" / "bob", "jupyterhub.singleuser")
        server.suspend()
        threading.Timer(12, server.resume).start()  # a stop that takes longer than the hub waits for one
        teacher.locator("tr", has_text="bob").get_by_role("button").click()
        expect(teacher.locator("b").first).to_have_text("bob is reset", timeout=90_000)
        assert not (state / "class" / "homes" / "bob").exists()
        bob.goto(address)
        expect(bob.locator("#username_input")).to_be_visible()  # his session is over, too
        browser.close()


def _visitor(browser: Browser) -> Page:
    page = browser.new_context(ignore_https_errors=True).new_page()  # the certificate is nobody's
    page.set_default_timeout(30_000)
    return page


def _fill_in(page: Page, name: str, password: str, word: str) -> None:
    page.fill("#username_input", name)
    page.fill("#password_input", password)
    page.fill("#otp_input", word)
    page.click("#login_submit")


def _log_in(page: Page, address: str, name: str, password: str, word: str) -> None:
    page.goto(address)
    _fill_in(page, name, password, word)
    page.wait_for_url("**/user/**", timeout=OPEN_S * 1000)


def _is_apart(bob: Page, address: str, password: str) -> None:
    """bob, logged in, does not come to ada's server, files, kernels or progress, nor in under her name."""
    for path in ("user/ada/lab", "user/ada/api/contents", "user/ada/api/kernels", "services/class/"):
        answer = bob.request.get(f"{address}{path}")
        assert answer.status in (403, 404), f"{path}: {answer.status}"
    stranger = _visitor(bob.context.browser)
    stranger.goto(address)
    _fill_in(stranger, "ada", password, "pears")
    expect(stranger.locator(".login_error")).to_contain_text("another word")


def _kernels_speak_over_files(homes: Path) -> None:
    """Any account of the machine can read what a kernel sends over TCP, so they speak over sockets in files.

    One port stays: ipykernel's way in for what its own forks print, which sends nothing.
    """
    kernels = {}
    for process in _processes(homes, "ipykernel_launcher"):
        kernels[process.pid] = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(kernels) >= 2 and max(map(len, kernels.values())) <= 1, kernels


def _processes(folder: Path, module: str) -> list[psutil.Process]:
    """Those that run a Python module within the folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if module in process.cmdline() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def _kept(state: Path, *names: str) -> None:
    """As if each had passed an exercise and measured; one of them with markup in it."""
    for name in names:
        folder = state / "class" / "homes" / name / ".workshop"
        folder.mkdir(mode=0o700, exist_ok=True)
        home = folder.parent.stat()
        os.chown(folder, home.st_uid, home.st_gid)  # as if her own process had made it
        passed = {"lesson": "00-start-here", "exercise": "totals", "by": "own", "seen": "<script>"}
        gain = {
            "lesson": "00-start-here",
            "name": "x vs. y",
            "ratio": 9.0,
            "interval": [8.0, 10.0],
            "verdict": "faster",
        }
        (folder / "passed.jsonl").write_text(json.dumps(passed) + "\n[1, 2\n3\n")
        (folder / "results.jsonl").write_text(json.dumps(gain) + "\n" + json.dumps({**gain, "ratio": "<b>"}) + "\n")
