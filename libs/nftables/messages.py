"""Operations → nfnetlink messages, and the kernel's listings → values (linux/netfilter/nf_tables.h).

A batch is `BATCH_BEGIN … BATCH_END`; the kernel applies all of it or nothing. Every message remembers what it is
about, so a refusal can be named by its sequence number, and, inside a message full of elements, by the offset that
the kernel reports.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from libs.netlink.codec import (
    ATTR,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    attr,
    attr_items,
    attrs,
    be32,
    be64,
    cstring,
    text,
    to_be32,
)
from libs.nftables.codec import (
    FAMILY_NUMBERS,
    WireRule,
    decode_verdict,
    encode_rule,
    normalise,
    verdict_data,
)
from libs.nftables.model import Base, ChainType, Family, Hook, Policy, Rule, Table, Verdict
from libs.nftables.ops import (
    AddElements,
    AddRules,
    AddVerdicts,
    DelChain,
    DelElements,
    DelSet,
    DelTable,
    FlushChain,
    KernelSet,
    NewChain,
    NewSet,
    NewTable,
    Op,
    SetSpec,
    SpliceRules,
    describe,
    describe_element,
    describe_rule,
)
from libs.nftables.types import TYPES, key_from_number, key_length, key_type_number

NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFNL_BATCH_GENID = 1

_SUBSYSTEM = NFNL_SUBSYS_NFTABLES << 8
NEWTABLE, GETTABLE, DELTABLE = _SUBSYSTEM | 0, _SUBSYSTEM | 1, _SUBSYSTEM | 2
NEWCHAIN, GETCHAIN, DELCHAIN = _SUBSYSTEM | 3, _SUBSYSTEM | 4, _SUBSYSTEM | 5
NEWRULE, GETRULE, DELRULE = _SUBSYSTEM | 6, _SUBSYSTEM | 7, _SUBSYSTEM | 8
NEWSET, GETSET, DELSET = _SUBSYSTEM | 9, _SUBSYSTEM | 10, _SUBSYSTEM | 11
NEWSETELEM, GETSETELEM, DELSETELEM = _SUBSYSTEM | 12, _SUBSYSTEM | 13, _SUBSYSTEM | 14
NEWGEN, GETGEN = _SUBSYSTEM | 15, _SUBSYSTEM | 16

SET_ANONYMOUS, SET_CONSTANT, SET_INTERVAL, SET_MAP, SET_TIMEOUT, SET_EVAL, SET_OBJECT, SET_CONCAT = (
    1 << bit for bit in range(8)
)
_KNOWN_FLAGS = SET_CONSTANT | SET_INTERVAL | SET_MAP | SET_TIMEOUT | SET_CONCAT
_UNCOUNTED = SET_INTERVAL | SET_TIMEOUT  # of intervals both ends count, and what has expired counts for a while
_ELEM_INTERVAL_END = 1
_DATA_VERDICT = 0xFFFFFF00
_VERDICT_LEN = 16  # sizeof(struct nft_verdict); the kernel takes no other for maps of verdicts

ELEMENTS_PER_MESSAGE_BYTES = 56_000  # a nest's length has 16 bits

HOOK_NUMBERS = {Hook.PREROUTING: 0, Hook.INPUT: 1, Hook.FORWARD: 2, Hook.OUTPUT: 3, Hook.POSTROUTING: 4}
ARP_HOOK_NUMBERS = {Hook.INPUT: 0, Hook.OUTPUT: 1}  # linux/netfilter_arp.h
POLICY_NUMBERS = {Policy.DROP: 0, Policy.ACCEPT: 1}


@dataclass(frozen=True, slots=True)
class Message:
    kind: int
    flags: int
    body: bytes
    about: Callable[[int | None], str]  # offset of the attribute at fault, if known → the object's name


def nfgen(family: int, resource: int = 0) -> bytes:
    """struct nfgenmsg: family, version 0, resource id (big-endian)."""
    return struct.pack("!BBH", family, 0, resource)


def batch_begin(generation: int | None) -> bytes:
    return nfgen(0, NFNL_SUBSYS_NFTABLES) + (be32(NFNL_BATCH_GENID, generation) if generation is not None else b"")


def _hooks(family: Family) -> dict[Hook, int]:
    return ARP_HOOK_NUMBERS if family is Family.ARP else HOOK_NUMBERS


class BatchBuilder:
    """Turns ops on one table into messages. handles: the rules of each chain that a SpliceRules names."""

    def __init__(self, table: Table) -> None:
        self.messages: list[Message] = []
        self._family = table.family
        self._head = nfgen(FAMILY_NUMBERS[table.family])
        self._table = text(1, table.name)
        self._set_ids = count(1)

    def add(self, op: Op, handles: Sequence[int] = ()) -> None:
        """Raises ElementError, or ValueError for a name that is too long or a hook that the family lacks."""
        match op:
            case NewTable():
                self._put(op, NEWTABLE, NLM_F_CREATE, be32(2, 0))
            case DelTable():
                self._put(op, DELTABLE, 0, b"")
            case NewSet(spec):
                self._put(op, NEWSET, NLM_F_CREATE | NLM_F_EXCL, self._set(spec))
            case DelSet(name):
                self._put(op, DELSET, 0, text(2, name))
            case NewChain(name, base):
                self._put(op, NEWCHAIN, NLM_F_CREATE, text(3, name) + self._base(base))
            case FlushChain(name):
                self._put(op, DELRULE, 0, text(2, name))
            case DelChain(name):
                self._put(op, DELCHAIN, 0, text(3, name))
            case AddRules(chain, rules):
                self._rules(chain, rules, 0, NLM_F_CREATE | NLM_F_APPEND, b"")
            case SpliceRules():
                self._splice(op, handles)
            case AddElements(spec, elements):
                self._elements(NEWSETELEM, NLM_F_CREATE, spec, elements, None)
            case DelElements(spec, elements):
                self._elements(DELSETELEM, 0, spec, elements, None)
            case AddVerdicts(spec, verdicts):
                keys = [key for key, _ in verdicts]
                self._elements(NEWSETELEM, NLM_F_CREATE, spec, keys, [verdict for _, verdict in verdicts])

    def _put(self, op: Op, kind: int, flags: int, body: bytes) -> None:
        self.messages.append(Message(kind, flags, self._head + self._table + body, lambda _: describe(op)))

    def _base(self, base: Base | None) -> bytes:
        if base is None:
            return b""
        number = _hooks(self._family).get(base.hook)
        if number is None:
            raise ValueError(f"family {self._family} has no hook {base.hook}")
        hook = attr(4, be32(1, number) + be32(2, base.priority))
        return hook + be32(5, POLICY_NUMBERS[base.policy]) + text(7, base.type)

    def _set(self, spec: SetSpec) -> bytes:
        concat_interval = spec.interval and len(spec.key) > 1
        flags = (
            (SET_INTERVAL if spec.interval else 0)
            | (SET_CONCAT if concat_interval else 0)
            | (SET_MAP if spec.is_map else 0)
            | (SET_CONSTANT if spec.constant else 0)
            | (SET_TIMEOUT if spec.timeout_s else 0)
        )
        body = text(2, spec.name) + be32(3, flags) + be32(4, key_type_number(spec.key)) + be32(5, key_length(spec.key))
        if spec.is_map:
            body += be32(6, _DATA_VERDICT) + be32(7, _VERDICT_LEN)
        if concat_interval:
            fields = b"".join(attr(1, be32(1, TYPES[part].length)) for part in spec.key)
            body += attr(9, attr(2, fields))
        body += be32(10, next(self._set_ids))
        if spec.timeout_s:
            body += be64(11, spec.timeout_s * 1000)
        return body + attr(13, _set_userdata(spec))

    def _rules(self, chain: str, rules: Iterable[Rule], first: int, flags: int, position: bytes) -> None:
        head = self._head + self._table + text(2, chain)
        for index, rule in enumerate(rules, first):
            wire = encode_rule(self._family, rule)
            body = head + attr(4, wire.expressions) + position
            if wire.userdata:
                body += attr(7, wire.userdata)
            self.messages.append(Message(NEWRULE, flags, body, _rule_name(chain, index, rule)))

    def _splice(self, op: SpliceRules, handles: Sequence[int]) -> None:
        end = op.length - op.tail
        for handle in handles[op.head : end]:
            self._put(op, DELRULE, 0, text(2, op.chain) + be64(3, handle))
        if op.tail:  # each goes right before the first rule that stays, so they end up in order
            self._rules(op.chain, op.rules, op.head, NLM_F_CREATE, be64(6, handles[end]))
        else:
            self._rules(op.chain, op.rules, op.head, NLM_F_CREATE | NLM_F_APPEND, b"")

    def _elements(
        self, kind: int, flags: int, spec: SetSpec, elements: Sequence[bytes], verdicts: Sequence[Verdict] | None
    ) -> None:
        head = self._head + self._table + text(2, spec.name)
        encoded = _encode_elements(spec, elements, verdicts)
        first, size, chunk = 0, 0, list[bytes]()
        for index, element in enumerate(encoded):
            if size + len(element) > ELEMENTS_PER_MESSAGE_BYTES:
                self._chunk(kind, flags, head, chunk, spec, elements[first:index])
                first, size, chunk = index, 0, []
            chunk.append(element)
            size += len(element)
        if chunk:
            self._chunk(kind, flags, head, chunk, spec, elements[first:])

    def _chunk(
        self, kind: int, flags: int, head: bytes, chunk: list[bytes], spec: SetSpec, elements: Sequence[bytes]
    ) -> None:
        def about(offset: int | None) -> str:
            if len(elements) == 1:
                return describe_element(spec, elements[0])
            if offset is None:
                return f"{len(elements)} elements of {'map' if spec.is_map else 'set'} {spec.name}"
            at = 16 + len(head) + 4
            for element, encoded in zip(elements, chunk, strict=True):
                if offset < at + len(encoded):
                    return describe_element(spec, element)
                at += len(encoded)
            return f"elements of {'map' if spec.is_map else 'set'} {spec.name}"

        self.messages.append(Message(kind, flags, head + attr(3, b"".join(chunk)), about))


def _rule_name(chain: str, index: int, rule: Rule) -> Callable[[int | None], str]:
    return lambda _: describe_rule(chain, index, rule)


def _set_userdata(spec: SetSpec) -> bytes:
    """Byte order of key and data for `nft list` (libnftnl udata.h): 1 the machine's, 2 big-endian."""
    order = 1 if len(spec.key) == 1 and (TYPES[spec.key[0]].little or spec.key[0].value == "ifname") else 2
    if len(spec.key) > 1:
        order = 0
    key = struct.pack("=BBI", 0, 4, order)
    return key + struct.pack("=BBI", 1, 4, 0) if spec.is_map else key


