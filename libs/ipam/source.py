"""Where address management gets the objects it only reads: pools, reservations, settings, labels of nodes.

Reading them for every address would cost more than the assignment itself, so they may be a little old; what must not
be old is checked in the transaction that assigns (`Inputs.guards`): an address is never taken from a pool that was
disabled, or under settings that were changed, before the assignment. Reservations and labels may lag by `max_age_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Protocol, TypeVar

import msgspec

from libs.ipam import keys
from libs.ipam.config import IpamConfig, decode_config
from libs.ipam.errors import IpamError, Reason
from libs.ipam.pools import DEFAULT_BLOCK_SIZE, Labels, Pool, Reservations, Use
from libs.model import selector
from libs.model.pools import IPPool, IPReservation
from libs.store.api import KeyValue, Store


@dataclass(frozen=True, slots=True)
class Inputs:
    """`config_revision`: of the settings' key, 0 when absent, None when unknown (then not checked)."""

    config: IpamConfig = field(default_factory=IpamConfig)
    pools: tuple[Pool, ...] = ()
    reservations: Reservations = field(default_factory=Reservations)
    config_revision: int | None = None

    def guards(self, pool: Pool) -> dict[str, int]:
        """Conditions under which an address of this pool may be assigned."""
        found = {} if self.config_revision is None else {keys.CONFIG: self.config_revision}
        if pool.mod_revision:
            found[keys.resource("ippools", pool.name)] = pool.mod_revision
        return found


class Source(Protocol):
    async def inputs(self) -> Inputs: ...

    async def node_labels(self, node: str) -> Labels | None:
        """None: no such node."""
        ...

    def invalidate(self) -> None:
        """What was given last has changed in the datastore."""
        ...


class FixedSource:
    """Fed by its owner, who watches: set `current` and `labels` whenever they change."""

    def __init__(self, current: Inputs, labels: Mapping[str, Labels]) -> None:
        self.current = current
        self.labels = labels

    async def inputs(self) -> Inputs:
        return self.current

    async def node_labels(self, node: str) -> Labels | None:
        return self.labels.get(node)

    def invalidate(self) -> None:
        """The watch will bring it; until then transactions keep failing their guards."""


def pool_from_resource(resource: IPPool) -> Pool:
    """What matters here of an IPPool. Raises ValueError for one that no reader could use (CIDR, selector)."""
    spec, meta = resource.spec, resource.metadata
    cidr = ip_network(spec.cidr, strict=False)
    for text in (spec.node_selector, spec.namespace_selector):
        selector.parse(text)  # raises; an unreadable selector must not look like one that matches
    conditions = resource.status.conditions if resource.status else []
    refused = any(c.type == "Allocatable" and c.status == "False" for c in conditions)
    uses = frozenset(Use(use) for use in spec.allowed_uses if use in set(Use))
    return Pool(
        meta.name,
        cidr,
        spec.block_size or DEFAULT_BLOCK_SIZE[cidr.version],
        spec.disabled or bool(meta.deletion_timestamp) or refused,
        spec.node_selector,
        spec.namespace_selector,
        uses if spec.allowed_uses else frozenset({Use.WORKLOAD, Use.TUNNEL}),
        spec.assignment_mode == "Manual",
        int(meta.resource_version or 0),
    )


def reservations_from_resources(resources: Iterable[IPReservation]) -> Reservations:
    """CIDRs or bare addresses; what cannot be read is left out, as validation lets nothing such in."""
    found = []
    for resource in resources:
        for text in resource.spec.reserved_cidrs:
            with suppress(ValueError):
                found.append(ip_network(text, strict=False))
    return Reservations(found)


class StoreSource:
    """Reads from the datastore, at most once per `max_age_s` (0: for every request); concurrent readers share one
    reading.
    """

    def __init__(self, store: Store, monotonic: Callable[[], float], max_age_s: float = 1.0) -> None:
        self._store = store
        self._monotonic = monotonic
        self._max_age_s = max_age_s
        self._lock = asyncio.Lock()
        self._inputs: tuple[float, Inputs] | None = None
        self._labels: dict[str, tuple[float, Labels | None]] = {}

    def invalidate(self) -> None:
        self._inputs = None
        self._labels.clear()

    async def inputs(self) -> Inputs:
        async with self._lock:
            if self._inputs is None or self._monotonic() - self._inputs[0] >= self._max_age_s:
                self._inputs = (self._monotonic(), await read_inputs(self._store))
            return self._inputs[1]

    async def node_labels(self, node: str) -> Labels | None:
        async with self._lock:
            entry = self._labels.get(node)
            if entry is None or self._monotonic() - entry[0] >= self._max_age_s:
                started = self._monotonic()
                entry = (started, await read_node_labels(self._store, node))
                self._labels[node] = entry
            return entry[1]


async def read_inputs(store: Store) -> Inputs:
    """Undecodable pools and reservations are skipped, as other readers do; contradicting settings are refused."""
    config, pools, reservations = await asyncio.gather(
        store.get(keys.CONFIG),
        store.list(keys.resource("ippools")),
        store.list(keys.resource("ipreservations")),
    )
    settings = decode_config(config.value if config else None)
    settings.check()
    found = []
    for kv in pools.kvs:
        with suppress(ValueError):
            found.append(pool_from_resource(_decode(kv, IPPool)))
    reserved = []
    for kv in reservations.kvs:
        with suppress(ValueError):
            reserved.append(_decode(kv, IPReservation))
    return Inputs(settings, tuple(found), reservations_from_resources(reserved), config.mod_revision if config else 0)


async def read_node_labels(store: Store, node: str) -> Labels | None:
    kv = await store.get(keys.resource("nodes", node))
    if kv is None:
        return None
    try:
        return msgspec.json.decode(kv.value, type=_LabelledNode).metadata.labels or {}
    except msgspec.MsgspecError as error:
        raise IpamError(Reason.NODE_MISSING, f"node {node}: {error}") from error


class _Labels(msgspec.Struct):
    labels: dict[str, str] | None = None


class _LabelledNode(msgspec.Struct):
    """Only the labels: a node whose other fields this version cannot read still gets addresses."""

    metadata: _Labels


R = TypeVar("R", IPPool, IPReservation)


def _decode(kv: KeyValue, kind: type[R]) -> R:
    resource = msgspec.json.decode(kv.value, type=kind)
    resource.metadata.resource_version = str(kv.mod_revision)
    return resource
