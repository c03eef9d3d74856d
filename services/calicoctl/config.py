"""Where calicoctl finds the datastore and NATS: /etc/calico/calicoctl.cfg (kind CalicoAPIConfig), else the environment.

What the file leaves out is taken from the environment, so that one file serves hosts with different certificates. Each
variable may carry the prefix CALICO_. Passwords and keys are held here, never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from libs.resources.remote_settings import Settings
from libs.runtime.redact import hide

if TYPE_CHECKING:
    from libs.bus.config import BusConfig
    from libs.store.config import StoreConfig

DEFAULT_PATH = "/etc/calico/calicoctl.cfg"
ETCD, KUBERNETES = "etcdv3", "kubernetes"

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
    "kubeconfig": "KUBECONFIG",
    "kubeconfigInline": "K8S_KUBECONFIG_INLINE",
    "k8sAPIEndpoint": "K8S_API_ENDPOINT",
    "k8sKeyFile": "K8S_KEY_FILE",
    "k8sCertFile": "K8S_CERT_FILE",
    "k8sCAFile": "K8S_CA_FILE",
    "k8sAPIToken": "K8S_API_TOKEN",
    "k8sInsecureSkipTLSVerify": "K8S_INSECURE_SKIP_TLS_VERIFY",
    "k8sDisableNodePoll": "K8S_DISABLE_NODE_POLL",
    "usePodCIDR": "USE_POD_CIDR",
    "k8sClientQPS": "K8S_CLIENT_QPS",
    "k8sClientBurst": "K8S_CLIENT_BURST",
    "k8sCurrentContext": "K8S_CURRENT_CONTEXT",
    "calicoAPIGroup": "CALICO_API_GROUP",
    "natsURL": "NATS_URL",
}
"""spec field -> variable. natsURL is ours; the others are Calico's."""

_SECRET = ("ETCD_PASSWORD", "ETCD_KEY", "NATS_PASSWORD", "NATS_TOKEN", "K8S_API_TOKEN")
_OF_ETCD = ("ETCD_ENDPOINTS", "ETCD_DISCOVERY_SRV")
_OF_KUBERNETES = ("KUBECONFIG", "K8S_API_ENDPOINT", "K8S_KUBECONFIG_INLINE")
_TYPES = {ETCD: ETCD, KUBERNETES: KUBERNETES, "etcd": ETCD, "k8s": KUBERNETES}
_TRUE, _FALSE = frozenset({"1", "t", "true", "yes"}), frozenset({"", "0", "f", "false", "no"})
_PLAIN = ("K8S_INSECURE_SKIP_TLS_VERIFY", "K8S_DISABLE_NODE_POLL", "USE_POD_CIDR", "K8S_CLIENT_QPS", "K8S_CLIENT_BURST")
"""Not text in the file: flags and numbers."""
_API_GROUP = "projectcalico.org/v3"


class ConfigProblem(Exception):
    """The configuration cannot be read or asks for what we do not have."""


@dataclass(frozen=True, slots=True)
class CtlConfig:
    """datastore: ETCD or KUBERNETES; the settings of the other one are those of the defaults."""

    datastore: str
    store: StoreConfig
    kubernetes: Settings
    bus: BusConfig


def load(path: str | None, environment: Mapping[str, str], context: str = "") -> CtlConfig:
    """path: --config; None takes DEFAULT_PATH where it exists. context: --context. Raises ConfigProblem."""
    from libs.bus.config import BusConfig, BusConfigError
    from libs.store.config import StoreConfig, StoreConfigError

    values = connection_variables(path, environment)
    datastore = _datastore(values)
    values["DATASTORE_TYPE"] = ETCD  # it has been looked at
    try:
        if datastore == KUBERNETES:
            kubernetes = _kubernetes(values)
            kubernetes = replace(kubernetes, context=context or kubernetes.context)
            return CtlConfig(datastore, StoreConfig.from_env({}), kubernetes, BusConfig.from_env(values))
        return CtlConfig(datastore, StoreConfig.from_env(values), Settings(), BusConfig.from_env(values))
    except (StoreConfigError, BusConfigError) as error:
        raise ConfigProblem(str(error)) from error


def connection_variables(path: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with what the file says put over it. Raises ConfigProblem for a bad file."""
    values = dict(environment)
    for name, value in environment.items():
        if name.startswith("CALICO_"):
            values.setdefault(name.removeprefix("CALICO_"), value)
    if path is not None or Path(DEFAULT_PATH).is_file():
        of_file = _read(path or DEFAULT_PATH)
        if _any(of_file, _OF_ETCD):  # the file's way to find etcd, not also the environment's
            for name in _OF_ETCD:
                values.pop(name, None)
        values.update(of_file)
    for name in _SECRET:
        hide(values.get(name, ""))
    return values


def _datastore(values: Mapping[str, str]) -> str:
    """Without DATASTORE_TYPE what else is set says it: etcd's settings first, then Kubernetes'; else etcd here."""
    given = values.get("DATASTORE_TYPE", "")
    if not given:
        of_kubernetes = not _any(values, _OF_ETCD) and _any(values, _OF_KUBERNETES)
        return KUBERNETES if of_kubernetes else ETCD
    if (found := _TYPES.get(given.lower())) is None:
        raise ConfigProblem(f"DATASTORE_TYPE is {given!r}; expected {ETCD} or {KUBERNETES}")
    return found


def _any(values: Mapping[str, str], names: tuple[str, ...]) -> bool:
    return any(values.get(name) for name in names)


def _kubernetes(values: Mapping[str, str]) -> Settings:
    group = values.get("CALICO_API_GROUP") or values.get("API_GROUP") or _API_GROUP
    if group != _API_GROUP:
        raise ConfigProblem(
            f"CALICO_API_GROUP is {group!r}; only {_API_GROUP} is spoken: custom resources are reached through "
            "the API server for them"
        )
    return Settings(
        endpoint=values.get("K8S_API_ENDPOINT", ""),
        kubeconfig=values.get("KUBECONFIG", ""),
        kubeconfig_text=values.get("K8S_KUBECONFIG_INLINE", ""),
        context=values.get("K8S_CURRENT_CONTEXT", ""),
        ca_file=values.get("K8S_CA_FILE", ""),
        cert_file=values.get("K8S_CERT_FILE", ""),
        key_file=values.get("K8S_KEY_FILE", ""),
        token=values.get("K8S_API_TOKEN", ""),
        insecure=_flag(values, "K8S_INSECURE_SKIP_TLS_VERIFY"),
        qps=_number(values, "K8S_CLIENT_QPS"),
        burst=int(_number(values, "K8S_CLIENT_BURST")),
    )


def _flag(values: Mapping[str, str], name: str) -> bool:
    text = values.get(name, "").lower()
    if text not in _TRUE | _FALSE:
        raise ConfigProblem(f"{name} is {text!r}; expected true or false")
    return text in _TRUE


def _number(values: Mapping[str, str], name: str) -> float:
    text = values.get(name, "") or "0"
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise ConfigProblem(f"{name} is {text!r}; expected a number from 0 (no limit) on")
    return number


def _read(path: str) -> dict[str, str]:
    from services.calicoctl.documents import Broken
    from services.calicoctl.files import parse  # YAML; most commands are told all by the environment

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
        if isinstance(given, (bool, int, float)) and variable in _PLAIN:
            given = str(given).lower()
        if not isinstance(given, str):
            raise ConfigProblem(f"{document.where(f'spec.{name}')}: spec.{name}: expected text")
        found[variable] = given
    return found