def _encode_elements(spec: SetSpec, elements: Sequence[bytes], verdicts: Sequence[Verdict] | None) -> Iterator[bytes]:
    """Each element as one or two NFTA_LIST_ELEM attributes.

    An interval is a start and an end marker that is exclusive, left out after the last value there is; a
    concatenation with ranges is one element with KEY and KEY_END instead.
    """
    size = key_length(spec.key)
    key_attr = ATTR.pack(size + 4, 1)
    pad = b"\0" * (-size & 3)
    padded = size + len(pad)
    plain_data = key_attr, ATTR.pack(padded + 8, 1)
    for index, element in enumerate(elements):
        data = b"" if verdicts is None else attr(2, attr(2, verdict_data(verdicts[index])))
        key = plain_data[1] + plain_data[0] + element[:size] + pad
        if not spec.interval:
            yield ATTR.pack(len(key) + len(data) + 4, 1) + key + data
        elif len(spec.key) > 1:
            end = attr(10, attr(1, element[size:]))
            yield ATTR.pack(len(key) + len(data) + len(end) + 4, 1) + key + end + data
        else:
            start = attr(1, key + data)
            after = int.from_bytes(element[size:], "big") + 1
            if after >> 8 * size:
                yield start
            else:
                marker = plain_data[1] + key_attr + after.to_bytes(size, "big") + pad + be32(3, _ELEM_INTERVAL_END)
                yield start + attr(1, marker)


