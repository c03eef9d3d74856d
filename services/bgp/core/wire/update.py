"""UPDATE, read: RFC 4271 sections 4.3 and 6.3, RFC 4760, RFC 7606, RFC 8950, End-of-RIB of RFC 4724.

Speed lives here: the attributes of a block are read once, so an UPDATE costs one look-up and the loop over its
prefixes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from services.bgp.core.paths import Attributes, Change, EndOfRib, Family, Nlri, Reach, Unreach
from services.bgp.core.wire.attributes import Block, Problem, decode_block, is_host, split
from services.bgp.core.wire.codes import SAFI_UNICAST
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.errors import BgpError, ErrorCode, UpdateError
from services.bgp.core.wire.nlri import decode_prefixes, decode_prefixes_with_ids

_CACHED: Final = 8192  # blocks; a full table of the Internet has some 100,000, a cluster a few hundred
_CACHED_OCTETS: Final = 1024  # of a block: what is longer is rare, and a peer must not fill our memory with it
_FAMILIES: Final = {int(family): family for family in Family}
_LINK_LOCAL: Final = b"\xfe\x80"


def _malformed(text: str) -> BgpError:
    return BgpError(ErrorCode.UPDATE, UpdateError.MALFORMED_ATTRIBUTE_LIST, text=text)


class UpdateDecoder:
    """Reads the UPDATEs of one session.

    Equal blocks of attributes give the same `Attributes` object (until some thousand others came in between), so who
    groups prefixes by attributes may compare them by identity first. discarded counts attributes that were left out
    (RFC 7606 "attribute discard"), withdrawn UPDATEs that were treated as withdrawals, ignored families that were not
    negotiated; `last_problem` has the words of the latest.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.discarded = 0
        self.withdrawn = 0
        self.ignored = 0
        self.last_problem = ""
        self._blocks: dict[bytes, Block] = {}
        self._multiprotocol: dict[tuple[bytes, bytes], Attributes | Problem] = {}

    def decode(self, body: bytes) -> list[Change]:
        """body: an UPDATE without its header. Withdrawals come first.

        Raises BgpError 3/x where RFC 7606 leaves no other way than to end the session.
        """
        end = 2 + int.from_bytes(body[:2], "big")
        if end + 2 > len(body):
            raise _malformed("the withdrawn routes run over the end")
        start = end + 2
        total = start + int.from_bytes(body[end:start], "big")
        if total > len(body):
            raise _malformed("the path attributes run over the end")
        if len(body) == 4:
            return [EndOfRib(Family.IPV4)]
        raw = body[start:total]
        block = self._blocks.get(raw)
        if block is None:
            return self._decode_new(body[2:end], raw, body[total:])
        return self._assemble(block, body[2:end], body[total:])

    def _decode_new(self, withdrawn: bytes, raw: bytes, announced: bytes) -> list[Change]:
        parts = split(raw)
        if parts.reach is None and parts.unreach is None:
            return self._assemble(self._block(raw), withdrawn, announced)
        return self._decode_multiprotocol(parts.rest, parts.reach, parts.unreach, parts.problem, withdrawn, announced)

    def _block(self, raw: bytes) -> Block:
        block = self._blocks.get(raw)
        if block is None:
            block = decode_block(raw, self.context)
            if len(raw) <= _CACHED_OCTETS:
                if len(self._blocks) >= _CACHED:
                    self._blocks.clear()
                self._blocks[raw] = block
        return block

    def _count_discarded(self, block: Block) -> None:
        self.discarded += len(block.discarded)
        self.last_problem = block.discarded[-1]

    def _assemble(self, block: Block, withdrawn: bytes, announced: bytes) -> list[Change]:
        """An UPDATE without MP attributes."""
        changes: list[Change] = []
        if block.discarded:
            self._count_discarded(block)
        if withdrawn:
            self._add(changes, Family.IPV4, withdrawn, None)
        if announced:
            problem = block.problem or block.missing or block.next_hop_problem
            self._add(changes, Family.IPV4, announced, problem or block.attributes)
        elif block.problem is not None:
            raise block.problem.error()  # RFC 7606 5.2: nobody can say which prefixes it was about
        return changes

    def _decode_multiprotocol(
        self,
        rest: bytes,
        reach: bytes | None,
        unreach: bytes | None,
        flaw: Problem | None,
        withdrawn: bytes,
        announced: bytes,
    ) -> list[Change]:
        if reach is None and not rest and not withdrawn and not announced and flaw is None:
            return self._only_unreach(unreach or b"")
        block = self._block(rest)
        if block.discarded:
            self._count_discarded(block)
        problem = flaw or block.problem
        changes: list[Change] = []
        if withdrawn:
            self._add(changes, Family.IPV4, withdrawn, None)
        if unreach is not None:
            family = self._family(unreach[:3], "MP_UNREACH_NLRI", least=3, have=len(unreach))
            if family is not None and len(unreach) > 3:
                self._add(changes, family, unreach[3:], None)
        if announced:
            self._add(
                changes,
                Family.IPV4,
                announced,
                problem or block.missing or block.next_hop_problem or block.attributes,
            )
        if reach is not None:
            self._add_reach(changes, rest, block, problem, reach)
        no_prefix = not announced and (reach is None or len(reach) == 5 + reach[3])
        if problem is not None and no_prefix and (rest or reach is not None):
            raise problem.error()  # RFC 7606 5.2: nobody can say which prefixes it was about
        return changes

    def _only_unreach(self, unreach: bytes) -> list[Change]:
        family = self._family(unreach[:3], "MP_UNREACH_NLRI", least=3, have=len(unreach))
        if family is None:
            return []
        if len(unreach) == 3:
            return [EndOfRib(family)]
        changes: list[Change] = []
        self._add(changes, family, unreach[3:], None)
        return changes

    def _add_reach(
        self, changes: list[Change], rest: bytes, block: Block, problem: Problem | None, value: bytes
    ) -> None:
        """value of MP_REACH_NLRI: AFI(2) SAFI(1) length(1) next hop(length) reserved(1) NLRI (RFC 4760 section 3)."""
        family = self._family(value[:3], "MP_REACH_NLRI", least=5, have=len(value))
        nlri_at = 5 + value[3]
        if nlri_at > len(value):
            raise BgpError(ErrorCode.UPDATE, UpdateError.OPTIONAL_ATTRIBUTE, text="MP_REACH_NLRI: next hop runs over")
        if family is None:
            return
        next_hop = value[4 : nlri_at - 1]
        if not self._next_hop_length(family, len(next_hop)):
            text = f"MP_REACH_NLRI of {family.name} with a next hop of {len(next_hop)} octets"
            raise BgpError(ErrorCode.UPDATE, UpdateError.OPTIONAL_ATTRIBUTE, text=text)
        if nlri_at < len(value):
            found = problem or block.missing or self._with_next_hop(rest, block, next_hop)
            self._add(changes, family, value[nlri_at:], found)

    def _next_hop_length(self, family: Family, octets: int) -> bool:
        if family is Family.IPV4 and octets == 4:
            return True
        return octets in (16, 32) and (family is Family.IPV6 or self.context.extended_next_hop)

    def _with_next_hop(self, rest: bytes, block: Block, next_hop: bytes) -> Attributes | Problem:
        key = (rest, next_hop)
        found = self._multiprotocol.get(key)
        if found is None:
            address, link_local = next_hop[:16], next_hop[16:]
            if link_local[:2] != _LINK_LOCAL:
                link_local = b""
            if link_local and address == bytes(16):  # BIRD, when an interface has no global address
                address = link_local
            if not is_host(address):
                found = Problem(f"next hop {address.hex()} is not an address of a host", UpdateError.INVALID_NEXT_HOP)
            else:
                found = replace(block.attributes, next_hop=address, link_local=link_local)
            if len(rest) <= _CACHED_OCTETS:
                if len(self._multiprotocol) >= _CACHED:
                    self._multiprotocol.clear()
                self._multiprotocol[key] = found
        return found

    def _family(self, head: bytes, name: str, *, least: int, have: int) -> Family | None:
        """None for one that was not negotiated: its prefixes are ignored (RFC 4760 section 6, RFC 7606 section
        7.11)."""
        if have < least:
            raise BgpError(ErrorCode.UPDATE, UpdateError.OPTIONAL_ATTRIBUTE, text=f"{name} of {have} octets")
        family = _FAMILIES.get(int.from_bytes(head[:2], "big"))
        if family is None or head[2] != SAFI_UNICAST or family not in self.context.families:
            self.ignored += 1
            return None
        return family

    def _add(self, changes: list[Change], family: Family, data: bytes, found: Attributes | Problem | None) -> None:
        """found: attributes of what is announced, why it is treated as withdrawn, or None for a withdrawal."""
        ids: list[int] | None = None
        prefixes: list[Nlri]
        if family in self.context.add_path_receive:
            prefixes, ids = decode_prefixes_with_ids(data, family)
        else:
            prefixes = decode_prefixes(data, family)
        if family not in self.context.families:
            self.ignored += 1
        elif isinstance(found, Attributes):
            changes.append(Reach(family, found, prefixes, ids))
        elif found is None:
            changes.append(Unreach(family, prefixes, ids))
        else:
            self.withdrawn += 1
            self.last_problem = found.text
            changes.append(Unreach(family, prefixes, ids, found.text))


def decode_update(body: bytes, context: Context) -> list[Change]:
    """One UPDATE alone, without the memory of others: for tools and tests. A session has an `UpdateDecoder`."""
    return UpdateDecoder(context).decode(body)
