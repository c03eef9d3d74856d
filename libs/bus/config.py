"""How to reach the bus, parsed once from the environment; the names are those of the `nats` command line tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


class BusConfigError(ValueError):
    """A setting is missing, malformed or contradicts another; the text names it."""


@dataclass(frozen=True, slots=True)
class BusConfig:
    """Where the servers are and who we are.

    servers: URLs, tried in random order. creds_file: decentralised JWT credentials. nkey_file: an nkey seed.
    ca_file: trust these authorities instead of the system's; TLS is used whenever the server demands it or the scheme
    is tls.
    """

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    user: str = ""
    password: str = ""
    token: str = ""
    creds_file: Path | None = None
    nkey_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    connect_timeout_s: float = 3.0
    reconnect_min_s: float = 0.05  # first wait after a lost connection; doubles with jitter
    reconnect_max_s: float = 3.0
    watchdog_s: float = 5.0  # a round trip to ourselves this often; two missed make a new connection
    max_buffered_bytes: int = 64 * 1024 * 1024  # published and not yet taken by the socket
    max_pending_msgs: int = 65_536  # per subscription, received and not yet given to its callback
    max_pending_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if not self.servers:
            raise BusConfigError("NATS_URL names no server")
        for server in self.servers:
            parts = urlsplit(server)
            if parts.scheme not in ("nats", "tls") or not parts.hostname:
                raise BusConfigError(f"NATS_URL: {server!r} is not nats://host:port or tls://host:port")
        if bool(self.cert_file) != bool(self.key_file):
            raise BusConfigError("NATS_CERT and NATS_KEY must be set together")
        if bool(self.user) != bool(self.password):
            raise BusConfigError("NATS_USER and NATS_PASSWORD must be set together")
        ways = [bool(self.user), bool(self.token), bool(self.creds_file), bool(self.nkey_file)]
        if sum(ways) > 1:
            raise BusConfigError("set only one of NATS_USER, NATS_TOKEN, NATS_CREDS, NATS_NKEY")

    @property
    def tls_files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.ca_file, self.cert_file, self.key_file) if path)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> BusConfig:
        """NATS_URL (comma separated), NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_CREDS, NATS_NKEY, NATS_CA,
        NATS_CERT, NATS_KEY.

        An empty variable counts as unset. Raises BusConfigError, also for a file that is not there.
        """

        def path(name: str) -> Path | None:
            value = env.get(name, "")
            if value and not Path(value).is_file():
                raise BusConfigError(f"{name}: no file {value!r}")
            return Path(value) if value else None

        urls = [part.strip() for part in env.get("NATS_URL", "").split(",") if part.strip()]
        servers = tuple(url if "://" in url else f"nats://{url}" for url in urls)
        return cls(
            servers=servers or cls.servers_default(),
            user=env.get("NATS_USER", ""),
            password=env.get("NATS_PASSWORD", ""),
            token=env.get("NATS_TOKEN", ""),
            creds_file=path("NATS_CREDS"),
            nkey_file=path("NATS_NKEY"),
            ca_file=path("NATS_CA"),
            cert_file=path("NATS_CERT"),
            key_file=path("NATS_KEY"),
        )

    @staticmethod
    def servers_default() -> tuple[str, ...]:
        return ("nats://127.0.0.1:4222",)
