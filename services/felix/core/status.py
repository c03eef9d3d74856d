"""What is said of each endpoint: is it up, and if not, why. And the forms in which others read that.

    up      its policy is in the kernel and its interface can carry packets
    down    nothing is wrong with its policy, but its interface cannot, or is another endpoint's, or is switched off
    error   something of it could not be programmed; what meets that is denied

Of several the worst counts: error before down before up (facts/felix.md section 3.12). Readers: everybody on the bus;
on this host files, one for each workload that is up, as Calico's CNI plugin and BGP daemon read them; where
EndpointReportingEnabled is set, keys in etcd as Calico's OpenStack driver reads them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from libs.model import keys
from libs.policy.output import Host, PolicyKey, Workload, WorkloadKey
from services.felix.core.state import Owner

UP, DOWN, ERROR = "up", "down", "error"
EndpointKey = WorkloadKey | str  # a workload's, or the name of a host endpoint
_UNESCAPED = "$&+=:@"  # besides letters, digits and -_.~, as in Go's url.PathEscape


@dataclass(frozen=True, slots=True)
class Status:
    status: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is known after a pass. running: interfaces that can carry packets. refused and the next two: what cannot be
    programmed, and why. failures: of the pass, by object. owners: interface -> the workload that has it.
    of_hosts: host endpoint -> interfaces that it acts on, `*` for all others.
    """

    running: Collection[str] = ()
    workloads: Mapping[WorkloadKey, Workload] = field(default_factory=dict)
    hosts: Mapping[str, Host] = field(default_factory=dict)
    refused: Mapping[Owner, str] = field(default_factory=dict)
    refused_interfaces: Mapping[str, str] = field(default_factory=dict)
    refused_hosts: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    owners: Mapping[str, WorkloadKey | None] = field(default_factory=dict)
    of_hosts: Mapping[str, Collection[str]] = field(default_factory=dict)


def of_workload(key: WorkloadKey, wanted: Workload, kernel: Kernel) -> Status:
    have = kernel.workloads.get(key)
    if have is not wanted and have != wanted:
        return Status(ERROR, _not_written(kernel))
    owner = kernel.owners.get(wanted.name)
    if owner is not None and owner != key:
        return Status(DOWN, f"interface {wanted.name} is that of {owner}")
    if reason := kernel.refused_interfaces.get(wanted.name):
        return Status(ERROR, reason)
    if reason := _refused(wanted.policy_keys(), wanted.profiles, kernel.refused):
        return Status(ERROR, reason)
    for net in (*wanted.nets4, *wanted.nets6):
        if reason := kernel.failures.get(f"route {net}"):
            return Status(ERROR, f"route {net}: {reason}")
    if wanted.state != "active":
        return Status(DOWN, "administratively down")
    if reason := kernel.failures.get(f"interface {wanted.name}"):
        return Status(DOWN, reason)
    if wanted.name not in kernel.running:
        return Status(DOWN, f"interface {wanted.name} is missing or down")
    unlimited = kernel.failures.get(f"bandwidth {wanted.name}", "")
    return Status(UP, f"its bandwidth is not limited: {unlimited}" if unlimited else "")


def of_host(name: str, wanted: Host, kernel: Kernel) -> Status:
    if kernel.hosts.get(name) != wanted:
        return Status(ERROR, _not_written(kernel))
    if reason := kernel.refused_hosts.get(name):
        return Status(ERROR, reason)
    if reason := _refused(wanted.policy_keys(), wanted.profiles, kernel.refused):
        return Status(ERROR, reason)
    interfaces = kernel.of_hosts.get(name, ())
    if not interfaces:
        why = "is another host endpoint's" if wanted.name else "with an expected address was found"
        return Status(DOWN, f"interface {wanted.name} {why}" if wanted.name else f"no interface {why}")
    if "*" not in interfaces and not set(interfaces) & set(kernel.running):
        return Status(DOWN, f"interface {', '.join(sorted(interfaces))} is missing or down")
    return Status(UP)


def all_statuses(
    workloads: Mapping[WorkloadKey, Workload], hosts: Mapping[str, Host], kernel: Kernel
) -> dict[EndpointKey, Status]:
    """workloads, hosts: those that are wanted."""
    found: dict[EndpointKey, Status] = {key: of_workload(key, wanted, kernel) for key, wanted in workloads.items()}
    found |= {name: of_host(name, wanted, kernel) for name, wanted in hosts.items()}
    return found


def _not_written(kernel: Kernel) -> str:
    return f"ruleset not applied: {kernel.failures.get('nftables', 'not yet')}"


def _refused(policies: Collection[PolicyKey], profiles: Iterable[str], refused: Mapping[Owner, str]) -> str:
    if not refused:
        return ""
    mine: list[Owner] = [*sorted(policies), *profiles]
    return "; ".join(f"{owner}: {refused[owner]}" for owner in mine if owner in refused)


# --- files on this host -----------------------------------------------------------------------------------------------


def file_name(key: WorkloadKey) -> str:
    """`k8s ns1%2Fweb eth0`: three fields, each escaped as Go's url.PathEscape does, with a blank between."""
    return " ".join(quote(part, safe=_UNESCAPED) for part in (key.orchestrator, key.workload, key.endpoint))


def file_content(workload: Workload) -> bytes:
    nets = {"ipv4Nets": list(workload.nets4), "ipv6Nets": list(workload.nets6)}
    return json.dumps({"ifaceName": workload.name, "mac": workload.mac, **nets}, separators=(",", ":")).encode()


# --- keys in etcd -----------------------------------------------------------------------------------------------------


def etcd_prefixes(node: str) -> tuple[str, str]:
    """Everything of ours, of workloads and of host endpoints."""
    workload = keys.workload_status_key(node, "", "", "").partition("/workload/")[0] + "/workload/"
    return workload, keys.host_endpoint_status_key(node, "")


def etcd_values(node: str, statuses: Mapping[EndpointKey, Status]) -> dict[str, bytes]:
    found = {}
    for key, status in statuses.items():
        if isinstance(key, WorkloadKey):
            name = keys.workload_status_key(node, key.orchestrator, key.workload, key.endpoint)
        else:
            name = keys.host_endpoint_status_key(node, key)
        found[name] = json.dumps({"status": status.status}, separators=(",", ":")).encode()
    return found
