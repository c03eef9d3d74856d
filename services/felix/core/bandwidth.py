"""How many bits a second a workload may receive and send, as token buckets in the kernel's traffic control.

    to the workload    cali1: root tbf 1:
    from the workload  cali1: ingress qdisc, u32 filter -> bwcali012345678 (ifb): root tbf 1:

`plan` compares what is wanted with what was seen and says what to write, in an order in which no packet is lost: the
ifb and its bucket come before the redirect to them, and go after it. It never touches what another program made: a
root qdisc other than ours, a clsact qdisc, other filters. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from libs.model.qos import DEFAULT_BURST
from libs.netlink.links import Link, link_change, link_removal, new_ifb, no_link_local
from libs.netlink.qdisc import (
    INGRESS,
    ROOT,
    U32_MAX,
    Filter,
    Qdisc,
    Request,
    TokenBucket,
    delete_bucket,
    delete_filter,
    delete_ingress,
    new_bucket,
    new_ingress,
    new_redirect,
)
from libs.policy.output import Qos, Workload, WorkloadKey

HANDLE = 0x10000  # 1:, as Calico's, so that its buckets are taken over
PRIORITY = 1
LATENCY_MS = 25  # what may wait for tokens, beside a burst, at the full rate
QUEUED_MAX = 4 << 20  # bytes of a burst that may wait; Calico's default burst would let half a GiB of memory wait
HEADER = 14  # bytes of Ethernet, which a bucket counts and an MTU does not
_IFB_PREFIX, _IFB_LENGTH = "bwcali", 15
_IFB_NAME = re.compile(r"bwcali[0-9a-f]{9}")


@dataclass(frozen=True, slots=True)
class Limit:
    """rate and peak in bit/s, burst in bits, minburst in bytes: the units of qosControls. 0: not given."""

    rate: int
    burst: int = 0
    peak: int = 0
    minburst: int = 0

    def bucket(self, mtu_bytes: int) -> TokenBucket:
        """A bucket holds at least one packet of the interface, or none would pass. A peak that is not above the rate
        is ignored, as Calico ignores it. What exceeds 32 bits is cut there.
        """
        packet = mtu_bytes + HEADER
        rate, peak = max(self.rate // 8, 1), self.peak // 8
        burst = min(max((self.burst or DEFAULT_BURST) // 8, packet), U32_MAX)
        limit = min(rate * LATENCY_MS // 1000 + min(burst, QUEUED_MAX), U32_MAX)
        if peak <= rate:
            return TokenBucket(rate, burst, limit)
        return TokenBucket(rate, burst, limit, peak, min(max(self.minburst, packet), U32_MAX))


@dataclass(frozen=True, slots=True)
class Limits:
    """ingress: of what goes to the workload."""

    ingress: Limit | None = None
    egress: Limit | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """links by name, ours and others'; qdiscs and filters by index of the device. Filters are listed for those devices
    alone that `asked_for_filters` names.
    """

    links: Mapping[str, Link]
    qdiscs: Mapping[int, tuple[Qdisc, ...]]
    filters: Mapping[int, tuple[Filter, ...]]


@dataclass(slots=True)
class Todo:
    """What to write for one interface, in order. problem: why it cannot be all that is wanted."""

    requests: list[tuple[str, Request]] = field(default_factory=list)  # (what it is, request)
    problem: str = ""


def limits(workloads: Mapping[WorkloadKey, Workload]) -> dict[str, Limits]:
    """By interface, of those that have any. Of two endpoints with one interface the lowest id has it."""
    found: dict[str, Limits] = {}
    for key in sorted(workloads, reverse=True):
        workload = workloads[key]
        found.pop(workload.name, None)
        if (wanted := _limits(workload.qos or Qos())) != Limits():
            found[workload.name] = wanted
    return found


def _limits(qos: Qos) -> Limits:
    into = Limit(qos.ingress_bandwidth, qos.ingress_burst, qos.ingress_peakrate, qos.ingress_minburst)
    out = Limit(qos.egress_bandwidth, qos.egress_burst, qos.egress_peakrate, qos.egress_minburst)
    return Limits(into if into.rate else None, out if out.rate else None)


def ifb_name(interface: str) -> str:
    """`bwcali` and nine hexadecimal digits of the SHA-512 of the interface's name, as Calico's."""
    return (_IFB_PREFIX + hashlib.sha512(interface.encode()).hexdigest())[:_IFB_LENGTH]


def is_ours(link: Link) -> bool:
    return link.kind == "ifb" and _IFB_NAME.fullmatch(link.name) is not None


def asked_for_filters(
    links: Mapping[str, Link], qdiscs: Mapping[int, tuple[Qdisc, ...]], mine: Iterable[str]
) -> list[int]:
    """Indexes of the devices in `mine` that have an ingress qdisc."""
    indexes = [links[name].index for name in mine if name in links]
    return [index for index in indexes if any(one.kind == "ingress" for one in qdiscs.get(index, ()))]


def plan(wanted: Mapping[str, Limits], seen: Seen, mine: Iterable[str]) -> dict[str, Todo]:
    """What is to be written, by interface; empty when all is as wanted. An ifb is made alone, because its index must
    be seen before the rest can be said: plan again after writing.

    mine: names of workloads' interfaces, the wanted ones among them. What is not there yet is left out.
    """
    found: dict[str, Todo] = {}
    ours = {link.index for link in seen.links.values() if is_ours(link)}
    needed: set[str] = set()
    for name in mine:
        link = seen.links.get(name)
        if link is None:
            continue
        want = wanted.get(name, Limits())
        todo = Todo()
        _plan_root(todo, link, want.ingress.bucket(link.mtu_bytes) if want.ingress is not None else None, seen)
        if want.egress is not None:
            needed.add(ifb_name(name))
            _plan_redirect(todo, link, want.egress, seen, ours)
        else:
            _drop_redirect(todo, link, seen, ours)
        if todo.requests or todo.problem:
            found[name] = todo
    for name, link in seen.links.items():
        if is_ours(link) and name not in needed:
            found[name] = Todo([(f"ifb {name} goes", link_removal(link.index))])
    return found


def _plan_root(todo: Todo, link: Link, bucket: TokenBucket | None, seen: Seen) -> None:
    root = _root(link, seen)
    ours = root if root is not None and (root.kind, root.handle) == ("tbf", HANDLE) else None
    if bucket is None:
        if ours is not None:
            todo.requests.append((f"limit on {link.name} goes", delete_bucket(link.index, HANDLE)))
        return
    if root is not None and ours is None:
        todo.problem = (
            todo.problem or f"{link.name} has a root qdisc of another program ({root.kind} {root.handle >> 16:x}:)"
        )
    elif ours is None or ours.bucket is None or not ours.bucket.is_of(bucket):
        request = new_bucket(link.index, bucket, HANDLE, change=ours is not None)
        todo.requests.append((f"limit on {link.name}", request))


def _plan_redirect(todo: Todo, link: Link, want: Limit, seen: Seen, ours: set[int]) -> None:
    name = ifb_name(link.name)
    ifb = seen.links.get(name)
    kind = next((one.kind for one in seen.qdiscs.get(link.index, ()) if one.parent == INGRESS), "")
    if kind not in ("", "ingress"):
        todo.problem = todo.problem or f"{link.name} has a {kind} qdisc of another program"
        return
    if ifb is None:
        todo.requests.append((f"ifb {name}", new_ifb(name, link.mtu_bytes)))
        return
    if ifb.kind != "ifb":
        todo.problem = todo.problem or f"{name} is of another program ({ifb.kind or 'physical'})"
        return
    if not ifb.up:
        todo.requests.append((f"addresses of ifb {name}", no_link_local(ifb.index)))
    if not ifb.up or ifb.mtu_bytes != link.mtu_bytes:
        todo.requests.append((f"ifb {name}", link_change(ifb.index, up=True, mtu_bytes=link.mtu_bytes)))
    _plan_root(todo, ifb, want.bucket(link.mtu_bytes), seen)
    if not kind:
        todo.requests.append((f"ingress qdisc on {link.name}", new_ingress(link.index)))
    found = _redirects(link, seen, ours)
    right = [one for one in found if one.redirect == ifb.index][:1]
    _remove(todo, link, seen, [one for one in found if one not in right])
    if not right:
        todo.requests.append((f"redirect on {link.name}", new_redirect(link.index, ifb.index, PRIORITY)))


def _drop_redirect(todo: Todo, link: Link, seen: Seen, ours: set[int]) -> None:
    """With the ingress qdisc, when nobody else has a filter in it: an empty one may be another program's."""
    drop = _redirects(link, seen, ours)
    if not drop:
        return
    _remove(todo, link, seen, drop)
    if not _others(link, seen, drop):
        todo.requests.append((f"ingress qdisc on {link.name} goes", delete_ingress(link.index)))


