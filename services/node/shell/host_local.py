"""Addresses that the CNI plugin host-local gave to pods of this node become blocks' and handles' of Calico's IPAM.

host-local keeps a directory for each network: a file for each address, named by it, with the container's ID and the
interface in two lines; `last_reserved_ip.N`; and `lock`, which it holds with flock(2) while it works. A file goes once
its address is in the datastore, so that a run that was cut short is gone on with. A file of whose container no
workload endpoint of this node tells stays: its pod may be just coming, and an address must not be given twice.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from libs.ipam.client import IpamClient
from libs.ipam.errors import IpamError
from libs.ipam.requests import AssignIpRequest
from libs.ipam.wire import go_time_string
from libs.model import WorkloadEndpoint
from libs.resources.client import ResourceClient
from libs.store.api import Store

DIRECTORY = Path("/var/lib/cni/networks")
LOCK, LAST = "lock", "last_reserved_ip."
PATIENCE_S = 30.0

Address = IPv4Address | IPv6Address


class Busy(Exception):
    """host-local held its lock all the time."""


@dataclass(slots=True)
class Outcome:
    """In words, for people. left: what should have moved and did not."""

    moved: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Given:
    path: Path
    address: Address
    container: str


async def move(store: Store, node: str, network: str, *, directory: Path = DIRECTORY, dry_run: bool = False) -> Outcome:
    """network: the name in the network list. dry_run: `moved` tells what would move.

    Raises StoreError, ResourceError, Busy, OSError.
    """
    outcome = Outcome()
    place = directory / network
    if not place.is_dir():
        return outcome
    async with _locked(place, make=not dry_run):
        owners = await _owners(store, node)
        ipam = IpamClient(store)
        given = _given(place, outcome)
        for one in given:
            pod = owners.get((one.container, one.address))
            if pod is None:
                outcome.left.append(f"{one.address}: no workload endpoint of {node} tells of container {one.container}")
                continue
            attrs = {"namespace": pod[0], "node": node, "pod": pod[1], "timestamp": go_time_string(time.time_ns())}
            request = AssignIpRequest(
                address=one.address, handle=f"{network}.{one.container}", node=node, attrs=attrs, max_per_handle=1
            )
            try:
                if not dry_run:
                    await ipam.assign_ip(request)
                    one.path.unlink()
            except IpamError as error:
                outcome.left.append(f"{one.address} of pod {pod[0]}/{pod[1]}: {error}")
                continue
            outcome.moved.append(f"{one.address} of pod {pod[0]}/{pod[1]}")
        if not dry_run and not outcome.left:
            for path in place.glob(f"{LAST}*"):
                path.unlink(missing_ok=True)
    return outcome


def _given(place: Path, outcome: Outcome) -> list[Given]:
    found = []
    for path in sorted(place.iterdir()):
        if path.name == LOCK or path.name.startswith(LAST):
            continue
        try:
            lines = path.read_text().splitlines()
            found.append(Given(path, ip_address(path.name), lines[0].strip()))
        except (ValueError, IndexError):
            outcome.left.append(f"{path}: not a file of host-local: its name is no address, or it names no container")
    return found


async def _owners(store: Store, node: str) -> dict[tuple[str, Address], tuple[str, str]]:
    """(container, address) -> (namespace, pod), of this node's workload endpoints."""
    found: dict[tuple[str, Address], tuple[str, str]] = {}
    for one in (await ResourceClient(store).list("WorkloadEndpoint")).items:
        assert isinstance(one, WorkloadEndpoint)
        if one.spec.node == node:
            for net in one.spec.ip_networks:
                address = ip_network(net).network_address
                found[one.spec.container_id, address] = (one.metadata.namespace, one.spec.pod or one.metadata.name)
    return found


@asynccontextmanager
async def _locked(place: Path, *, make: bool) -> AsyncIterator[None]:
    """host-local's own lock. make: its file when there is none yet; else nothing is held then. Raises Busy."""
    if not make and not (place / LOCK).exists():
        yield
        return
    handle = os.open(place / LOCK, os.O_RDWR | (os.O_CREAT if make else 0), 0o644)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Busy(f"{place / LOCK} is held by another process since {PATIENCE_S:g} s") from None
                await asyncio.sleep(0.1)
        yield
    finally:
        os.close(handle)
