"""Addresses of Services of type LoadBalancer: whose are ours, what each asks for, and what there is to do. Pure.

    service, settings, pools, what its handle holds ──► plan() ──► release, take, draw

Rules: facts/kubernetes-conversion.md section 9.5. A service has at most one address of each IP version. A list of
exact addresses wins over pools, and is then all that the service gets; pools of one version leave the other to chance;
without either, addresses of manual pools are given back. The handle is made of the service's uid, so a service that is
deleted and created again under its name is another one, and a controller that starts again finds what it gave.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

import msgspec

from libs.ipam.block import Allocation
from libs.ipam.pools import Pool, Use, pool_of
from libs.ipam.wire import Address
from libs.kube.objects import Service
from services.kube_controllers.core.upkeep import AssignIPs

CLASS = "calico"
POOLS4, POOLS6 = "projectcalico.org/ipv4pools", "projectcalico.org/ipv6pools"
ADDRESSES = "projectcalico.org/loadBalancerIPs"
LOAD_BALANCER = "LoadBalancer"
_VERSIONS = {"IPv4": 4, "IPv6": 6}
_LONGEST_HANDLE = 253  # of a DNS subdomain


@dataclass(frozen=True, slots=True)
class Wish:
    """addresses: exactly these. pools: names or CIDRs by IP version; none for any. versions: in the service's order."""

    versions: tuple[int, ...] = ()
    addresses: tuple[Address, ...] = ()
    pools: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """In this order. take: exactly this address. prefer: an address that the service shows already, and that nobody
    holds for it: taken when it is free, else any. draw: IP versions of which any address will do.
    """

    release: tuple[Allocation, ...] = ()
    take: tuple[Address, ...] = ()
    prefer: tuple[Address, ...] = ()
    draw: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.release or self.take or self.draw)


def handle_of(name: str, namespace: str, uid: str) -> str:
    """`lb-` and the SHA-256 of `<name>-<namespace>-<uid>` in lower case, in URL-safe base64 without `-`, `_`."""
    text = f"{name}-{namespace}-{uid}".lower()
    encoded = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return ("lb-" + re.sub("[-_.]", "", encoded))[:_LONGEST_HANDLE]


def handle(service: Service) -> str:
    return handle_of(service.metadata.name, service.metadata.namespace, service.metadata.uid)


def managed(service: Service, assign: AssignIPs | None) -> tuple[bool, str]:
    """Are its addresses ours to give? And what is odd about it, or ""."""
    spec = service.spec
    if assign is None or spec.type != LOAD_BALANCER:
        return False, ""
    if assign == "AllServices":
        return spec.load_balancer_class in (None, CLASS), ""
    if spec.load_balancer_class == CLASS:
        return True, ""
    asks = any(service.metadata.annotations.get(name) for name in (POOLS4, POOLS6, ADDRESSES))
    if not asks and not spec.load_balancer_ip:
        return False, ""
    if spec.load_balancer_class is not None:
        kind = spec.load_balancer_class
        return False, f"asks Calico for an address, and its loadBalancerClass {kind} is another's" if asks else ""
    return True, ""


def wish_of(service: Service) -> Wish:
    """Raises ValueError for what cannot be understood, with the name of the annotation or field."""
    annotations, spec = service.metadata.annotations, service.spec
    pools: dict[int, tuple[str, ...]] = {}
    for version, name in ((4, POOLS4), (6, POOLS6)):
        if annotations.get(name):
            pools[version] = tuple(_texts(name, annotations[name]))
            for text in pools[version]:
                if "/" in text and _network_version(name, text) != version:
                    raise ValueError(f"annotation {name}: {text} is no IPv{version} network")
    texts: Sequence[str] = ()
    where = f"annotation {ADDRESSES}"
    if annotations.get(ADDRESSES):
        texts = _texts(ADDRESSES, annotations[ADDRESSES])
    elif spec.load_balancer_ip:
        where, texts = "spec.loadBalancerIP", (spec.load_balancer_ip,)
    addresses: list[Address] = []
    for text in texts:
        try:
            address = ip_address(text)
        except ValueError:
            raise ValueError(f"{where}: {text!r} is no address") from None
        if isinstance(address, IPv6Address) and address.scope_id is not None:  # no block holds such a one
            raise ValueError(f"{where}: {text!r} has a zone; give the address alone")
        addresses.append(address)
    if len({address.version for address in addresses}) < len(addresses):
        raise ValueError(f"{where}: at most one IPv4 and one IPv6 address, not {', '.join(texts)}")
    return Wish(versions(service), tuple(addresses), pools)


def versions(service: Service) -> tuple[int, ...]:
    """In the service's order."""
    return tuple(_VERSIONS[family] for family in service.spec.ip_families if family in _VERSIONS) or (4,)


def plan(
    wish: Wish, held: Iterable[Allocation], shown: Iterable[str], pools: Sequence[Pool], *, all_known: bool = True
) -> Plan:
    """held: by the service's handle. shown: addresses in its status. all_known: False when there are pools that nobody
    can read: an address outside the others may be of the pool that is wished for, and stays.
    """
    keep: dict[int, Allocation] = {}
    release = []
    for allocation in sorted(held, key=lambda one: (str(one.address) not in set(shown), int(one.address))):
        version = allocation.address.version
        doubt = not all_known and not wish.addresses and pool_of(pools, allocation.address) is None
        if version in keep or not (doubt or _fits(allocation.address, wish, pools)):
            release.append(allocation)
        else:
            keep[version] = allocation
    if wish.addresses:
        return Plan(tuple(release), tuple(a for a in wish.addresses if a.version not in keep))
    missing = tuple(version for version in wish.versions if version not in keep)
    prefer: dict[int, Address] = {}  # by version
    for text in shown:
        try:
            address = ip_address(text)
        except ValueError:
            continue
        pool = pool_of(pools, address)
        serves = pool is not None and not pool.disabled and Use.LOAD_BALANCER in pool.uses
        if serves and address.version in missing and _fits(address, wish, pools):
            prefer.setdefault(address.version, address)
    return Plan(tuple(release), prefer=tuple(prefer.values()), draw=missing)


def in_order(addresses: Iterable[Address], wish: Wish) -> list[str]:
    """For the status: by the service's families."""
    order = {version: number for number, version in enumerate(wish.versions)}
    return [str(a) for a in sorted(addresses, key=lambda a: (order.get(a.version, len(order)), a.version, int(a)))]


def _fits(address: Address, wish: Wish, pools: Sequence[Pool]) -> bool:
    if wish.addresses:
        return address in wish.addresses
    if address.version not in wish.versions:
        return False
    pool = pool_of(pools, address)
    if wanted := wish.pools.get(address.version):
        return any(_is(address, pool, text) for text in wanted)
    return pool is None or not pool.manual


def _is(address: Address, pool: Pool | None, wanted: str) -> bool:
    if "/" in wanted:
        return address in ip_network(wanted, strict=False)
    return pool is not None and pool.name == wanted


def _texts(name: str, text: str) -> list[str]:
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError as error:
        raise ValueError(f'annotation {name}: expected a JSON list such as ["a"], not {text!r}: {error}') from None


def _network_version(name: str, text: str) -> int:
    try:
        return ip_network(text, strict=False).version
    except ValueError:
        raise ValueError(f"annotation {name}: {text!r} is neither a pool's name nor a network") from None
