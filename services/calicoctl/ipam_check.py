"""`calicoctl ipam check`: the steps and counts that it prints, and the report that `ipam release` works from.

Calico's compares with a Kubernetes API; here the workload endpoints and nodes of etcd say what is in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median_high

import msgspec

from libs.ipam.audit import LOAD_BALANCER, Audit, Entry, audit
from libs.ipam.source import read_inputs
from libs.ipam.view import Ledger, Users, read_ledger, read_users
from libs.model.cluster import ClusterInformation
from libs.resources.client import ResourceClient
from services.calicoctl.version import client_version

TOP_NODES = 20


class ReportedAllocation(msgspec.Struct, omit_defaults=True, rename="camel"):
    ip: str
    handle: str = ""
    sequence_number: int | None = None
    pod: str = ""
    namespace: str = ""
    node: str = ""
    type: str = ""
    creation_timestamp: str = ""
    in_use: bool | msgspec.UnsetType = msgspec.UNSET  # written also when false
    borrowed: bool = False
    cooling_down: bool = False
    owners: list[str] | msgspec.UnsetType | None = msgspec.UNSET  # null when there are none


class ReportedHandle(msgspec.Struct):
    """Revision: etcd's modification revision in decimal. UID: null with etcd."""

    ID: str
    UID: str | None
    Revision: str


class Report(msgspec.Struct, omit_defaults=True):
    version: str
    cluster_guid: str = msgspec.field(name="clusterGUID")
    locked: bool = msgspec.field(name="datastoreLocked")
    revision: str = msgspec.field(name="clusterInformationRevision")
    cluster_type: str = msgspec.field(name="clusterType")
    allocations: dict[str, list[ReportedAllocation]]
    leaked_handles: list[ReportedHandle] = msgspec.field(name="leakedHandles", default_factory=list)


@dataclass(frozen=True, slots=True)
class Checked:
    audit: Audit
    ledger: Ledger
    users: Users
    pools: list[str]  # CIDRs of those that give addresses
    cluster: ClusterInformation


async def check(client: ResourceClient) -> Checked:
    """Raises ResourceError when the datastore is not initialised, IpamError for contradictory settings."""
    cluster = await client.get("ClusterInformation", "default")
    assert isinstance(cluster, ClusterInformation)
    ledger = await read_ledger(client.store)
    users = await read_users(client.store, ledger.revision)
    inputs = await read_inputs(client.store)
    pools = [str(pool.cidr) for pool in inputs.pools if not pool.disabled]
    return Checked(audit(ledger, users, inputs.pools), ledger, users, pools, cluster)


def report(checked: Checked) -> bytes:
    """Indented by two, as Calico writes it."""
    spec = checked.cluster.spec
    allocations: dict[str, list[ReportedAllocation]] = {}
    for entry in checked.audit.entries:
        allocations.setdefault(str(entry.allocation.address), []).append(_reported(entry))
    handles = [
        ReportedHandle(handle, None, str(checked.ledger.handles[handle][1].mod_revision))
        for handle in checked.audit.leaked_handles
    ]
    made = Report(
        client_version(),
        spec.cluster_guid,
        spec.datastore_ready is False,
        checked.cluster.metadata.resource_version,
        spec.cluster_type,
        dict(sorted(allocations.items())),
        handles,
    )
    return msgspec.json.format(msgspec.json.encode(made), indent=2)


def _reported(entry: Entry) -> ReportedAllocation:
    allocation, attrs = entry.allocation, entry.allocation.attrs
    return ReportedAllocation(
        str(allocation.address),
        allocation.handle or "",
        allocation.sequence if allocation.sequence is not None else 0,
        attrs.get("pod", ""),
        attrs.get("namespace", ""),
        entry.node,
        attrs.get("type", ""),
        attrs.get("timestamp", ""),
        bool(entry.owners),
        entry.borrowed,
        allocation.released_at is not None,
        list(entry.owners) or None,
    )


def text(checked: Checked, *, every_ip: bool, problem_ips: bool) -> str:
    return "".join(f"{line}\n" for line in _lines(checked, every_ip=every_ip, problem_ips=problem_ips or every_ip))


