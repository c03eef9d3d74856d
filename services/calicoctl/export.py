"""`calicoctl datastore migrate export`: all of an etcd as one text that Calico's import and ours read.

Three parts with `===` between them: the resources as YAML lists, one for each kind; ClusterInformation as JSON; IPAM's
keys and values as JSON. Workload endpoints and profiles are left out, since Kubernetes' datastore makes them of its own
objects. Nodes take the name that Kubernetes has for them, and what refers to nodes follows. `everything` is for another
etcd: all kinds, and no names changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.ipam import keys
from libs.model.cluster import ClusterInformation
from libs.model.yamltext import dump_yaml
from libs.resources import codec
from libs.resources.client import ResourceClient
from services.calicoctl.actions import KUBERNETES_POLICY_PREFIX
from services.calicoctl.output import Answer

EXPORTED = (
    "IPPool", "BGPPeer", "Tier", "GlobalNetworkPolicy", "StagedGlobalNetworkPolicy", "GlobalNetworkSet",
    "HostEndpoint", "KubeControllersConfiguration", "NetworkPolicy", "StagedNetworkPolicy",
    "StagedKubernetesNetworkPolicy", "NetworkSet", "Node", "BGPConfiguration", "FelixConfiguration", "IPReservation",
    "BGPFilter",
)  # fmt: skip
"""In the order of the file: what refers to others stands behind them, where Calico has it so."""
ONLY_FOR_ETCD = ("Profile", "WorkloadEndpoint", "CalicoNodeStatus", "IPAMConfiguration", "BlockAffinity")
SEPARATOR = "===\n"
TUNNEL_HANDLES = ("ipip-tunnel-addr-", "vxlan-tunnel-addr-", "wireguard-tunnel-addr-")
_OF_ONE_DATASTORE = ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")

Json = dict[str, Any]


class ExportProblem(Exception):
    """The datastore cannot be exported as it is."""


@dataclass(slots=True)
class Export:
    """notes: what is worth knowing and no fault."""

    text: str
    notes: list[str] = field(default_factory=list)


async def export(client: ResourceClient, *, everything: bool = False) -> Export:
    """Raises ExportProblem when the datastore is not locked: it would change under our hands."""
    cluster = await client.get("ClusterInformation", "default")
    assert isinstance(cluster, ClusterInformation)
    if cluster.spec.datastore_ready is not False:
        raise ExportProblem(
            "datastore is not locked. Run the `calicoctl datastore migrate lock` command in order to begin migration"
        )
    made = Export("")
    lists = {kind: await client.list(kind) for kind in (*EXPORTED, *(ONLY_FOR_ETCD if everything else ()))}
    nodes = [] if everything else [codec.to_json(item) for item in lists["Node"].items]
    names = dict(_node_names(nodes, made))
    parts = []
    for kind, listed in lists.items():
        items = [_clean(kind, codec.to_json(item), names) for item in listed.items if _wanted(kind, item.metadata.name)]
        value = Answer(kind, items, listed.revision).value
        parts.append(dump_yaml(value) + "---\n")
    ipam = await _ipam(client, names)
    made.text = SEPARATOR.join(
        ["".join(parts), json.dumps(codec.to_json(cluster), indent=2) + "\n", json.dumps(ipam, indent=2) + "\n"]
    )
    return made


def _wanted(kind: str, name: str) -> bool:
    if kind == "NetworkPolicy":  # made of Kubernetes' own policies, and made again where they are
        return not name.startswith(KUBERNETES_POLICY_PREFIX)
    return name != "projectcalico-default-allow"


def _node_names(nodes: list[Json], made: Export) -> Iterator[tuple[str, str]]:
    for node in nodes:
        name = str(node["metadata"]["name"])
        refs = [ref for ref in node.get("spec", {}).get("orchRefs", []) if ref.get("orchestrator") == "k8s"]
        if refs and refs[-1].get("nodeName"):
            yield name, str(refs[-1]["nodeName"])
        else:
            made.notes.append(
                f"node {name} has no k8s orchestrator reference: it keeps its name, and is no node for Kubernetes"
            )


def _clean(kind: str, value: Json, names: Mapping[str, str]) -> Json:
    metadata = {name: field for name, field in value["metadata"].items() if name not in _OF_ONE_DATASTORE}
    name = str(metadata["name"])
    if kind == "Node":
        metadata["name"] = names.get(name, name)
    elif kind in ("FelixConfiguration", "BGPConfiguration") and name.startswith("node."):
        node = name.removeprefix("node.")
        metadata["name"] = f"node.{names.get(node, node)}"
    return {**value, "metadata": metadata}


# --- IPAM ------------------------------------------------------------------------------------------------------------


async def _ipam(client: ResourceClient, names: Mapping[str, str]) -> Json:
    """Calico's form: {"block_affinities": [{"Key", "Value", "TTL"}], "blocks", "handles", "config"}; empty ones left
    out.
    """
    found: dict[str, list[Json]] = {"block_affinities": [], "blocks": [], "handles": []}
    config: Json | None = None
    for kv in (await client.store.list(keys.PREFIX)).kvs:
        value = _decoded(kv.key, kv.value)
        if kv.key == keys.CONFIG:
            config = _pair(kv.key, value)
        elif kv.key.startswith(keys.HANDLES):
            handle = _renamed_handle(kv.key.removeprefix(keys.HANDLES), names)
            found["handles"].append(_pair(keys.HANDLES + handle, value))
        elif keys.parse_affinity(kv.key) is not None:
            found["block_affinities"].append(_pair(_renamed_host(kv.key, names), value))
        elif keys.cidr_of(kv.key) is not None:
            found["blocks"].append(_pair(kv.key, _renamed_block(value, names)))
    shown: Json = {name: pairs for name, pairs in found.items() if pairs}
    return shown if config is None else {**shown, "config": config}


def _pair(key: str, value: Json) -> Json:
    return {"Key": key, "Value": value, "TTL": 0}


def _decoded(key: str, value: bytes) -> Json:
    if not value:
        return {"state": "confirmed", "deleted": False}  # the oldest clients' confirmed affinity
    try:
        found = json.loads(value)
    except ValueError as error:
        raise ExportProblem(f"{key}: what is stored is damaged: {error}; see `calicoctl ipam check`") from error
    if not isinstance(found, dict):
        raise ExportProblem(f"{key}: what is stored is damaged: not an object; see `calicoctl ipam check`")
    return found


def _renamed_handle(handle: str, names: Mapping[str, str]) -> str:
    for prefix in TUNNEL_HANDLES:
        if handle.startswith(prefix) and (name := names.get(handle.removeprefix(prefix))):
            return prefix + name
    return handle


def _renamed_host(key: str, names: Mapping[str, str]) -> str:
    if not key.startswith(keys.HOSTS):
        return key
    host, slash, rest = key.removeprefix(keys.HOSTS).partition("/")
    return keys.HOSTS + names.get(host, host) + slash + rest


def _renamed_block(value: Json, names: Mapping[str, str]) -> Json:
    attributes = []
    for one in value.get("attributes") or []:
        changed = dict(one)
        secondary = changed.get("secondary")
        if isinstance(secondary, dict) and secondary.get("node") in names:
            changed["secondary"] = {**secondary, "node": names[secondary["node"]]}
        if isinstance(primary := changed.get("handle_id"), str):
            changed["handle_id"] = _renamed_handle(primary, names)
        attributes.append(changed)
    affinity = str(value.get("affinity") or "")
    kind, _, owner = affinity.partition(":")
    renamed = {"affinity": f"host:{names[owner]}"} if kind == "host" and owner in names else {}
    return {**value, **renamed, **({"attributes": attributes} if "attributes" in value else {})}
