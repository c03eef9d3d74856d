"""Messages that this machine's kernel may be too old to judge, or that are judged only as a whole."""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_network
from typing import Any

import pytest

from libs.netlink.codec import attrs, error_for
from libs.netlink.links import VethEnd, create_netkit
from libs.netlink.podlink import table_of
from libs.netlink.rules import SourceRule, rule_request

HEADER = 16  # struct ifinfomsg


class Recorder:
    """A socket that keeps what is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, bytes]] = []

    def request(self, kind: int, flags: int, body: bytes, what: str = "") -> list[tuple[int, bytes]]:
        self.asked.append((kind, flags, body))
        return []


def test_a_netkit_pair_is_asked_for_as_linux_if_link_says() -> None:
    socket: Any = Recorder()
    create_netkit(socket, VethEnd("cali1", "ee:ee:ee:ee:ee:ee", 1450), VethEnd("eth0", None, 1450, netns_fd=7))
    ((kind, _, body),) = socket.asked
    outer = attrs(body, HEADER)
    assert (kind, outer[3]) == (16, b"cali1\0")  # RTM_NEWLINK, IFLA_IFNAME
    info = attrs(outer[18])  # IFLA_LINKINFO
    assert info[1] == b"netkit\0"
    data = attrs(info[2])
    assert set(data) == {1, 3, 4, 5}  # IFLA_NETKIT_PEER_INFO, POLICY, PEER_POLICY, MODE
    assert [struct.unpack("=I", data[n])[0] for n in (3, 4, 5)] == [0, 0, 0]  # pass, pass, L2
    peer = attrs(data[1], HEADER)
    assert (peer[3], struct.unpack("=I", peer[28])[0]) == (b"eth0\0", 7)  # IFLA_NET_NS_FD


@pytest.mark.parametrize(("net", "family"), [("10.0.0.1/32", 2), ("fd00::1/128", 10)])
def test_a_rule_says_whose_packets_look_where(net: str, family: int) -> None:
    kind, _, body = rule_request(SourceRule(ip_network(net), 0x43000001, 10000))
    assert (kind, body[0], body[2], body[7]) == (32, family, ip_network(net).prefixlen, 1)
    found = attrs(body, 12)
    assert found[2] == ip_network(net).network_address.packed
    assert [struct.unpack("=I", found[n])[0] for n in (6, 15)] == [10000, 0x43000001]


def test_tables_of_interfaces_are_apart_and_away_from_those_people_choose() -> None:
    tables = {table_of(f"net{n}") for n in range(100)}
    assert len(tables) == 100
    assert min(tables) >= 0x43000000
    assert error_for(errno.EOPNOTSUPP, "netkit").errno == errno.EOPNOTSUPP  # what a kernel without it says
