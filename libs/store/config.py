"""How to reach etcd: Calico's environment variables (facts: etcd-layout section 7), parsed once and checked."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,230}}$){_LABEL}(\.{_LABEL})*\.?")  # 253, and the name of the service before it


class StoreConfigError(ValueError):
    """A setting is missing, malformed or contradicts another; the text names it."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """endpoints: `http://host:port` or `https://host:port`, all of one cluster. discovery_srv: domain whose SRV records
    name them instead (`discovery`). ca, cert, key: PEM; empty means not used.

    A user is used only when it has a password too. Passwords and keys do not show in `repr`.
    """

    endpoints: tuple[str, ...] = ()
    discovery_srv: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    ca: bytes = field(default=b"", repr=False)
    cert: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    tls_files: tuple[Path | None, Path | None, Path | None] = (None, None, None)
    """Where ca, cert and key were read from, and are read again when they change."""
    login_files: tuple[Path | None, Path | None] = (None, None)
    """Where the user and the password were read from, and are read again whenever etcd asks who we are (`login`)."""
    reload_check_s: float = 5.0
    request_timeout_s: float = 10.0  # one call, retries of a read included
    keepalive_time_s: float = 10.0  # a silent connection is probed this often; etcd refuses less than 5 s
    keepalive_timeout_s: float = 5.0
    page_keys: int = 5_000  # of a list; larger is not faster
    probe_key: str = "/calico/resources/v3/projectcalico.org/clusterinformations/default"  # that every role may read

    def __post_init__(self) -> None:
        if self.discovery_srv:
            if self.endpoints:
                raise StoreConfigError("set ETCD_ENDPOINTS or ETCD_DISCOVERY_SRV, not both")
            if not is_domain(self.discovery_srv):
                raise StoreConfigError(f"ETCD_DISCOVERY_SRV: {self.discovery_srv!r} is no domain name")
        elif not self.endpoints:
            raise StoreConfigError("ETCD_ENDPOINTS names no endpoint")
        for endpoint in self.endpoints:
            split_endpoint(endpoint)
        if bool(self.cert) != bool(self.key):
            raise StoreConfigError("the client certificate and its key must be set together")

    @property
    def authenticates(self) -> bool:
        return bool(self.username and self.password)

    def login(self) -> tuple[str, str]:
        """User and password of this moment. Raises StoreConfigError for a file that cannot be read."""
        user, password = self.login_files
        return (
            _word(user, "ETCD_USERNAME") if user else self.username,
            _word(password, "ETCD_PASSWORD") if password else self.password,
        )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> StoreConfig:
        """ETCD_ENDPOINTS (comma separated; default http://127.0.0.1:2379) or ETCD_DISCOVERY_SRV (a domain whose SRV
        records name the endpoints); ETCD_USERNAME, ETCD_PASSWORD or files with
        them, ETCD_USERNAME_FILE, ETCD_PASSWORD_FILE; ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE or as PEM text
        ETCD_CA_CERT, ETCD_CERT, ETCD_KEY, not both.

        Raises StoreConfigError, also for DATASTORE_TYPE other than etcdv3.
        """
        kind = env.get("DATASTORE_TYPE", "") or "etcdv3"
        if kind != "etcdv3":
            raise StoreConfigError(f"DATASTORE_TYPE is {kind!r}; only etcdv3 is supported here")
        domain = env.get("ETCD_DISCOVERY_SRV", "").strip()
        endpoints = tuple(part.strip() for part in env.get("ETCD_ENDPOINTS", "").split(",") if part.strip())
        for name in ("ETCD_USERNAME", "ETCD_PASSWORD"):
            if env.get(name) and env.get(f"{name}_FILE"):
                raise StoreConfigError(f"set {name} or {name}_FILE, not both")
        user, password = _file(env, "ETCD_USERNAME"), _file(env, "ETCD_PASSWORD")
        return cls(
            endpoints=endpoints if endpoints or domain else ("http://127.0.0.1:2379",),
            discovery_srv=domain,
            username=_word(user, "ETCD_USERNAME") if user else env.get("ETCD_USERNAME", ""),
            password=_word(password, "ETCD_PASSWORD") if password else env.get("ETCD_PASSWORD", ""),
            login_files=(user, password),
            ca=_pem(env, "ETCD_CA_CERT"),
            cert=_pem(env, "ETCD_CERT"),
            key=_pem(env, "ETCD_KEY"),
            tls_files=(_file(env, "ETCD_CA_CERT"), _file(env, "ETCD_CERT"), _file(env, "ETCD_KEY")),
        )


def is_domain(text: str) -> bool:
    return _DOMAIN.fullmatch(text) is not None


def split_endpoint(endpoint: str) -> tuple[bool, str]:
    """(uses TLS, host:port) of an endpoint URL. Raises StoreConfigError."""
    parts = urlsplit(endpoint)
    try:
        port = parts.port or 2379
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or parts.path not in ("", "/"):
        raise StoreConfigError(f"ETCD_ENDPOINTS: {endpoint!r} is not http://host:port or https://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme == "https", f"{host}:{port}"


def with_fresh_files(config: StoreConfig) -> StoreConfig:
    """Certificates read again. Raises StoreConfigError for files that are missing, or that do not belong together."""
    ca, cert, key = config.tls_files
    try:
        if cert and key:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key)
        return replace(
            config,
            ca=ca.read_bytes() if ca else config.ca,
            cert=cert.read_bytes() if cert else config.cert,
            key=key.read_bytes() if key else config.key,
        )
    except OSError as error:  # ssl.SSLError is one
        raise StoreConfigError(f"certificate files of etcd cannot be used: {error.strerror or error}") from error


def _word(path: Path, name: str) -> str:
    """A file's text without the line's end that editors leave there."""
    try:
        text = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreConfigError(f"{name}_FILE: {path}: {getattr(error, 'strerror', None) or 'no text'}") from error
    if not text:
        raise StoreConfigError(f"{name}_FILE: {path} is empty")
    return text


def _file(env: Mapping[str, str], name: str) -> Path | None:
    return Path(file) if (file := env.get(f"{name}_FILE", "")) else None


def _pem(env: Mapping[str, str], name: str) -> bytes:
    text, file = env.get(name, ""), env.get(f"{name}_FILE", "")
    if text and file:
        raise StoreConfigError(f"set {name} or {name}_FILE, not both")
    if not file:
        return text.encode()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise StoreConfigError(f"{name}_FILE: {file}: {error.strerror}") from error
