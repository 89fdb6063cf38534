"""What JupyterHub needs to know of a class: who may come in, and how a learner's server starts."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

from dockerspawner import DockerSpawner
from jupyterhub.authenticators.shared import SharedPasswordAuthenticator
from jupyterhub.spawner import SimpleLocalProcessSpawner
from jupyterhub.utils import random_port
from tornado.web import HTTPError

from workshop import learner
from workshop.classroom import accounts, containers, roll, seat
from workshop.lab import SETTINGS
from workshop.servers import lifecycle
from workshop.servers.service import Servers
from workshop.state import WorkshopError, state_dir

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
PROMPT = "A word of your own (you choose it now, and give it again the next time):"
IDLE_S = 3600  # a kernel whose page is closed ends after this, and its sandbox with it
START_S = 300


class ClassAuthenticator(SharedPasswordAuthenticator):
    """The class's password, a name, and a word of the learner's own, so that nobody comes in under another's name."""

    roll: roll.Roll

    async def authenticate(self, handler: Any, data: dict[str, str]) -> dict | None:
        known = await super().authenticate(handler, data)
        if known is None:
            return None
        name, word = known["name"], data.get("otp", "")
        if known.get("admin"):
            word = self.roll.derived("teacher")
        elif not NAME.fullmatch(name):
            raise HTTPError(403, f"a name is letters, digits and '-', as ada or ada-2, not {name!r}")
        elif len(word) < 4:
            raise HTTPError(403, "your own word needs four letters at least")
        try:
            taken = await asyncio.to_thread(self.roll.seat_of, name, word)  # it may wait for a lock, and hashes
        except WorkshopError as error:
            raise HTTPError(403, str(error)) from None
        if taken is None:
            raise HTTPError(403, f"{name} has another word: choose another name, or ask your teacher for a reset")
        return known


class _Seated:
    """What both spawners tell a learner's server."""

    roll: roll.Roll
    servers: Servers
    turns: int

    def told(self) -> dict[str, str]:
        number = self.roll.seated()[self.user.name]["seat"]
        place = self.roll.place(number, self.turns)
        uid = self.roll.uid(number)
        return {
            **accounts.urls(self.roll, self.servers, number),
            learner.VARIABLE: place.as_variable(),
            **({seat.UID: str(uid)} if uid is not None else {}),
        }


class LocalSeat(_Seated, SimpleLocalProcessSpawner):
    """A process on this machine."""

    def _default_home_dir(self) -> str:
        return str(self.roll.home(self.user.name))

    def make_preexec_fn(self, name: str) -> None:
        return None  # the seat itself gives up root, in a process that has no threads

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        home = str(self.roll.home(self.user.name))
        own = {"USER": self.user.name, "HOME": home, "SHELL": "/bin/bash", "WORKSHOP_STATE": f"{home}/.workshop"}
        return {**env, **own, **self.told()}


class DockerSeat(_Seated, DockerSpawner):
    """A container on this machine, under the user id that owns the learner's home."""

    def get_env(self) -> dict[str, str]:
        told = self.told()
        told.pop(seat.UID, None)  # it is that user from its start
        own = {"USER": self.user.name, "HOME": containers.HOME, "WORKSHOP_STATE": f"{containers.HOME}/.workshop"}
        return {**super().get_env(), **own, **told}

    async def start(self) -> Any:
        name = self.user.name
        self.volumes = containers.volumes(self.roll, name)
        self.extra_create_kwargs = {"user": containers.user(self.roll, name), "labels": containers.label(self.roll)}
        if self.network_name == containers.HOST:  # shared, so each needs another port, and listens on loopback
            self.ip, self.port = "127.0.0.1", random_port()
        return await super().start()

    async def get_ip_and_port(self) -> tuple[str, int]:
        return (self.ip, self.port) if self.network_name == containers.HOST else await super().get_ip_and_port()