# --- listings -------------------------------------------------------------------------------------------------------


def family_number(table: Table) -> int:
    return FAMILY_NUMBERS[table.family]


def decode_chain(body: bytes, family: Family) -> tuple[str, str, Base | None]:
    """(table, chain, base) of a NEWCHAIN body."""
    found = attrs(body, 4)
    base = None
    if 4 in found:
        hook = attrs(found[4])
        numbers = {number: hook for hook, number in _hooks(family).items()}
        priority = struct.unpack("!i", hook[2][:4])[0]
        kind = cstring(found.get(7, b"filter"))
        known = numbers.get(to_be32(hook[1]))
        if known is not None and kind in set(ChainType):
            policy = Policy.ACCEPT if to_be32(found.get(5, b"\0\0\0\1")) else Policy.DROP
            base = Base(known, ChainType(kind), priority, policy)
        else:  # a hook we never use: differs from whatever is wanted, so it is replaced
            base = Base(Hook.INPUT, ChainType.FILTER, -(2**31), Policy.ACCEPT)
    return cstring(found[1]), cstring(found[3]), base


def decode_rule(body: bytes) -> tuple[str, int, WireRule]:
    """(chain, handle, wire form with counters at zero) of a NEWRULE body."""
    chain, handle, expressions, userdata = "", 0, b"", b""
    for kind, payload in attr_items(body, 4):
        if kind == 2:
            chain = payload[:-1].decode(errors="replace")
        elif kind == 3:
            handle = int.from_bytes(payload, "big")
        elif kind == 4:
            expressions = normalise(payload)
        elif kind == 7:
            userdata = payload
    return chain, handle, WireRule(expressions, userdata)


