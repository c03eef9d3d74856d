"""Traffic control (linux/pkt_sched.h, linux/pkt_cls.h): token buckets, and the redirect that lets them meet what a
device receives.

A queueing discipline (qdisc) holds what a device sends. What it *receives* is met by an `ingress` qdisc, whose filters
may redirect it to an ifb device; that one sends it back up, and a token bucket there limits it.

    tc qdisc add dev cali1 handle 1: root tbf rate … burst … limit … [peakrate … minburst …]
    tc qdisc add dev cali1 ingress
    tc filter add dev cali1 ingress protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev bw1

Requests are values for NetlinkSocket.batch; what is read comes as `Qdisc` and `Filter`. Calls are synchronous.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TypeAlias

from libs.netlink.codec import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    ObjectNotFound,
    attr,
    attrs,
    cstring,
    nest,
    text,
    u32,
)
from libs.netlink.socket import NetlinkSocket

Request: TypeAlias = tuple[int, int, bytes]

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
ROOT = 0xFFFFFFFF  # TC_H_ROOT
INGRESS = 0xFFFFFFF1  # TC_H_INGRESS, TC_H_CLSACT: where an ingress or clsact qdisc hangs
INGRESS_HANDLE = 0xFFFF0000
INGRESS_FILTERS = 0xFFFFFFF2  # ffff:fff2, TC_H_MIN_INGRESS below that, as `tc filter … ingress`
U32_MAX = 0xFFFFFFFF
TICK_NS = 64  # PSCHED_SHIFT; the second number of /proc/net/psched

_TCMSG = struct.Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info
_KIND, _OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64, _TBF_PRATE64, _TBF_BURST, _TBF_PBURST = 1, 4, 5, 6, 7
_RATESPEC = struct.Struct("=BBHhHI")  # struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate
_TBF_TAIL = struct.Struct("=III")  # rest of struct tc_tbf_qopt, after rate and peakrate: limit, buffer, mtu
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel then asks for no table of rates
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
# struct tc_u32_sel with one key: flags, offshift, nkeys, offmask, off, offoff, hoff, hmask; mask, value, off, offmask
_U32_ANY = struct.pack("=BBBxHHhhI IIii", 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)  # TC_U32_TERMINAL
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_MIRRED = struct.Struct("=IIiiiiI")  # struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
_ACT_STOLEN, _EGRESS_REDIR = 4, 1
_ETH_P_ALL = 3


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Bytes, and bytes a second. limit: of what waits for tokens. peak_rate 0: a burst goes as fast as the link."""

    rate: int
    burst: int
    limit: int
    peak_rate: int = 0
    peak_burst: int = 0


@dataclass(frozen=True, slots=True)
class BucketState:
    """A token bucket as the kernel tells it: the bursts as times, in ticks of 64 ns, of which only the low 32 bits
    come back.
    """

    rate: int
    limit: int
    ticks: int
    peak_rate: int = 0
    peak_ticks: int = 0

    def is_of(self, bucket: TokenBucket) -> bool:
        """Whether `bucket` looks like this when read back. The kernel's arithmetic loses a tick or two, of long times a
        2^31st part.
        """
        return (
            (self.rate, self.limit, self.peak_rate) == (bucket.rate, bucket.limit, bucket.peak_rate)
            and _close(self.ticks, bucket.burst, bucket.rate)
            and (not bucket.peak_rate or _close(self.peak_ticks, bucket.peak_burst, bucket.peak_rate))
        )


@dataclass(frozen=True, slots=True)
class Qdisc:
    """bucket: of a tbf."""

    index: int  # of the device
    handle: int
    parent: int
    kind: str
    bucket: BucketState | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """redirect: index of the device where a mirred action sends packets, 0 when that device has gone; None for filters
    that do something else.
    """

    index: int  # of the device
    parent: int
    handle: int
    priority: int
    protocol: int  # as in an Ethernet header
    kind: str
    redirect: int | None = None


def ticks(size: int, rate: int) -> int:
    """The time that `size` bytes take at `rate` bytes a second."""
    return size * 1_000_000_000 // rate // TICK_NS


def _close(found: int, size: int, rate: int) -> bool:
    wanted = ticks(size, rate)
    apart = (found - wanted) & U32_MAX
    return min(apart, (1 << 32) - apart) <= 2 + (wanted >> 30)


# --- requests ---------------------------------------------------------------------------------------------------------


def new_bucket(index: int, bucket: TokenBucket, handle: int, *, change: bool = False) -> Request:
    """As the device's root. change: the one with this handle, which keeps its counters; else there may be none but the
    default one (EEXIST).

    Rates above 32 bits go beside the old structure, in RATE64 and PRATE64. Raises ValueError for a burst or limit above
    32 bits: the kernel has no field for it.
    """
    if max(bucket.burst, bucket.peak_burst, bucket.limit) > U32_MAX:
        raise ValueError(f"{bucket}: bursts and limit have 32 bits")
    peak = bool(bucket.peak_rate)
    parms = _ratespec(bucket.rate) + (_ratespec(bucket.peak_rate) if peak else bytes(_RATESPEC.size))
    parms += _TBF_TAIL.pack(
        bucket.limit,
        min(ticks(bucket.burst, bucket.rate), U32_MAX),
        min(ticks(bucket.peak_burst, bucket.peak_rate), U32_MAX) if peak else 0,
    )
    # By the times in `parms` alone no burst could be longer than 4.29 s; by these attributes it can.
    options = attr(_TBF_PARMS, parms) + u32(_TBF_BURST, bucket.burst)
    if bucket.rate > U32_MAX:
        options += attr(_TBF_RATE64, struct.pack("=Q", bucket.rate))
    if peak:
        options += u32(_TBF_PBURST, bucket.peak_burst)
        if bucket.peak_rate > U32_MAX:
            options += attr(_TBF_PRATE64, struct.pack("=Q", bucket.peak_rate))
    body = _TCMSG.pack(0, index, handle, ROOT, 0) + text(_KIND, "tbf") + nest(_OPTIONS, options)
    return RTM_NEWQDISC, 0 if change else NLM_F_CREATE | NLM_F_EXCL, body