def configure(c: Any, kind: str) -> None:
    """Fill JupyterHub's configuration `c` from what `command.py` wrote into the class's folder."""
    klass = roll.found(kind)
    folder = klass.folder / "hub"
    given = json.loads((folder / "settings.json").read_text(encoding="utf-8"))

    c.JupyterHub.bind_url = given["url"]
    c.JupyterHub.ssl_cert, c.JupyterHub.ssl_key = given["certificate"], given["key"]
    c.JupyterHub.hub_port = given["hub_port"]
    c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{given['api_port']}"
    c.ConfigurableHTTPProxy.command = [sys.executable, "-m", "workshop.classroom.proxy"]
    c.JupyterHub.template_paths = [str(Path(__file__).parent / "templates")]
    c.ConfigurableHTTPProxy.pid_file = str(folder / "proxy.pid")
    c.JupyterHub.db_url = f"sqlite:///{folder / 'hub.sqlite'}"
    c.JupyterHub.cookie_secret_file = str(folder / "cookie-secret")
    c.JupyterHub.log_level = "WARN"
    c.JupyterHub.cleanup_servers = True

    c.JupyterHub.authenticator_class = ClassAuthenticator
    ClassAuthenticator.roll = klass
    c.ClassAuthenticator.user_password = klass.password
    c.ClassAuthenticator.admin_password = klass.teacher_password
    c.ClassAuthenticator.admin_users = {roll.TEACHER}
    c.ClassAuthenticator.allow_all = True  # with the class's password
    c.ClassAuthenticator.request_otp = True
    c.ClassAuthenticator.otp_prompt = PROMPT

    _Seated.roll, _Seated.servers, _Seated.turns = klass, lifecycle.find(), given["turns"]
    c.JupyterHub.spawner_class = DockerSeat if given["spawner"] == "docker" else LocalSeat
    # Thirty start at the same moment, and two cores take a minute for that.
    c.JupyterHub.concurrent_spawn_limit = 0
    c.JupyterHub.active_server_limit = klass.learners + 1
    c.Spawner.start_timeout = c.Spawner.http_timeout = START_S
    c.Spawner.notebook_dir = "~/notebooks"
    c.Spawner.default_url = "/lab/tree/00-start-here.ipynb"
    c.Spawner.args = [
        "--log-level=ERROR",
        f"--MappingKernelManager.cull_idle_timeout={IDLE_S}",
        f"--LabApp.app_settings_dir={containers.inside(SETTINGS) if given['spawner'] == 'docker' else SETTINGS}",
    ]
    c.LocalSeat.cmd = [sys.executable, "-m", "workshop.classroom.seat"]
    if given["spawner"] == "docker":
        _containers(c, klass, given)

    environment = {"WORKSHOP_STATE": str(state_dir()), "WORKSHOP_CLASS_KIND": kind}
    page = {"name": "class", "url": f"http://127.0.0.1:{given['page_port']}", "environment": environment}
    page |= {"command": [sys.executable, "-m", "workshop.classroom.page"], "oauth_no_confirm": True}
    c.JupyterHub.services = [page]
    rights = ["read:servers", "delete:servers", "delete:users"]
    c.JupyterHub.load_roles = [{"name": "page", "services": ["class"], "scopes": rights}]


def _containers(c: Any, klass: roll.Roll, given: dict[str, Any]) -> None:
    """One container a learner, from the lab's image, with limits, and her home in a folder of the class's."""
    c.JupyterHub.hub_ip = given["hub_ip"]
    c.DockerSeat.image, c.DockerSeat.network_name = given["image"], given["network"]
    c.DockerSeat.cmd = [containers.PYTHON, "-m", "workshop.classroom.seat"]
    c.DockerSeat.remove = True
    c.DockerSeat.client_kwargs = {"timeout": START_S}  # they are made one after the other
    c.DockerSeat.name_template = f"{klass.prefix}{{username}}"  # two classes on one machine have other names
    c.DockerSeat.format_volume_name = lambda path, spawner: path  # a path may have braces in it
    c.DockerSeat.mem_limit, c.DockerSeat.cpu_limit = containers.LIMITS
    c.DockerSeat.extra_host_config = containers.HOST_CONFIG
    if given["network"] == containers.HOST:
        c.DockerSeat.use_internal_ip = True  # there is no port to publish, and Docker refuses to