def _remove(todo: Todo, link: Link, seen: Seen, drop: list[Filter]) -> None:
    """With their classifier, which would stay when empty, unless another filter is in it."""
    shared = {(one.priority, one.protocol) for one in _others(link, seen, drop)}
    for one in drop:
        place = (one.priority, one.protocol)
        request = delete_filter(one if place in shared else replace(one, handle=0))
        todo.requests.append((f"redirect on {link.name} goes", request))


def _others(link: Link, seen: Seen, drop: list[Filter]) -> list[Filter]:
    return [one for one in seen.filters.get(link.index, ()) if _acts(one) and one not in drop]


def _root(link: Link, seen: Seen) -> Qdisc | None:
    """What somebody put there; the kernel's default has no handle."""
    return next((one for one in seen.qdiscs.get(link.index, ()) if one.parent == ROOT and one.handle), None)


def _redirects(link: Link, seen: Seen, ours: set[int]) -> list[Filter]:
    """To an ifb of ours. One whose device has gone drops everything; at our place it is taken for ours."""
    return [
        one
        for one in seen.filters.get(link.index, ())
        if one.redirect in ours or (one.redirect == 0 and one.priority == PRIORITY)
    ]


def _acts(one: Filter) -> bool:
    """Not a line about a classifier or its table, which the kernel lists as well."""
    return one.handle & 0xFFF != 0 if one.kind == "u32" else one.handle != 0
