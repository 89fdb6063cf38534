"""JupyterLab on the notebooks, with the servers running; Ctrl-C ends what this started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from workshop.servers import lifecycle
from workshop.shop import seed
from workshop.state import CHECKOUT, WorkshopError, is_root, state_dir

FIRST_NOTEBOOK = "notebooks/00-start-here.ipynb"
SETTINGS = Path(__file__).resolve().parent / "lab_settings"  # no question about news over the first page
START_DEADLINE_S = 60.0


def run(options: Sequence[str]) -> int:
    """Start the servers, seed them, and run JupyterLab with `options` until it ends or is interrupted.

    The servers are stopped in the end, unless `up` started them or another process uses them. Returns the command's
    exit code.
    """
    stopping = _Stopping()
    try:
        servers = lifecycle.up(do_without=True)
        for reason in servers.lacking.values():
            print(f"workshop: {reason}. The lessons that do not need it work.", file=sys.stderr, flush=True)
        seed.ensure(servers)
        return _jupyter(options, stopping)
    finally:
        _stop_servers()


def _stop_servers() -> None:
    if lifecycle.kept():
        return
    try:
        lifecycle.down(if_alone=True)
    except WorkshopError:
        print("The servers stay: another process uses them.", flush=True)
    else:
        print("The servers are stopped.", flush=True)


class _Stopping:
    """Turns Ctrl-C, a closed terminal and `kill` into a flag, so that JupyterLab and the servers end in order."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _jupyter(options: Sequence[str], stopping: _Stopping) -> int:
    runtime = state_dir() / "jupyter"
    runtime.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "jupyterlab", FIRST_NOTEBOOK, "--log-level=ERROR"]
    command += [f"--LabApp.app_settings_dir={SETTINGS}"]
    # Without it the root is the first notebook's folder, and the printed URL opens nothing.
    command += [f"--ServerApp.root_dir={CHECKOUT}"]
    command += ["--allow-root"] if is_root() else []
    server = subprocess.Popen(
        [*command, *options],
        cwd=CHECKOUT,
        env={**os.environ, "JUPYTER_RUNTIME_DIR": str(runtime)},
        start_new_session=True,  # Ctrl-C comes to us alone: JupyterLab would ask whether it is meant
    )
    try:
        url = _wait_for_url(server, runtime / f"jpserver-{server.pid}.json", stopping)
        if url:
            print(f"\nJupyterLab: {url}\nCtrl-C stops it.", flush=True)
        while server.poll() is None and not stopping.asked:
            time.sleep(0.1)
    finally:
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
    return 0 if stopping.asked else min(server.returncode, 1)


def _wait_for_url(server: subprocess.Popen, info_file: Path, stopping: _Stopping) -> str:
    give_up = time.monotonic() + START_DEADLINE_S
    while server.poll() is None and not stopping.asked:
        try:
            info = json.loads(info_file.read_text(encoding="utf-8"))
            query = f"?token={info['token']}" if info.get("token") else ""
            # On all addresses, as in a container: the reader comes through this machine's own.
            everywhere = info["hostname"] in ("0.0.0.0", "::")
            base = f"http://127.0.0.1:{info['port']}{info['base_url']}" if everywhere else info["url"]
            # The file comes a moment before the port answers.
            socket.create_connection(("127.0.0.1" if everywhere else info["hostname"], info["port"]), 1).close()
            return f"{base}lab/tree/{FIRST_NOTEBOOK}{query}"
        except (OSError, ValueError):
            if time.monotonic() > give_up:
                raise WorkshopError(
                    f"JupyterLab was not ready after {START_DEADLINE_S:.0f} s: run `python -m workshop doctor`"
                ) from None
            time.sleep(0.1)
    return ""
