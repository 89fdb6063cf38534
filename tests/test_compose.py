"""docker-compose.yml keeps what the README promises of it, and .env is read as Compose reads it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from workshop import state

ROOT = Path(__file__).resolve().parent.parent
FILE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CLUSTER = yaml.safe_load((ROOT / FILE["include"][0]["path"]).read_text())
SERVICES = FILE["services"] | CLUSTER["services"]
EXAMPLE = ROOT / ".env.example"
PASSWORDS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "MONGO_PASSWORD"}


def test_the_services():
    assert set(FILE["services"]) == {"postgres", "replica-1", "replica-2", "redis", "mongo", "lab"}
    assert set(CLUSTER["services"]) == {"citus", "mongo-sharded"}
    for name, service in SERVICES.items():
        assert "healthcheck" in service, name
        assert service.get("profiles") == (["cluster"] if name in CLUSTER["services"] else None), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in FILE["volumes"] | CLUSTER["volumes"] or (ROOT / source).exists(), volume


def test_images_are_pinned_to_a_patch_release():
    dockerfile = ROOT / SERVICES["lab"]["build"]["dockerfile"]
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)
    assert len(images) == 8
    for image in images:
        assert re.search(r":\d+\.\d+(\.\d+)?-\w+|:\d+\.\d+\.\d+$", image), image


def test_ports_are_this_machines_own_not_the_standard_ones_and_can_be_changed():
    for name, service in SERVICES.items():
        for port in service["ports"]:
            found = re.match(r"127\.0\.0\.1:\$\{(\w+_PORT):-(\d+)\}:", port)
            assert found, f"{name}: {port}"
            assert found[2] not in ("5432", "6379", "27017", "8888")
            assert dotenv_values(EXAMPLE)[found[1]] == found[2]


def test_without_a_password_nothing_starts():
    text = (ROOT / "docker-compose.yml").read_text()
    for name in PASSWORDS:
        assert f"${{{name}:?" in text
        assert dotenv_values(EXAMPLE)[name] == ""


def test_no_password_stands_in_a_command_line():
    for name, service in SERVICES.items():
        commands = [str(service.get("command", "")), str(service["healthcheck"]["test"])]
        assert not [c for c in commands if re.search(r"(?<!\$)\$\{?\w*PASSWORD", c)], name
    for script in (ROOT / "workshop/servers/compose").glob("*.sh"):
        for line in script.read_text().splitlines():
            assert not re.match(r"[^#]*(mongosh|psql|redis\S*) .*\$\w*PASSWORD", line), f"{script.name}: {line}"


def test_the_scripts_are_executable_bash():
    scripts = sorted((ROOT / "workshop/servers/compose").glob("*.sh"))
    assert [script.stem for script in scripts] == ["lab", "mongo", "primary", "replica"]
    for script in scripts:
        assert os.access(script, os.X_OK), script
        subprocess.run(["bash", "-n", script], check=True, timeout=20)


@pytest.fixture
def env_file(tmp_path, monkeypatch):
    """A .env, made by the example's own line, in place of the checkout's."""
    line = re.search(r"\(umask 077; (sed .*) \.env\.example >\.env\)", EXAMPLE.read_text())[1]
    file = tmp_path / ".env"
    made = subprocess.run(f"{line} {EXAMPLE.name}", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=20)
    file.write_text(made.stdout)
    monkeypatch.setattr(state, "ENV_FILE", file)
    for name in dotenv_values(file):
        monkeypatch.delenv(name, raising=False)
    return file


def test_the_urls_of_the_example_lead_to_the_published_ports(env_file):
    values = dotenv_values(env_file)
    assert all(len(values[name]) >= 24 for name in PASSWORDS)
    assert state.setting("WORKSHOP_POSTGRES_URL").endswith(f"{values['POSTGRES_PASSWORD']}@127.0.0.1:15432/postgres")
    assert re.findall(r":(\d+)/", state.setting("WORKSHOP_REPLICA_URLS")) == ["15433", "15434"]
    assert values["REDIS_PASSWORD"] in state.setting("WORKSHOP_REDIS_URL")
    assert values["MONGO_PASSWORD"] in state.setting("WORKSHOP_MONGO_URL")
    assert state.named("WORKSHOP_MONGO_URL") == "WORKSHOP_MONGO_URL in .env"


def test_the_environment_wins_over_env_even_if_empty(env_file, monkeypatch):
    monkeypatch.setenv("WORKSHOP_REDIS_URL", "")
    assert state.setting("WORKSHOP_REDIS_URL") == ""
    monkeypatch.setenv("WORKSHOP_REDIS_URL", "redis://elsewhere:1/0")
    assert state.setting("WORKSHOP_REDIS_URL") == "redis://elsewhere:1/0"
    assert state.named("WORKSHOP_REDIS_URL") == "WORKSHOP_REDIS_URL"
