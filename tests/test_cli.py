"""The command line, as a user meets it: in a process of its own, judged by its output and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psycopg
import pytest

from workshop import results, state
from workshop.servers import lifecycle
from workshop.servers.postgres_server import dsn
from workshop.servers.service import Servers
from workshop.state import CHECKOUT, password

SMALL = ("--scale", "0.02")


def workshop(*arguments: str, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "workshop", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def databases(servers: Servers) -> set[str]:
    with psycopg.connect(dsn(servers.postgres)) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database")}


@pytest.mark.long
def test_up_status_and_down(own_state):
    nothing = json.loads(workshop("status", "--json").stdout)
    assert nothing["services"]["postgres"] == dict.fromkeys(("version", "source", "address", "reason")) | {
        "ready": False
    }
    assert nothing["data"] == {"scale": None, "rows": {}}

    up = workshop("up", *SMALL)
    assert up.returncode == 0, up.stderr
    assert up.stdout.count(" ready, ") == 3

    state = json.loads(workshop("status", "--json").stdout)
    assert set(state) == {"services", "data"}
    assert set(state["services"]) == {"postgres", "replicas", "redis", "mongo"}
    for name in ("postgres", "redis", "mongo"):
        service = state["services"][name]
        assert set(service) == {"ready", "version", "source", "address", "reason"}
        assert service["ready"] is True and service["source"] in ("wheel", "path")
        assert service["address"].startswith("127.0.0.1:")
        assert password(name) not in json.dumps(state) + up.stdout
    assert state["data"]["scale"] == 0.02
    assert state["data"]["rows"]["customers"] == state["data"]["rows"]["profiles"] == 2_000

    again = workshop("up")  # without a scale the shop stays as it is
    assert again.returncode == 0 and "scale 0.02" in again.stdout

    down = workshop("down")
    assert down.returncode == 0 and "postgres" in down.stdout
    assert "nothing" in workshop("down").stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "required"),
        (("fly",), "invalid choice"),
        (("up", "--scale", "huge"), "a number from 0.01 to 100 is expected, 'huge' was found"),
        (("up", "--scale", "1000"), "a number from 0.01 to 100"),
        (("status", "--colour"), "unrecognized arguments: --colour"),
        (("up", "--replicas", "9"), "invalid choice"),
    ],
)
def test_wrong_use_is_exit_code_2(arguments, complaint):
    done = workshop(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr and "Traceback" not in done.stderr


@pytest.mark.long
def test_reset_refuses_damaged_data_and_keeps_what_is_there(own_state, tmp_path):
    copy = tmp_path / "a checkout"
    for folder in ("workshop", "data"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert workshop("up", *SMALL, cwd=copy).returncode == 0
    servers = lifecycle.up()
    before = databases(servers)
    assert "workshop_shop" in before

    file = copy / "data" / "order_items.csv.gz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3] + content[2 * len(content) // 3 :])
    refused = workshop("reset", *SMALL, cwd=copy)
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1
    for part in ("data/order_items.csv.gz", "expected", "found", "python -m workshop reset"):
        assert part in refused.stderr
    assert databases(servers) == before

    file.write_bytes(content)
    state.leave()  # this process has asked where the servers are: `reset` would not take them from under it
    with psycopg.connect(dsn(servers.postgres), autocommit=True) as connection:
        connection.execute("CREATE DATABASE made_since")
    assert workshop("reset", *SMALL, cwd=copy).returncode == 0
    assert databases(lifecycle.up()) == before


def test_an_unreachable_server_is_exit_code_1(own_state, monkeypatch):
    monkeypatch.setenv("WORKSHOP_REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    done = workshop("up", *SMALL)
    assert done.returncode == 1
    assert done.stderr.startswith("workshop: Redis at 127.0.0.1:1") and done.stderr.count("\n") == 1
    assert "postgres   ready" in done.stdout  # the others run
    status = workshop("status").stdout
    assert "redis      Redis at 127.0.0.1:1" in status
    assert "secret" not in done.stderr + status


def test_report(own_state, tmp_path):
    assert "run a notebook first" in workshop("report").stdout
    assert json.loads(workshop("report", "--json").stdout) == []
    record = {
        "lesson": "02-connection-pooling",
        "name": "pool",
        "before_s": 0.005,
        "after_s": 0.00025,
        "lower_bound_s": None,
        "ratio": 20.0,
        "interval": [19.0, 21.0],
        "verdict": "faster",
        "noise": 1.05,
        "round_trip_s": 2.5e-05,
        "versions": {"postgres": "18.6"},
        "scale": 1.0,
        "at": "2026-01-01T00:00:00+00:00",
        "samples": {"before": [0.005] * 6, "after": [0.00025] * 6},
        "labels": ["before", "after"],
        "unit": "query",
        "units": 1,
    }
    results.append({**record, "ratio": 10.0, "at": "2025-01-01T00:00:00+00:00"}, own_state / results.FILE)
    results.append(record, own_state / results.FILE)
    (latest,) = json.loads(workshop("report", "--json").stdout)
    assert latest == {key: value for key, value in record.items() if key != "samples"}
    assert "20.0x" in workshop("report").stdout
    page = tmp_path / "report.html"
    assert workshop("report", "--html", str(page)).returncode == 0
    assert "02-connection-pooling" in page.read_text()


def test_doctor(own_state, monkeypatch):
    done = workshop("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("OK  ") == len(json.loads(workshop("doctor", "--json").stdout)) >= 8
    monkeypatch.setenv("WORKSHOP_REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    failed = workshop("doctor")
    assert failed.returncode == 1
    assert "FAIL  Redis" in failed.stdout and "secret" not in failed.stdout


@pytest.mark.long
def test_lab_answers_and_stops_what_it_started(own_state):
    assert workshop("up", *SMALL).returncode == 0
    workshop("down")  # what `up` starts would stay
    lab = subprocess.Popen(
        [sys.executable, "-m", "workshop", "lab", "--no-browser", "--ServerApp.port_retries=50"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        url = next(line.split()[1] for line in lab.stdout if line.startswith("JupyterLab: "))
        assert "/lab/tree/notebooks/00-start-here.ipynb" in url
        with urllib.request.urlopen(url, timeout=30) as page:
            assert page.status == 200
        # JupyterLab answers any path; whether it has the notebook, its contents service tells.
        contents = url.replace("/lab/tree/", "/api/contents/") + "&content=0"
        with urllib.request.urlopen(contents, timeout=30) as answer:
            assert json.load(answer)["type"] == "notebook"
        assert "postgres" in lifecycle.find()
    finally:
        lab.send_signal(signal.SIGINT)
        lab.wait(60)
    assert lab.returncode == 0
    give_up = time.monotonic() + 10
    while lifecycle.find().services:
        assert time.monotonic() < give_up
        time.sleep(0.1)
