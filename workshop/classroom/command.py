"""python -m workshop classroom: start a class, close it, or rehearse it."""

from __future__ import annotations

import argparse
import fcntl
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from workshop import learner
from workshop.classroom import accounts, apart, containers, roll
from workshop.servers import lifecycle
from workshop.servers.process import PROGRAMS, ServerProcess, free_port, signal_to
from workshop.shop import files, seed
from workshop.state import CHECKOUT, ENV_FILE, WorkshopError, is_root, lock, read_json, state_dir, write_private

PORT = 8000
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Read the command line and run it; exits with 2 on wrong use."""
    parser = argparse.ArgumentParser(prog="python -m workshop classroom", description="A JupyterHub for a class.")
    _add_options(parser)
    given = parser.parse_args(arguments)
    if wrong := wrong_use(given):
        parser.error(wrong)
    return run(given)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--learners", type=int, metavar="N", help="places to prepare, 1 to 200 (default: 30)")
    parser.add_argument("--ip", default="127.0.0.1", metavar="A", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default: {PORT}, another where it is taken)")
    parser.add_argument("--certificate", type=Path, metavar="F", help="TLS certificate, with --key")
    parser.add_argument("--key", type=Path, metavar="F", help="the certificate's key")
    parser.add_argument("--behind-proxy", action="store_true", help="a proxy in front of it does TLS")
    parser.add_argument("--spawner", choices=("local", "docker"), default="local", help="processes or containers")
    parser.add_argument("--image", default=containers.IMAGE, metavar="I", help=f"docker: image ({containers.IMAGE})")
    parser.add_argument("--network", default=containers.HOST, metavar="N", help="docker: network (default: host)")
    parser.add_argument("--scale", type=float, help="size of the shop, where there is none yet (default: 1)")
    parser.add_argument("--close", action="store_true", help="remove the class's accounts and databases")
    parser.add_argument("--delete-homes", action="store_true", help="with --close: learners' notebooks too")
    parser.add_argument("--rehearse", action="store_true", help="scripted learners take a lesson; exit 0 if all passed")
    parser.add_argument("--lesson", default="00-start-here", metavar="NAME", help="the lesson of the rehearsal")


def wrong_use(given: argparse.Namespace) -> str:
    """What is wrong with the options, in one sentence; "" where nothing is."""
    for name, least, most in (("learners", 1, 200), ("port", 1, 65_535), ("scale", *files.SCALES)):
        number = getattr(given, name)
        if number is not None and not least <= number <= most:
            return f"--{name} is a number from {least} to {most}, {number} was found"
    try:
        loopback = given.ip == "localhost" or ipaddress.ip_address(given.ip).is_loopback
    except ValueError:
        return f"--ip is an address as 192.168.1.5, {given.ip!r} was found"
    if bool(given.certificate) != bool(given.key):
        return "--certificate and --key come together"
    if given.certificate:
        try:  # without a terminal there is nobody to give a key's own password
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(given.certificate, given.key, password="")
        except OSError as error:
            return f"{given.certificate} and {given.key} are no certificate and its key without a password ({error})"
    if not loopback and not given.certificate and not given.behind_proxy:
        return (
            f"passwords would cross the network in clear on {given.ip}: add --certificate and --key, or --behind-proxy "
            "where a proxy in front does TLS"
        )
    if given.delete_homes and not given.close:
        return "--delete-homes comes with --close"
    return ""


def run(given: argparse.Namespace) -> int:
    """Start the class and stay until Ctrl-C, or close it, or rehearse; the exit code."""
    with only_one(kind := "rehearsal" if given.rehearse else "class"):
        if given.close:
            return _close(kind, given.delete_homes)
        try:
            if given.rehearse and roll.found(kind):
                _close(kind, True)  # of a rehearsal that was killed: its learners, and what they had passed
            return _hold(kind, given)
        finally:
            if given.rehearse:
                _close(kind, True)


@contextmanager
def only_one(kind: str) -> Iterator[None]:
    """A block in which this process alone has the class, until it ends; WorkshopError where another one has it."""
    with open(state_dir() / f"{kind}-held", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkshopError(
                f"a {kind} runs already (what to hand out stands in {state_dir() / kind / 'handout.txt'}): "
                "to end it, press Ctrl-C in its terminal"
            ) from None
        yield


def _hold(kind: str, given: argparse.Namespace) -> int:
    from workshop.classroom import handout, rehearsal

    for number in STOPS:  # each ends whatever is done at that moment, a rehearsal too
        signal.signal(number, signal.default_int_handler)
    klass = roll.opened(kind, given.learners)
    hub = _Hub(klass)
    docker = containers.connected(given.image) if given.spawner == "docker" else None
    if is_root() and not docker:
        apart.check(klass.uid(0))
    try:
        hub.stop()  # of a class that was killed
        servers = lifecycle.up()
        hub_ip = containers.address(docker, given.network, servers) if docker else "127.0.0.1"
        there = seed.status(servers.services["postgres"], servers.services["mongo"])["scale"]
        seed.ensure(servers, there or given.scale, biographies=True)
        with lock(f"{kind}/prepare.lock"):
            accounts.prepare(klass, servers)
        address = hub.start(given, hub_ip)
        if kind == "rehearsal":
            return rehearsal.run(klass, address, given.lesson)
        page = handout.write(klass.folder, address, klass.password)
        print(f"\nThe class:            {address}\nits password:         {klass.password}")
        print(f"you are:              {roll.TEACHER}, password {klass.teacher_password}")
        print(f"who passed what:      {address}services/class/")
        print(f"to hand out:          {page} and {page.with_suffix('.txt').name}")
        print(_apart_in_words(given.spawner))
        print("Ctrl-C stops it; notebooks, accounts and passwords stay until --close.", flush=True)
        try:
            while hub.process.running():
                time.sleep(1.0)
        except KeyboardInterrupt:
            return 0
        raise hub.failure()
    finally:
        for number in STOPS:  # the end has deadlines of its own, and half of it would leave learners' processes behind
            signal.signal(number, lambda *_: None)
        hub.stop()
        _stop_servers()


def _apart_in_words(spawner: str) -> str:
    if spawner == "docker":
        return f"Each learner has a container of her own. Limits: {containers.IN_WORDS}."
    if is_root():
        open_file = ENV_FILE.exists() and ENV_FILE.stat().st_mode & stat.S_IROTH
        but = f" But learners can read {ENV_FILE}: where it holds passwords, `chmod 600` it." if open_file else ""
        return f"Each learner has a user id of her own: files are kept apart.{but} Limits: {apart.NOT_LIMITED}."
    return (
        "All learners' processes are yours, so their files, and the passwords in them, are not kept apart: "
        "start the class as root, or with --spawner docker, where they must be."
    )


def _stop_servers() -> None:
    if not lifecycle.kept():
        with suppress(WorkshopError):  # somebody's lesson outside of the class uses them
            lifecycle.down(if_alone=True)


class _Hub:
    """The JupyterHub of a class, with its proxy, page and learners' servers."""

    def __init__(self, klass: roll.Roll) -> None:
        self.klass = klass
        self.folder = klass.folder / "hub"
        self.process = ServerProcess("JupyterHub", self.folder)

    def start(self, given: argparse.Namespace, hub_ip: str) -> str:
        """Start it; the address that learners open, with a slash at its end."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        port = _port(given.ip, given.port)
        ports = {f"{name}_port": free_port() for name in ("hub", "api", "page")}
        scheme = "https" if given.certificate else "http"
        settings = {"url": f"{scheme}://{_host(given.ip)}:{port}", "turns": os.cpu_count() or 1, **ports}
        settings |= {"spawner": given.spawner, "image": given.image, "network": given.network, "hub_ip": hub_ip}
        tls = {"certificate": given.certificate, "key": given.key}
        settings |= {name: str(file.resolve()) if file else "" for name, file in tls.items()}
        write_private(self.folder / "settings.json", json.dumps(settings))
        os.environ[KIND] = self.klass.kind
        # The hub's own state follows the class, whatever folder it works in.
        os.environ["WORKSHOP_STATE"] = str(self.klass.folder.parent)
        config = CHECKOUT / "workshop" / "classroom" / "hub_config.py"
        command = [sys.executable, "-m", "jupyterhub", "--config", config]
        everywhere = given.ip in ("0.0.0.0", "::")
        near = f"{scheme}://{_host({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(given.ip, given.ip))}:{port}/"
        try:
            self.process.start(command, port, lambda: _answers(f"{near}hub/login"), source="wheel")
        except WorkshopError:  # it advises what helps a server of the shop
            raise self.failure() from None
        return f"{scheme}://{socket.getfqdn() if everywhere else _host(given.ip)}:{port}/"

    def failure(self) -> WorkshopError:
        last, log = self.process.last_words(), self.process.log
        return WorkshopError(f"JupyterHub does not run, its last words were: {last!r}: read {log}, then start it again")

    def stop(self) -> None:
        """Stop it and whatever of the class's processes and containers is left, also after it was killed."""
        self.process.stop(signal.SIGTERM, 60.0)
        if read_json(self.folder / "settings.json").get("spawner") == "docker":
            containers.remove(self.klass)
        left = [process for process in psutil.process_iter() if self._belongs(process)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in left:
                signal_to(process, number)
            _, left = psutil.wait_procs(left, timeout=15)

    def _belongs(self, process: psutil.Process) -> bool:
        """Whether the class started it in its folder, or, as root, it has a learner's user id.

        A teacher's shell or editor may stand in that folder too.
        """
        try:
            if is_root() and process.uids().real in {self.klass.uid(seat) for seat in self.klass.seats}:
                return True
            folder = Path(process.cwd())
            if self.klass.folder.resolve() not in (folder, *folder.parents):
                return False
            # Servers that a learner's lessons started write their titles over their environment.
            return process.name() in PROGRAMS or not {KIND, learner.VARIABLE}.isdisjoint(process.environ())
        except psutil.Error:
            return False


KIND = "WORKSHOP_CLASS_KIND"  # in the environment of the hub and of what it starts


def _port(ip: str, wanted: int) -> int:
    for port in (wanted, 0) if wanted == PORT else (wanted,):
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ip, port))
                return probe.getsockname()[1]
            except OSError as error:
                reason = error.strerror
    raise WorkshopError(
        f"nothing can listen on {ip}:{wanted} ({reason}): choose another --port, or this machine's --ip"
    )