def decode_counter(body: bytes) -> tuple[int, tuple[int, int] | None]:
    """(handle, (packets, octets)) of a NEWRULE body; None for a rule without a counter (enum nft_counter_attributes:
    octets 1, packets 2)."""
    handle, counted = 0, None
    for kind, payload in attr_items(body, 4):
        if kind == 3:
            handle = int.from_bytes(payload, "big")
        elif kind == 4:
            for _, expression in attr_items(payload):
                found = attrs(expression)
                if cstring(found.get(1, b"")) == "counter":
                    values = attrs(found.get(2, b""))
                    counted = (int.from_bytes(values.get(2, b""), "big"), int.from_bytes(values.get(1, b""), "big"))
    return handle, counted


def decode_set(body: bytes) -> KernelSet | None:
    """A NEWSET body; None for an anonymous set, which belongs to its rule."""
    found = attrs(body, 4)
    name = cstring(found[2])
    flags = to_be32(found.get(3, bytes(4)))
    if flags & SET_ANONYMOUS:
        return None
    key = key_from_number(to_be32(found.get(4, bytes(4))))
    is_map = bool(flags & SET_MAP)
    verdict_map = is_map and to_be32(found.get(6, bytes(4))) == _DATA_VERDICT
    if key is None or flags & ~_KNOWN_FLAGS or (is_map and not verdict_map) or to_be32(found[5]) != key_length(key):
        return KernelSet(name, None)
    timeout_ms = int.from_bytes(found.get(11, b""), "big")
    spec = SetSpec(name, key, bool(flags & SET_INTERVAL), bool(flags & SET_CONSTANT), timeout_ms // 1000, is_map)
    told = found.get(20)  # NFTA_SET_COUNT, since Linux 6.16
    return KernelSet(name, spec, count=to_be32(told) if told is not None and not flags & _UNCOUNTED else None)


def decode_elements(bodies: Iterable[bytes], spec: SetSpec) -> tuple[set[bytes], dict[bytes, Verdict | None]]:
    """Elements, and for a map their verdicts, of the NEWSETELEM bodies of one listing."""
    size = key_length(spec.key)
    if not spec.interval and not spec.is_map:
        return _decode_plain(bodies, size), {}
    return _decode_general(bodies, spec, size)


def _decode_plain(bodies: Iterable[bytes], size: int) -> set[bytes]:
    """Elements of a hash set: LIST_ELEM { KEY { VALUE } …}; the kernel puts the key first (nf_tables_fill_setelem)."""
    found: set[bytes] = set()
    for body in bodies:
        for kind, nest in attr_items(body, 4):
            if kind != 3:
                continue
            at, end = 0, len(nest)
            while at < end:
                length = ATTR.unpack_from(nest, at)[0]
                found.add(nest[at + 12 : at + 12 + size])
                at += length + 3 & ~3
    return found


def _decode_general(
    bodies: Iterable[bytes], spec: SetSpec, size: int
) -> tuple[set[bytes], dict[bytes, Verdict | None]]:
    elements: set[bytes] = set()
    verdicts: dict[bytes, Verdict | None] = {}
    markers: list[tuple[bytes, int, Verdict | None]] = []
    for body in bodies:
        for kind, nest in attr_items(body, 4):
            if kind != 3:
                continue
            for _, item in attr_items(nest):
                found = attrs(item)
                key = found[1][4 : 4 + size]
                verdict = _decode_data(found.get(2))
                if spec.interval and len(spec.key) == 1:
                    markers.append((key, to_be32(found.get(3, bytes(4))) & _ELEM_INTERVAL_END, verdict))
                    continue
                if spec.interval:
                    key += found[10][4 : 4 + size] if 10 in found else key
                elements.add(key)
                verdicts[key] = verdict
    if markers:
        for low, high, verdict in _intervals(markers, size):
            elements.add(low + high)
            verdicts[low + high] = verdict
    return (set(), verdicts) if spec.is_map else (elements, {})


def _intervals(
    markers: list[tuple[bytes, int, Verdict | None]], size: int
) -> Iterator[tuple[bytes, bytes, Verdict | None]]:
    """Start and exclusive end markers → inclusive ranges. nft itself sets an end marker at zero, which ends nothing."""
    markers.sort(key=lambda marker: (marker[0], -marker[1]))
    start: tuple[bytes, Verdict | None] | None = None
    for key, is_end, verdict in markers:
        if start is not None:
            last = (int.from_bytes(key, "big") - 1).to_bytes(size, "big")
            yield start[0], last, start[1]
        start = None if is_end else (key, verdict)
    if start is not None:
        yield start[0], b"\xff" * size, start[1]


def _decode_data(data: bytes | None) -> Verdict | None:
    if data is None:
        return None
    found = attrs(data)
    if 2 not in found:
        return None
    verdict = attrs(found[2])
    return decode_verdict(to_be32(verdict[1]), cstring(verdict.get(2, b"")))
