"""One learner's JupyterLab: her notebooks brought up to date, the hub's single-user server, her own servers stopped.

The hub starts it with the learner's environment: as root with WORKSHOP_SEAT_UID, the user id to become first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from workshop.classroom import apart
from workshop.classroom.homes import refresh
from workshop.state import CHECKOUT, WorkshopError

UID = "WORKSHOP_SEAT_UID"


def main() -> int:
    home = Path(os.environ["HOME"])
    if uid := os.environ.pop(UID, ""):
        apart.become(int(uid), os.environ["USER"], home)
    os.chdir(home)
    for name in refresh(home / "notebooks", CHECKOUT / "notebooks"):
        print(f"a newer {name} lies beside the edited one", flush=True)
    # Whoever reaches a kernel's TCP port reads its outputs; a socket in a folder of the learner's is hers alone. Its
    # path has 107 characters at most (104 on macOS), so it lies in /tmp.
    with tempfile.TemporaryDirectory(prefix="kernels-", dir="/tmp") as sockets:
        command = [sys.executable, "-m", "jupyterhub.singleuser", "--KernelManager.transport=ipc", *sys.argv[1:]]
        server = subprocess.Popen(command, env={**os.environ, "JUPYTER_RUNTIME_DIR": sockets})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: server.send_signal(number))
        ended = server.wait()
    # What a lesson had started of its own: Redis, and the PostgreSQL of the lesson about replicas.
    subprocess.run([sys.executable, "-m", "workshop", "down"], stdout=subprocess.DEVNULL)
    return ended


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WorkshopError as error:
        sys.exit(f"workshop: {error}")
