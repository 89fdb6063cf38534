"""Learners' containers: whether Docker can start them here, what each is given, and their end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from workshop.classroom.roll import Roll
from workshop.servers.service import Servers
from workshop.state import CHECKOUT, WorkshopError

IMAGE = "data-access-workshop-lab"
BUILD = f"docker build --file workshop/servers/compose/Dockerfile --tag {IMAGE} ."
HOST = "host"  # the network that is this machine's own
HOME, WORKBOOK, PYTHON = "/home/learner", "/workbook", "/opt/venv/bin/python"  # as in the Dockerfile
SHOWN = ("workshop", "notebooks", "data")  # of the checkout: not its .env, nor .workshop with all learners' homes
LIMITS = ("2G", 2.0)  # memory, cores
IN_WORDS = "2 GB of memory, two cores and 1000 processes; disk is not limited"
# PostgreSQL's parallel workers of lessons 08 and 17 share more than Docker's 64 MB.
HOST_CONFIG = {"init": True, "pids_limit": 1000, "shm_size": "256m"}
HOST_CONFIG |= {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}


def connected(image: str) -> docker.DockerClient:
    """Docker, which has the `image`; WorkshopError where it does not answer or has not."""
    try:
        client = docker.from_env()
        client.images.get(image)
    except ImageNotFound:
        raise WorkshopError(f"there is no image {image}: build it with `{BUILD}`, or name one by --image") from None
    except DockerException as error:
        raise WorkshopError(f"Docker does not answer ({error}): start it, or use --spawner local") from None
    return client


def address(client: docker.DockerClient, network: str, servers: Servers) -> str:
    """Where containers on `network` find this machine; WorkshopError where they cannot find it or the `servers`."""
    if network == HOST:
        return "127.0.0.1"
    try:
        pools = client.networks.get(network).attrs["IPAM"]["Config"] or []
    except NotFound:
        raise WorkshopError(f"there is no network {network}: choose one of `docker network ls`") from None
    gateway = next((pool["Gateway"] for pool in pools if "Gateway" in pool), "")
    if not gateway:
        raise WorkshopError(f"the network {network} does not lead to this machine: name a bridge, or no --network")
    if near := [name for name in ("postgres", "mongo") if _loopback(servers.services[name].address)]:
        variables = " and ".join(f"WORKSHOP_{name.upper()}_URL" for name in near)
        raise WorkshopError(
            f"containers on the network {network} cannot reach servers that listen on loopback ({', '.join(near)}): "
            f"leave --network out, or set {variables} to addresses that they reach"
        )
    return gateway


def _loopback(address: str) -> bool:
    """Whether a server's address, host and port or several of them, leads to this machine's loopback or a socket."""
    hosts = [urlsplit(f"//{part}").hostname or "local" for part in address.split(",")]
    return any(host in ("localhost", "::1", "local", "local socket") or host.startswith("127.") for host in hosts)


def inside(path: Path) -> str:
    """Where a container has this path of the checkout."""
    return f"{WORKBOOK}/{path.relative_to(CHECKOUT)}"


def label(klass: Roll) -> dict[str, str]:
    """What marks all containers of the class."""
    return {"workshop.class": klass.prefix}


def volumes(klass: Roll, name: str) -> dict[str, dict[str, str]]:
    """What the container of the learner `name` sees of this machine: her home, and the workbook without its secrets."""
    home = klass.home(name)
    owner = home.stat()
    # initdb looks its user up, and the image knows one user only.
    passwd = Path(klass.folder, "hub", f"passwd-{name}")
    passwd.write_text(
        f"root:x:0:0::/root:/bin/bash\nlearner:x:{owner.st_uid}:{owner.st_gid}::{HOME}:/bin/bash\n", encoding="utf-8"
    )
    passwd.chmod(0o644)
    seen = {str(CHECKOUT / part): inside(CHECKOUT / part) for part in SHOWN} | {str(passwd): "/etc/passwd"}
    binds = {source: {"bind": target, "mode": "ro"} for source, target in seen.items()}
    return {str(home): {"bind": HOME, "mode": "rw"}, **binds}


def user(klass: Roll, name: str) -> str:
    """Who the container's processes are: the owner of the learner's home, as on this machine."""
    owner = klass.home(name).stat()
    return f"{owner.st_uid}:{owner.st_gid}"


def remove(klass: Roll) -> None:
    """Remove the class's containers, also those of a hub that was killed; nothing where Docker does not answer."""
    marks = [f"{key}={value}" for key, value in label(klass).items()]
    with suppress(DockerException, OSError):  # requests' own errors, as of a Docker that is slow, are OSErrors
        for container in docker.from_env().containers.list(all=True, filters={"label": marks}, ignore_removed=True):
            try:
                container.remove(force=True, v=True)
            except (APIError, OSError):  # it is removing itself at this moment, or Docker is slow
                with suppress(APIError, OSError):
                    container.wait(timeout=60, condition="removed")
