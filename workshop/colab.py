"""Make a Google Colab runtime ready for the notebooks: each one's first cell fetches the workbook and runs this file.

Colab brings Jupyter's, pandas' and matplotlib's parts in the versions that its page works with, and they stay as they
are. What it lacks, the servers above all, is installed beside them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
COLABS_OWN = ("ipykernel", "ipywidgets", "jupyterlab", "matplotlib", "numpy", "pandas", "psutil", "tqdm")


def lacking() -> list[str]:
    """What pyproject.toml asks for, less what is Colab's own."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["servers"]
    return [requirement for requirement in wanted if not requirement.startswith(COLABS_OWN)]


def pins() -> list[str]:
    """The pins of requirements.lock for what is installed here. One for a package that Colab has would change it."""
    asked = {_name(requirement) for requirement in lacking()}
    locked = (CHECKOUT / "requirements.lock").read_text(encoding="utf-8")
    wanted = [line.strip() for line in re.findall(r"^([\w.-]+==[^\\\n]+)", locked, re.MULTILINE)]
    return [pin for pin in wanted if _name(pin) in asked or not _is_here(_name(pin))]


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower()


def _is_here(package: str) -> bool:
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


def prepare() -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins()), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints]
        subprocess.run([*pip, *lacking()], check=True, timeout=600)
    os.environ["PYTHONPATH"] = str(CHECKOUT)  # for the processes that a lesson starts
    sys.path.insert(0, str(CHECKOUT))
    os.chdir(CHECKOUT / "notebooks")


if __name__ == "__main__":
    prepare()
