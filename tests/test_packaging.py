"""The lists of what is needed agree with one another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Packages that conda-forge names differently.
CONDA_NAMES = {"matplotlib-base": "matplotlib", "redis-py": "redis"}
CONDA_ONLY = {"postgresql", "redis-server", "mongodb", "make", "pip", "python"}


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


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs.items()}


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


def test_constraints_pin_what_is_wanted():
    pinned = constraints()
    for name, requirement in wanted("servers", "test", "browser").items():
        if not str(requirement.specifier).startswith("=="):  # as the servers' wheels are in pyproject.toml itself
            assert requirement.specifier.contains(pinned[name]), name


def test_ci_runs_the_readmes_own_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make lab" in readme and "make test" in readme
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "run: make test" in (ROOT / ".github/workflows/ci.yml").read_text()
