"""The identities of a cluster: the common name of a certificate is the user that etcd and NATS see.

    calico-typha, calico-apiserver, calico-kube-controllers      one for each component, shared by its replicas
    calico-node:NODE                                             one for each node: felix, bgp and the node service
    calicoctl-reader, calicoctl-policy-editor, calicoctl         people
    calico-prometheus                                            reads metrics, and is no user of etcd or NATS
    root                                                         etcd's administrator: `calicoctl datastore auth`
    calico-etcd, calico-nats                                     the servers themselves, and links between them

A node's name holds no colon (RFC 1123), so no node can be called in a way that makes it another identity.
"""

from __future__ import annotations

import re

TYPHA = "calico-typha"
APISERVER = "calico-apiserver"
KUBE_CONTROLLERS = "calico-kube-controllers"
NODE = "calico-node"
READER = "calicoctl-reader"
POLICY_EDITOR = "calicoctl-policy-editor"
OPERATOR = "calicoctl"
ROOT = "root"
PROMETHEUS = "calico-prometheus"
ETCD = "calico-etcd"
NATS = "calico-nats"

COMPONENTS = (TYPHA, APISERVER, KUBE_CONTROLLERS)
PEOPLE = (READER, POLICY_EDITOR, OPERATOR)
SERVERS = (ETCD, NATS)
IN_PODS = (*COMPONENTS, *SERVERS)
"""Those whose files are Secrets (k8s/*.yaml). A node's files lie on the node, people's with people."""

_COMMON_NAME_LIMIT = 64  # RFC 5280 appendix A.1, ub-common-name
_NODE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?\Z")


class IdentityError(ValueError):
    """A name that cannot be an identity; the text says why."""


def serves_as(identity: str) -> str:
    """The DNS name in a component's or a node's certificate, by which readers of its metrics know it. Not the node's
    own: who calls etcd or NATS by a host's name must not be answered by that host's agent.
    """
    return identity.partition(":")[0]


def node(name: str) -> str:
    """Identity of a node. Raises IdentityError for what is no RFC 1123 name, or too long for a certificate."""
    identity = f"{NODE}:{name}"
    if not _NODE.match(name):
        raise IdentityError(f"{name!r} is no node name: lower case letters, digits, '-' and '.' (RFC 1123)")
    if len(identity) > _COMMON_NAME_LIMIT:
        longest = _COMMON_NAME_LIMIT - len(NODE) - 1
        raise IdentityError(
            f"node name {name!r} is longer than {longest} characters, which a certificate's CN can hold"
        )
    return identity
