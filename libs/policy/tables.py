"""What every node reads alike: pools, blocks, nodes, the labels of namespaces and service accounts, configuration."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

from libs import model
from libs.model.selector import NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX
from libs.policy import inputs
from libs.policy.changes import Encapsulation
from libs.policy.inputs import BlockInput, PassthroughInput, PoolInput
from libs.policy.output import Block, NodeInfo, Pool

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedTables:
    """Current values, and what changed since the last `take`. Tables are named as the fields of `Changes`."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.blocks: dict[str, Block] = {}
        self.node_infos: dict[str, NodeInfo] = {}
        self.namespaces: dict[str, dict[str, str]] = {}
        self.service_accounts: dict[tuple[str, str], dict[str, str]] = {}
        self.passthrough: dict[str, model.Resource] = {}
        self.encapsulation = Encapsulation()
        self._changes: dict[str, dict[Any, Any]] = {}
        self._told_encapsulation: Encapsulation | None = None

    def apply_pool(self, identity: Hashable, new: PoolInput | None) -> None:
        self._put("pools", self.pools, str(identity), None if new is None else new.pool)

    def apply_block(self, identity: Hashable, new: BlockInput | None) -> None:
        self._put("blocks", self.blocks, str(identity), None if new is None else new.block)

    def apply_passthrough(self, identity: Hashable, new: PassthroughInput | None) -> None:
        self._put("passthrough", self.passthrough, str(identity), None if new is None else new.resource)

    def apply_node(self, name: str, info: NodeInfo | None) -> None:
        self._put("node_infos", self.node_infos, name, info)

    def apply_profile_labels(self, profile: str, labels: dict[str, str] | None) -> None:
        """Some profiles stand for a namespace or a service account and carry its labels. None: the profile is gone."""
        namespace = inputs.namespace_of_profile(profile)
        if namespace is not None:
            carried = None if labels is None else inputs.carried_labels(labels, NAMESPACE_PREFIX)
            self._put("namespaces", self.namespaces, namespace, carried)
        account = inputs.service_account_of_profile(profile)
        if account is not None:
            carried = None if labels is None else inputs.carried_labels(labels, SERVICE_ACCOUNT_PREFIX)
            self._put("service_accounts", self.service_accounts, account, carried)

    def take(self) -> dict[str, Any]:
        """Fields of `Changes` that are not empty. The encapsulation is told once even if nothing asks for one."""
        changes: dict[str, Any] = self._changes
        self._changes = {}
        if "pools" in changes:
            self.encapsulation = encapsulation_of(self.pools)
        if self.encapsulation != self._told_encapsulation:
            changes["encapsulation"] = self._told_encapsulation = self.encapsulation
        return changes

    def _put(self, table: str, known: dict[K, V], key: K, value: V | None) -> None:
        if known.get(key) == value:
            return
        if value is None:
            del known[key]
        else:
            known[key] = value
        self._changes.setdefault(table, {})[key] = value


def encapsulation_of(pools: dict[str, Pool]) -> Encapsulation:
    return Encapsulation(
        ipip=any(pool.ipip_mode != "Never" for pool in pools.values()),
        vxlan=any(pool.vxlan_mode != "Never" and ":" not in pool.cidr for pool in pools.values()),
        vxlan_v6=any(pool.vxlan_mode != "Never" and ":" in pool.cidr for pool in pools.values()),
    )
