"""`calicoctl node run`: the docker command that starts the node's container, made of the options and the connection
settings. The environment variables are Calico's; so are the paths inside of the container.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

CONTAINER = "calico-node"
_ETCD_FILES = {
    "ETCD_CA_CERT_FILE": "/etc/calico/certs/ca_cert.crt",
    "ETCD_KEY_FILE": "/etc/calico/certs/key.pem",
    "ETCD_CERT_FILE": "/etc/calico/certs/cert.crt",
}
_PASSED = ("ETCD_ENDPOINTS", "ETCD_DISCOVERY_SRV", "ETCD_USERNAME", "ETCD_PASSWORD", "NATS_URL")
FIRST_FOUND = "first-found"
_METHODS = ("can-reach=", "interface=", "skip-interface=", "cidr=")
_LARGEST_AS = 2**32 - 1


class RunProblem(Exception):
    """An option that cannot be."""


@dataclass(frozen=True, slots=True)
class Options:
    """As on the command line; "" for what is not given."""

    name: str
    image: str
    log_dir: str = "/var/log/calico"
    ip: str = ""
    ip6: str = ""
    as_number: str = ""
    ip_method: str = FIRST_FOUND
    ip6_method: str = FIRST_FOUND
    backend: str = "bird"
    felix_config: str = ""
    no_default_pools: bool = False
    init_system: bool = False


def command(options: Options, connection: Mapping[str, str]) -> list[str]:
    """connection: variables of calicoctl's own configuration (ETCD_ENDPOINTS …). Raises RunProblem."""
    environment = {
        "NODENAME": options.name, "CALICO_NETWORKING_BACKEND": options.backend, **_addresses(options),
        **{name: connection[name] for name in _PASSED if connection.get(name)},
    }  # fmt: skip
    if options.no_default_pools:
        environment["NO_DEFAULT_POOLS"] = "true"
    volumes = [
        (options.log_dir, "/var/log/calico"),
        ("/var/run/calico", "/var/run/calico"),
        ("/var/lib/calico", "/var/lib/calico"),
        ("/lib/modules", "/lib/modules"),
        ("/run", "/run"),
    ]
    if options.felix_config:
        volumes.append((str(Path(options.felix_config).absolute()), "/etc/calico/felix.cfg"))
    for name, inside in _ETCD_FILES.items():
        if connection.get(name):
            environment[name] = inside
            volumes.append((str(Path(connection[name]).absolute()), inside))
    kept = ["--rm"] if options.init_system else ["-d", "--restart=always"]
    return [
        "docker", "run", "--net=host", "--privileged", f"--name={CONTAINER}", *kept,
        *(part for name in sorted(environment) for part in ("-e", f"{name}={environment[name]}")),
        *(part for outside, inside in volumes for part in ("-v", f"{outside}:{inside}")),
        options.image,
    ]  # fmt: skip


def _addresses(options: Options) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text, family in (("IP", options.ip, IPv4Address), ("IP6", options.ip6, IPv6Address)):
        if text and text != "autodetect":
            try:
                right = isinstance(ip_address(text), family)
            except ValueError:
                raise RunProblem(f"--{name.lower()}: {text!r} is no IP address, nor `autodetect`") from None
            if not right:
                raise RunProblem(f"Error executing command: --{name.lower()} is wrong IP version")
        if text:
            found[name] = text
    for variable, option, method in (
        ("IP_AUTODETECTION_METHOD", "--ip-autodetection-method", options.ip_method),
        ("IP6_AUTODETECTION_METHOD", "--ip6-autodetection-method", options.ip6_method),
    ):
        _check_method(option, method)
        if method != FIRST_FOUND:
            found[variable] = method
    if options.as_number:
        found["AS"] = str(as_number(options.as_number))
    return found


def _check_method(option: str, method: str) -> None:
    if method in (FIRST_FOUND, "kubernetes-internal-ip"):
        return
    for prefix in _METHODS:
        if method.startswith(prefix) and method != prefix:
            if "interface" not in prefix:
                return
            for pattern in method.removeprefix(prefix).split(","):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise RunProblem(f"{option}: {pattern!r} is no regular expression: {error}") from error
            return
    raise RunProblem(f"Error executing command: invalid IP autodetection method: {method} ({option})")


def as_number(text: str) -> int:
    """Plain, or dotted (`1.10` is 65546), as RFC 5396 writes them."""
    high, dot, low = text.partition(".")
    parts = (high, low) if dot else (text,)
    if all(part.isdecimal() for part in parts):
        number = int(high) * 65536 + int(low) if dot else int(text)
        fits = not dot or (int(high) < 65536 and int(low) < 65536)
        if fits and number <= _LARGEST_AS:
            return number
    raise RunProblem(f"--as: {text!r} is no AS number")
