"""A class with a container for each learner; skipped where there is no Docker, or no image of the lab."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import aiohttp
import docker
import psutil
import pytest
import requests
from sqlalchemy import make_url

from workshop.classroom import containers, rehearsal, roll
from workshop.servers.process import free_port
from workshop.servers.service import Servers, Service
from workshop.state import CHECKOUT, WorkshopError

pytestmark = pytest.mark.timeout(900)
START_S, END_S = 240, 240  # longer than the code's own deadlines, or this fails first
FIRST = 6  # cells with code of lesson 00: it is opened, asks PostgreSQL, and counts
APART = """
import os, pathlib, psutil
from sqlalchemy import make_url

home = pathlib.Path("/home/learner")
assert pathlib.Path.home() == home and os.listdir("/home") == ["learner"] and os.getuid() != 0
assert make_url(os.environ["WORKSHOP_POSTGRES_URL"]).username == make_url(lesson.mongo_url).username == account
assert lesson.servers.services["redis"].source in ("wheel", "path")
assert not os.path.exists("/workbook/.env") and not os.path.exists("/workbook/.workshop")
told = " ".join(str(process.environ()) for process in psutil.process_iter() if process.uids().real == os.getuid())
assert account in told and others not in told
for path in ("/workbook/notebooks/x", "/workbook/workshop/x", "/etc/passwd"):
    try:
        open(path, "a").close()
    except OSError:
        continue
    raise AssertionError(path)
(home / "kept").write_text(account)
"""


def test_a_docker_that_is_slow_keeps_no_other_container(own_state, monkeypatch):
    slow, quick = Mock(), Mock()
    slow.remove.side_effect = slow.wait.side_effect = requests.exceptions.ReadTimeout()
    client = Mock(**{"containers.list.return_value": [slow, quick]})
    monkeypatch.setattr(docker, "from_env", lambda: client)
    klass = roll.opened("class", 1)
    containers.remove(klass)
    quick.remove.assert_called_once()
    client.containers.list.side_effect = requests.exceptions.ReadTimeout()
    containers.remove(klass)


def test_containers_on_a_bridge_do_not_reach_servers_on_loopback():
    network = Mock(attrs={"IPAM": {"Config": [{"Gateway": "172.18.0.1"}]}})
    client = Mock(**{"networks.get.return_value": network})

    def at(postgres: str, mongo: str) -> str:
        urls = {"postgres": make_url(postgres), "mongo": mongo}
        return containers.address(
            client, "bridge", Servers({name: Service(name, url, "", "url") for name, url in urls.items()})
        )

    assert at("postgresql://db:5432/x", "mongodb://a:1,b:2/?replicaSet=rs") == "172.18.0.1"
    for postgres, mongo, near in (
        ("postgresql:///x", "mongodb://a", "postgres"),
        ("postgresql://[::1]:5432/x", "mongodb://a", "postgres"),
        ("postgresql://db/x", "mongodb://u:p@a:1,127.0.0.1:2/", "mongo"),
        ("postgresql://db/x", "mongodb://localhost", "mongo"),
    ):
        with pytest.raises(WorkshopError, match=rf"loopback \({near}\)"):
            at(postgres, mongo)


def workshop(*options: str) -> list[str]:
    return [sys.executable, "-m", "workshop", "classroom", *options]


def test_two_learners_in_containers(own_state, tmp_path):
    try:
        client = containers.connected(containers.IMAGE)
    except WorkshopError as lacking:
        pytest.skip(str(lacking))
    log = tmp_path / "printed"  # the state folder has nothing but the workbook's
    command = workshop("--spawner", "docker", "--learners", "2", "--scale", "0.02", "--port", str(free_port()))
    with open(log, "w", encoding="utf-8") as printed:
        hub = subprocess.Popen(command, stdout=printed, stderr=printed, cwd=CHECKOUT)

    def running() -> list:
        marks = [f"{key}={value}" for key, value in containers.label(klass).items()]
        return client.containers.list(all=True, filters={"label": marks})

    try:
        give_up = time.monotonic() + START_S
        while "Ctrl-C" not in log.read_text():
            assert hub.poll() is None and time.monotonic() < give_up, log.read_text()[-2000:]
            time.sleep(0.2)
        klass = roll.found("class")
        asyncio.run(_both(klass, re.search(r"The class: +(\S+)", log.read_text())[1]))
        assert len(running()) == 2
        for container in running():
            limits = container.attrs["HostConfig"]
            assert limits["Memory"] == 2 << 30 and limits["CpuQuota"] == 2 * limits["CpuPeriod"]
        hub.kill()
        hub.wait()
        psutil.Process(json.loads((klass.folder / "hub" / "run.json").read_text())["pid"]).kill()
        assert len(running()) == 2  # nobody is there to stop them
    finally:
        if hub.poll() is None:
            hub.send_signal(signal.SIGINT)
            hub.wait(END_S)
        closing = subprocess.run(workshop("--close"), capture_output=True, text=True, cwd=CHECKOUT, timeout=END_S)
    assert closing.returncode == 0 and not running(), closing.stderr
    for name in ("ada", "bob-2"):
        assert (klass.home(name) / "kept").exists() and (
            klass.home(name) / "notebooks" / "00-start-here.ipynb"
        ).exists()


async def _both(klass: roll.Roll, address: str) -> None:
    async with asyncio.timeout(400), asyncio.TaskGroup() as group:
        for name in ("ada", "bob-2"):
            group.create_task(_lesson(klass, address, name))


async def _lesson(klass: roll.Roll, address: str, name: str) -> None:
    cells = json.loads((CHECKOUT / "notebooks" / "00-start-here.ipynb").read_text(encoding="utf-8"))["cells"]
    first = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:FIRST]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        browser = rehearsal._Browser(session, address, name, klass)
        await browser.log_in()
        kernel = await browser.kernel()
        own = klass.seated()[name]["seat"]
        names = {"account": klass.account(own), "others": klass.account(3 - own)}
        for source in (*first, "\n".join(f"{key} = {value!r}" for key, value in names.items()) + APART):
            await rehearsal.run_cell(kernel, source)
        await kernel.close()
