"""Make a Google Colab runtime ready for the notebooks: each one's first cell fetches the workbook and runs this file.

Colab brings Jupyter's, pandas' and matplotlib's parts in the versions that its page works with, and they stay as they
are. What it lacks, the servers above all, is installed beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
COLABS_OWN = ("ipykernel", "ipywidgets", "jupyterlab", "matplotlib", "numpy", "pandas", "psutil", "tqdm")


def lacking() -> list[str]:
    """What pyproject.toml asks for, less what is Colab's own."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["servers"]
    return [requirement for requirement in wanted if not requirement.startswith(COLABS_OWN)]


def prepare() -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", CHECKOUT / "constraints.txt"]
    subprocess.run([*pip, *lacking()], check=True, timeout=600)
    os.environ["PYTHONPATH"] = str(CHECKOUT)  # for the processes that a lesson starts
    sys.path.insert(0, str(CHECKOUT))
    os.chdir(CHECKOUT / "notebooks")


if __name__ == "__main__":
    prepare()
