"""Configuration of nats-server: mutual TLS, a user for each identity, and what each may publish and read.

`verify_and_map` makes the certificate's subject the user (`CN=calico-node:node1`); nobody logs in otherwise. What is
not listed is refused. A node publishes only below its own name and reads its own commits, the contents that all nodes
share, and its own inboxes; answers to what it was asked go out by `allow_responses`, so it can write into no other
inbox. Inboxes carry the service's name (`_INBOX.felix-node1.>`): a node may be called `typha`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.bus import subjects
from libs.bus.tokens import encode_token
from libs.trust import identities

_NODE_SERVICES = ("felix", "bgp", "node")
_SHARED_FAMILIES = ("policy", "ipset", "route", "config")


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects, wildcards included. responds: may answer what it was asked, once for each request."""

    identity: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responds: bool = False


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Directory of calico-nats's files (`authority.Authority.issue`), as the server sees it."""

    directory: Path

    def block(self, ca: str, pair: str) -> list[str]:
        files = {"cert_file": f"{pair}.crt", "key_file": f"{pair}.key", "ca_file": f"{ca}.crt"}
        return [f"  {key}: {json.dumps(str(self.directory / name))}" for key, name in files.items()]


def node(name: str) -> Permissions:
    token = encode_token(name)
    own = tuple(f"_INBOX.{encode_token(f'{service}-{name}')}.>" for service in _NODE_SERVICES)
    publish = (
        f"calico.felix.{token}.>",
        f"calico.bgp.{token}.>",
        f"calico.flow.{token}",
        subjects.any_snapshot(name),
        f"calico.typha.*.snapshot.{token}",
        subjects.TYPHA_CONCERNS,
        subjects.TYPHA_MARK,
        *own,
    )
    subscribe = (
        f"calico.typha.*.node.{token}",
        f"calico.typha.*.bgp.{token}",
        f"calico.typha.*.local.{token}",
        *(f"calico.typha.*.{family}.>" for family in _SHARED_FAMILIES),
        subjects.ALL_BEATS,
        # CNI ADD that waits for the pod's peers hears when other nodes have it (docs/reference/cni.md).
        *(subjects.all_applied(role) for role in subjects.Role),
        f"calico.felix.{token}.rpc.*",
        f"calico.bgp.{token}.rpc.*",
        *own,
    )
    return Permissions(identities.node(name), publish, subscribe, responds=True)


def typha() -> Permissions:
    asked = (
        f"{subjects.TYPHA_SNAPSHOT}.*",
        "calico.typha.*.snapshot.*",
        subjects.ALL_BEATS,  # which other typhas there are
        *(subjects.all_applied(role) for role in subjects.Role),
        subjects.TYPHA_CONCERNS,
        subjects.TYPHA_MARK,
    )
    return Permissions(identities.TYPHA, ("calico.typha.>", "_INBOX.>"), (*asked, "_INBOX.typha.>"))


def apiserver() -> Permissions:
    inbox = "_INBOX.apiserver.>"
    return Permissions(identities.APISERVER, ("calico.apiserver.>", inbox), (inbox,))


def reader() -> Permissions:
    """The tap: everything is read, nobody is asked."""
    inbox = "_INBOX.calicoctl.>"
    return Permissions(identities.READER, (inbox,), ("calico.>", inbox))


def operator(identity: str) -> Permissions:
    """Whoever waits for revisions and asks nodes to explain themselves."""
    inbox = "_INBOX.calicoctl.>"
    asks = (subjects.TYPHA_CONCERNS, subjects.TYPHA_MARK, "calico.felix.*.rpc.*", "calico.bgp.*.rpc.*")
    return Permissions(identity, (*asks, inbox), ("calico.>", inbox))


def cluster(nodes: Iterable[str]) -> tuple[Permissions, ...]:
    """Of every identity. Raises IdentityError for a node's name that cannot be one."""
    people = (reader(), operator(identities.POLICY_EDITOR), operator(identities.OPERATOR))
    return (typha(), apiserver(), *people, *(node(name) for name in sorted(set(nodes))))


def users(all_permissions: Sequence[Permissions]) -> str:
    """The block `authorization`, to be included by a server's file; every server of a cluster has the same one."""
    lines = ["authorization {", "  timeout: 5", "  users: ["]
    for one in all_permissions:
        responds = ', allow_responses: {max: 1, expires: "2m"}' if one.responds else ""
        lines += [
            f'    {{user: "CN={one.identity}", permissions: {{',
            f"      publish: {{allow: {json.dumps(one.publish)}}},",
            f"      subscribe: {{allow: {json.dumps(one.subscribe)}}}{responds}",
            "    }},",
        ]
    return "\n".join([*lines, "  ]", "}"]) + "\n"


def server(
    files: ServerFiles,
    *,
    name: str = "",
    listen: str = "",
    routes: Sequence[str] = (),
    cluster_listen: str = "0.0.0.0:6222",
) -> str:
    """TLS of one server. listen: `host:port` for clients, "" where the command line says it. routes: `host:port` of
    all servers of the cluster, this one included; they know each other by an authority of their own, as a route is
    above all permissions.
    """
    lines = [f"server_name: {json.dumps(name)}"] if name else []
    lines += [f"listen: {json.dumps(listen)}"] if listen else []
    lines += ["tls {", *files.block("ca", "tls"), "  verify_and_map: true", "  timeout: 5", "}"]
    if routes:
        peers = ", ".join(json.dumps(f"nats-route://{route}") for route in routes)
        mutual = [f"  {line}" for line in (*files.block("peer-ca", "peer"), "  verify: true", "  timeout: 5")]
        lines += ["cluster {", '  name: "calico"', f"  listen: {json.dumps(cluster_listen)}", "  tls {", *mutual, "  }",
                  f"  routes: [{peers}]", "}"]  # fmt: skip
    return "\n".join(lines) + "\n"