def _host(ip: str) -> str:
    """An address as it stands in a URL."""
    return f"[{ip}]" if ":" in ip else ip


def _answers(url: str) -> bool:
    # The certificate's name is another one, or its own: this asks only whether somebody is there.
    anybody = ssl._create_unverified_context() if url.startswith("https:") else None
    try:
        urllib.request.urlopen(url, timeout=5, context=anybody).close()
        return True
    except OSError:
        return False


def _close(kind: str, delete_homes: bool) -> int:
    """Remove what the class made on the servers, and its folder save the homes, which `delete_homes` takes too."""
    klass = roll.found(kind)
    if klass is None:
        print("no class is there to close")
        return 0
    _Hub(klass).stop()
    try:
        accounts.remove(klass, lifecycle.up(("postgres", "mongo")))
    finally:
        _stop_servers()
    if delete_homes:
        homes = klass.folder / "homes"
        shutil.rmtree(homes, ignore_errors=True)
        if homes.exists():  # by class.json, which stays, the class is found again
            raise WorkshopError(f"{homes} could not be deleted: delete it by hand, then run this command again")
        shutil.rmtree(klass.folder)
    else:
        shutil.rmtree(klass.folder / "hub", ignore_errors=True)
        for sheet in klass.folder.glob("handout.*"):
            sheet.unlink()
    if kind == "class":
        kept = "" if delete_homes else f"; the notebooks stay in {klass.folder / 'homes'}, and names keep their places"
        print(f"the class is closed{kept}")
    return 0
