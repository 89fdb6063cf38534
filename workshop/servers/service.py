"""What the rest of the workbook knows of a running server."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sqlalchemy import URL


@dataclass(frozen=True)
class Service:
    """A server that answers. `url` holds the password and therefore stays out of every repr."""

    name: str
    url: str | URL = field(repr=False)
    version: str
    source: str  # "url", "wheel" or "path"

    @property
    def address(self) -> str:
        """Host and port, without user and password."""
        if isinstance(self.url, URL):
            return f"{self.url.host or 'local socket'}:{self.url.port or 5432}"
        hosts = urlsplit(self.url).netloc.rpartition("@")[2]
        return hosts or "local"


@dataclass(frozen=True)
class Servers:
    """The servers that were asked for: addresses that a lesson connects to.

    `lacking` has the reason of each that was asked for and could not be had, where the caller can do without; `notes`
    are sentences on where the servers are others than those that were named.
    """

    services: dict[str, Service]
    replica_services: list[Service] = field(default_factory=list)
    lacking: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __contains__(self, name: object) -> bool:
        return name in self.services

    @property
    def postgres(self) -> URL:
        return self.services["postgres"].url

    @property
    def replicas(self) -> list[URL]:
        return [replica.url for replica in self.replica_services]

    @property
    def redis(self) -> str:
        return self.services["redis"].url

    @property
    def mongo(self) -> str:
        return self.services["mongo"].url

    @property
    def versions(self) -> dict[str, str]:
        return {name: service.version for name, service in self.services.items()}