def _lines(checked: Checked, *, every_ip: bool, problem_ips: bool) -> Iterator[str]:
    found = checked.audit
    yield from ("Checking IPAM for inconsistencies...", "", "Loading all IPAM blocks...")
    yield f"Found {len(checked.ledger.blocks)} IPAM blocks."
    for block in checked.ledger.blocks:
        yield f" IPAM block {block.cidr} affinity={block.owner or '<none>'}:"
        if every_ip:
            for entry in found.entries:
                if entry.allocation.address in block.cidr:
                    yield f"  {entry.allocation.address} allocated; attrs {_attributes(entry)}"
    yield f"IPAM blocks record {len(found.entries)} allocations."
    yield from ("", "Loading all IPAM pools...", *(f"  {cidr}" for cidr in checked.pools))
    yield f"Found {len(checked.pools)} active IP pools."
    yield from ("", "Loading all nodes.")
    yield from _users(found, "Node(", every_ip)
    yield f"Found {sum(len(node.tunnels) for node in checked.users.nodes.values())} node tunnel IPs."
    balanced = sum(entry.allocation.attrs.get("type") == LOAD_BALANCER for entry in found.entries)
    if balanced:
        yield from ("", f"Found {balanced} load balancer IPs; their services are not in etcd, so they count as in use.")
    yield from ("", "Loading all workload endpoints.")
    yield from _users(found, "Workload(", every_ip)
    workloads = sum(len(w.addresses) for pods in checked.users.pods.values() for w in pods)
    yield f"Found {workloads} workload IPs."
    if checked.users.blind:
        names = ", ".join(sorted(checked.users.blind))
        yield f"WARNING: endpoints that cannot be read in namespaces {names}: addresses of those count as in use."
    yield f"Workloads and nodes are using {len(found.in_use)} IPs."
    yield from ("", "Loading all handles", f"Looking for top (up to {TOP_NODES}) nodes by allocations...")
    yield from _by_node(found)
    yield from ("", "Scanning for IPs that are allocated but not actually in use...")
    if problem_ips:
        yield from (f"  {entry.allocation.address} leaked; attrs {_attributes(entry)}" for entry in found.leaked)
    yield f"Found {len(found.leaked)} IPs that are allocated in IPAM but not actually in use."
    yield "Scanning for IPs that are in use by a workload or node but not allocated in IPAM..."
    if problem_ips:
        yield from _in_use_problems(found)
    yield f"Found {len(found.outside)} in-use IPs that are not in active IP pools."
    missing = len(found.unallocated)
    yield f"Found {missing} in-use IPs that are in active IP pools but have no corresponding IPAM allocation."
    yield from ("", "Scanning for IPAM handles with no matching IPs...")
    if problem_ips:
        yield from (f"  {handle} doesn't have any active IPs." for handle in found.leaked_handles)
    matched = len(checked.ledger.handles) - len(found.leaked_handles)
    yield f"Found {len(found.leaked_handles)} handles with no matching IPs (and {matched} handles with matches)."
    yield "Scanning for IPs with missing handle..."
    if problem_ips:
        yield from (f"  {handle} is in use in a block but doesn't exist." for handle in found.missing_handles)
    yield f"Found {len(found.missing_handles)} handles mentioned in blocks with no matching handle resource."
    yield "Scanning for invalid blocks..."
    yield from (f"  {block}: {wrong}" for block, wrong in found.invalid.items())
    yield f"Found {len(found.invalid)} invalid blocks."
    yield f"Check complete; found {found.problems} problems."


def _users(found: Audit, kind: str, every_ip: bool) -> Iterator[str]:
    if every_ip:
        for address, owners in found.in_use.items():
            yield from (f"  {address} belongs to {owner}" for owner in owners if owner.startswith(kind))


def _in_use_problems(found: Audit) -> Iterator[str]:
    for address, owners in found.in_use.items():
        if len(owners) > 1:
            yield f"  {address} has multiple owners."
        if address in found.outside:
            yield from (f"  {address} in use by {owner} is not in any active IP pool." for owner in owners)
        elif address in found.unallocated:
            yield from (
                f"  {address} in use by {owner} and in active IPAM pool but has no IPAM allocation." for owner in owners
            )


def _by_node(found: Audit) -> Iterator[str]:
    counts = Counter(entry.node for entry in found.entries)
    if not counts:
        return
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    yield from (f"  {node or '<none>'} has {count} allocations" for node, count in top[:TOP_NODES])
    yield f"Node with most allocations has {top[0][1]}; median is {median_high(counts.values())}"


def _attributes(entry: Entry) -> str:
    if entry.allocation.released_at is not None:
        return f"cooling down since {entry.allocation.released_at:%Y-%m-%dT%H:%M:%SZ}"
    extra = ",".join(f"{name}={entry.allocation.attrs[name]}" for name in sorted(entry.allocation.attrs))
    return f"Main:{entry.allocation.handle or '<none>'} Extra:{extra}"
