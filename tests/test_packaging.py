"""The lists of what is needed agree with one another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Packages that conda-forge names differently.
CONDA_NAMES = {"matplotlib-base": "matplotlib", "redis-py": "redis"}
CONDA_ONLY = {"postgresql", "redis-server", "mongodb", "pgbouncer", "make", "pip", "python"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(*extras: str) -> dict[str, Requirement]:
    """{package: requirement} of pyproject.toml, with those of some extras."""
    texts = project()["dependencies"] + [text for extra in extras for text in project()["optional-dependencies"][extra]]
    requirements = [Requirement(text) for text in texts]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def conda() -> dict[str, str]:
    """{package: version specifier} of environment.yml, by the names that PyPI uses."""
    dependencies = (ROOT / "environment.yml").read_text().partition("dependencies:")[2]
    lines = re.findall(r"^  - ([a-z][\w-]*)([^:\n]*)$", dependencies, re.MULTILINE)
    return {CONDA_NAMES.get(name, name): specifier for name, specifier in lines}


def locked(name: str = "requirements.lock") -> dict[str, list[str]]:
    """{package: its versions} of a lock file; more than one where Pythons or platforms differ."""
    found: dict[str, list[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(package), []).append(version)
    return found


def test_environment_yml_asks_for_the_same():
    same = {name: SpecifierSet(specifier) for name, specifier in conda().items() if name not in CONDA_ONLY}
    assert same == {name: requirement.specifier for name, requirement in wanted("test").items()}


def test_environment_yml_has_the_servers_and_a_python_that_is_allowed():
    assert {"postgresql": ">=15", "redis-server": ">=7.0", "mongodb": ">=6.0"}.items() <= conda().items()
    # One "=": repo2docker takes the version of Python from there, and knows no other form.
    python = re.fullmatch(r"=(3\.\d+)", conda()["python"])
    assert SpecifierSet(project()["requires-python"]).contains(f"{python[1]}.0")


def test_environment_yml_adds_the_helper_as_a_local_folder():
    # repo2docker copies the checkout before it installs only if it sees "-e ."
    assert re.search(r"^      - -e \.(\s|$)", (ROOT / "environment.yml").read_text(), re.MULTILINE)


def test_the_locks_pin_what_is_wanted():
    pinned = locked()
    for name, requirement in wanted("servers", "test").items():
        assert all(requirement.specifier.contains(version) for version in pinned[name]), name
    assert locked("requirements-browser.lock").items() >= pinned.items()
    assert "playwright" in locked("requirements-browser.lock")
    assert locked("requirements-book.lock").items() >= pinned.items()
    assert "myst-nb" in locked("requirements-book.lock")
    assert locked("requirements-classroom.lock").items() >= pinned.items()
    assert "jupyterhub" in locked("requirements-classroom.lock")


LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))


@pytest.mark.parametrize("name", LOCKS)
def test_each_locked_package_is_checked_and_comes_from_nowhere_in_particular(name):
    text = (ROOT / name).read_text()
    for entry in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[\w.-]+==\S+", entry) and "--hash=sha256:" in entry, entry[:80]
        assert not entry.startswith("-"), entry  # an option, such as where to look for packages
    assert "://" not in text


def test_a_wheel_would_be_empty_on_purpose():
    everything = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert everything["tool"]["hatch"]["build"]["targets"]["wheel"]["bypass-selection"] is True
    assert "Private :: Do Not Upload" in everything["project"]["classifiers"]


def workflow() -> dict:
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def test_the_workflow_may_only_read_and_runs_once_for_a_change():
    assert workflow()["permissions"] == {"contents": "read"}
    assert workflow()["concurrency"]["cancel-in-progress"] is True
    triggers = workflow()[True]  # YAML's "on"
    assert triggers["push"] == {"branches": ["main"]} and "pull_request" in triggers


def test_actions_are_at_release_tags():
    used = re.findall(r"uses: \S+@(\S+)", (ROOT / ".github/workflows/ci.yml").read_text())
    assert used and all(re.fullmatch(r"v\d+\.\d+\.\d+", tag) for tag in used)


def test_the_weekly_run_is_without_the_lock():
    jobs = workflow()["jobs"]
    assert "schedule" in jobs["newest"]["if"] and {"run": "make newest"} in jobs["newest"]["steps"]
    makefile = (ROOT / "Makefile").read_text()
    assert "lock" not in re.search(r"^newest:\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]


def test_ci_runs_the_readmes_own_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make lab" in readme and "make test" in readme
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "run: make test" in (ROOT / ".github/workflows/ci.yml").read_text()
