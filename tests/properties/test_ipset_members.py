"""The two halves of an IP set: no overlap, nothing covered twice, and together exactly the members."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.felix.core.sets import NetMembers, covering

BITS = 6  # a small address space, so that covers are frequent


@st.composite
def networks(draw):
    length = draw(st.integers(0, BITS))
    return draw(st.integers(0, 2**length - 1)) << (BITS - length), length


CHANGES = st.lists(st.tuples(st.sets(networks(), max_size=5), st.sets(networks(), max_size=5)), max_size=12)


def addresses(net):
    return range(net[0], net[0] + (1 << (BITS - net[1])))


@given(CHANGES)
def test_halves_are_disjoint_and_say_the_same_as_the_members(changes):
    members, plain = NetMembers(BITS), set()
    hosts, nets = set(), set()  # as a kernel that follows the deltas sees them
    for added, removed in changes:
        plain = (plain - removed) | added
        delta = members.change(added, removed)
        assert not delta.remove_hosts - hosts
        assert not delta.add_hosts & hosts
        assert not delta.remove_nets - nets
        assert not delta.add_nets & nets
        hosts = (hosts - delta.remove_hosts) | delta.add_hosts
        nets = (nets - delta.remove_nets) | delta.add_nets
        assert (hosts, nets) == (members.hosts, members.nets)
        assert members.all() == plain
        held = [address for net in nets for address in addresses(net)] + list(hosts)
        assert len(held) == len(set(held)), "an address is in the kernel twice"
        assert set(held) == {address for net in plain for address in addresses(net)}


@given(st.sets(networks(), max_size=8))
def test_covering_keeps_every_address_once(nets):
    kept = covering(nets, BITS)
    held = [address for net in kept for address in addresses(net)]
    assert held == sorted({address for net in nets for address in addresses(net)})