def _ratespec(rate: int) -> bytes:
    return _RATESPEC.pack(0, _ETHERNET, 0, -1, 0, min(rate, U32_MAX))


def delete_bucket(index: int, handle: int) -> Request:
    return RTM_DELQDISC, 0, _TCMSG.pack(0, index, handle, ROOT, 0)


def new_ingress(index: int) -> Request:
    body = _TCMSG.pack(0, index, INGRESS_HANDLE, INGRESS, 0) + text(_KIND, "ingress") + nest(_OPTIONS)
    return RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body


def delete_ingress(index: int) -> Request:
    return RTM_DELQDISC, 0, _TCMSG.pack(0, index, INGRESS_HANDLE, INGRESS, 0)


def new_redirect(index: int, to_index: int, priority: int, class_id: int = 0x10001) -> Request:
    """Of everything that device `index` receives, to be sent by device `to_index`."""
    mirred = _MIRRED.pack(0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIR, to_index)
    action = nest(1, text(_ACT_KIND, "mirred"), nest(_ACT_OPTIONS, attr(_MIRRED_PARMS, mirred)))
    options = u32(_U32_CLASSID, class_id) + attr(_U32_SEL, _U32_ANY) + nest(_U32_ACT, action)
    info = priority << 16 | socket.htons(_ETH_P_ALL)
    body = _TCMSG.pack(0, index, 0, INGRESS_FILTERS, info) + text(_KIND, "u32") + nest(_OPTIONS, options)
    return RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body


def delete_filter(one: Filter) -> Request:
    info = one.priority << 16 | socket.htons(one.protocol)
    return RTM_DELTFILTER, 0, _TCMSG.pack(0, one.index, one.handle, one.parent, info) + text(_KIND, one.kind)


# --- what is there ----------------------------------------------------------------------------------------------------


def _head(body: bytes) -> tuple[int, ...]:
    if len(body) < _TCMSG.size:
        raise ValueError(f"{len(body)} octets are no traffic control message")
    return _TCMSG.unpack_from(body)


def decode_qdisc(body: bytes) -> Qdisc:
    """Body of RTM_NEWQDISC. Raises ValueError when it is malformed."""
    _, index, handle, parent, _ = _head(body)
    found = attrs(body, _TCMSG.size)
    kind = cstring(found.get(_KIND, b""))
    bucket = _decode_bucket(attrs(found.get(_OPTIONS, b""))) if kind == "tbf" else None
    return Qdisc(index, handle, parent, kind, bucket)


def _decode_bucket(options: dict[int, bytes]) -> BucketState | None:
    parms = options.get(_TBF_PARMS, b"")
    if len(parms) < 2 * _RATESPEC.size + _TBF_TAIL.size:
        return None
    rate, peak = (_RATESPEC.unpack_from(parms, at)[5] for at in (0, _RATESPEC.size))
    limit, buffer, mtu = _TBF_TAIL.unpack_from(parms, 2 * _RATESPEC.size)
    return BucketState(
        rate=_u64(options.get(_TBF_RATE64), rate),
        limit=limit,
        ticks=buffer,
        peak_rate=_u64(options.get(_TBF_PRATE64), peak),
        peak_ticks=mtu,
    )


def _u64(payload: bytes | None, otherwise: int) -> int:
    return otherwise if payload is None else int(struct.unpack_from("=Q", payload)[0])


def decode_filter(body: bytes) -> Filter:
    """Body of RTM_NEWTFILTER. Raises ValueError when it is malformed."""
    _, index, handle, parent, info = _head(body)
    found = attrs(body, _TCMSG.size)
    kind = cstring(found.get(_KIND, b""))
    options = attrs(found.get(_OPTIONS, b"")) if kind == "u32" else {}
    actions = list(attrs(options.get(_U32_ACT, b"")).values())
    redirect = _decode_redirect(actions[0]) if len(actions) == 1 else None
    return Filter(index, parent, handle, info >> 16, socket.ntohs(info & 0xFFFF), kind, redirect)


def _decode_redirect(action: bytes) -> int | None:
    found = attrs(action)
    if cstring(found.get(_ACT_KIND, b"")) != "mirred":
        return None
    parms = attrs(found.get(_ACT_OPTIONS, b"")).get(_MIRRED_PARMS, b"")
    if len(parms) < _MIRRED.size:
        return None
    *_, direction, index = _MIRRED.unpack_from(parms)
    return int(index) if direction == _EGRESS_REDIR else None


def list_qdiscs(netlink: NetlinkSocket) -> list[Qdisc]:
    """Of all devices, at any depth. Some defaults (noqueue) are not listed by the kernel."""
    found = netlink.dump(RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0), "qdiscs")
    return [decode_qdisc(body) for kind, body in found if kind == RTM_NEWQDISC]


def list_filters(netlink: NetlinkSocket, index: int) -> list[Filter]:
    """Of the ingress or clsact qdisc of one device; none when the device has gone meanwhile."""
    try:
        found = netlink.dump(RTM_GETTFILTER, _TCMSG.pack(0, index, 0, INGRESS_FILTERS, 0), f"filters of link {index}")
    except ObjectNotFound:
        return []
    return [decode_filter(body) for kind, body in found if kind == RTM_NEWTFILTER]
