"""Where calicoctl finds etcd and NATS: /etc/calico/calicoctl.cfg (kind CalicoAPIConfig), else the environment.

What the file leaves out is taken from the environment, so that one file serves hosts with different certificates. Each
variable may carry the prefix CALICO_. Passwords and keys are held here, never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from libs.bus import BusConfig, BusConfigError
from libs.runtime.redact import hide
from libs.store import StoreConfig, StoreConfigError
from services.calicoctl.documents import Broken, parse

DEFAULT_PATH = "/etc/calico/calicoctl.cfg"

_FILE_KEYS = {
    "datastoreType": "DATASTORE_TYPE",
    "etcdEndpoints": "ETCD_ENDPOINTS",
    "etcdDiscoverySrv": "ETCD_DISCOVERY_SRV",
    "etcdUsername": "ETCD_USERNAME",
    "etcdPassword": "ETCD_PASSWORD",
    "etcdKeyFile": "ETCD_KEY_FILE",
    "etcdCertFile": "ETCD_CERT_FILE",
    "etcdCACertFile": "ETCD_CA_CERT_FILE",
    "etcdKey": "ETCD_KEY",
    "etcdCert": "ETCD_CERT",
    "etcdCACert": "ETCD_CA_CERT",
    "natsURL": "NATS_URL",
}
"""spec field -> variable. natsURL is ours; the others are Calico's."""

_SECRET = ("ETCD_PASSWORD", "ETCD_KEY", "NATS_PASSWORD", "NATS_TOKEN")


class ConfigProblem(Exception):
    """The configuration cannot be read or asks for what we do not have."""


@dataclass(frozen=True, slots=True)
class CtlConfig:
    store: StoreConfig
    bus: BusConfig


def load(path: str | None, environment: Mapping[str, str]) -> CtlConfig:
    """path: --config; None takes DEFAULT_PATH where it exists. Raises ConfigProblem."""
    values = dict(environment)
    for name, value in environment.items():
        if name.startswith("CALICO_"):
            values.setdefault(name.removeprefix("CALICO_"), value)
    if path is not None or Path(DEFAULT_PATH).is_file():
        values.update(_read(path or DEFAULT_PATH))
    for name in _SECRET:
        hide(values.get(name, ""))
    try:
        return CtlConfig(StoreConfig.from_env(values), BusConfig.from_env(values))
    except (StoreConfigError, BusConfigError) as error:
        raise ConfigProblem(str(error)) from error


def _read(path: str) -> dict[str, str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigProblem(f"cannot read configuration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigProblem(f"cannot read configuration {path}: not UTF-8 text") from error
    documents = list(parse(text, path))
    if len(documents) != 1:
        raise ConfigProblem(f"{path}: expected one CalicoAPIConfig, found {len(documents)} documents")
    document = documents[0]
    if isinstance(document, Broken):
        raise ConfigProblem(str(document))
    if document.value.get("kind") != "CalicoAPIConfig":
        raise ConfigProblem(f"{document.where('kind')}: kind: expected CalicoAPIConfig")
    spec = document.value.get("spec") or {}
    if not isinstance(spec, dict):
        raise ConfigProblem(f"{document.where('spec')}: spec: expected a mapping")
    found = {}
    for name, variable in _FILE_KEYS.items():
        given = spec.get(name)
        if given in (None, ""):
            continue
        if not isinstance(given, str):
            raise ConfigProblem(f"{document.where(f'spec.{name}')}: spec.{name}: expected text")
        found[variable] = given
    return found
