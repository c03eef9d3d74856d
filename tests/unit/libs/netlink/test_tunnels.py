"""Messages for tunnel devices and forwarding entries, octet by octet against the kernel's headers.

Written out by hand from linux/rtnetlink.h, if_link.h, if_tunnel.h and neighbour.h, little-endian as the machines that
run this.
"""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_interface

import pytest

from libs.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, nest, text, u8, u32
from libs.netlink.fdb import FdbEntry, decode_fdb, fdb_request
from libs.netlink.neighbours import Neighbour, decode_neighbour, neighbour_request
from libs.netlink.tunnels import Ipip, Other, TunnelDevice, Vxlan, create_request, decode_kind

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="octets are written for little-endian machines")

IFINFOMSG = "00 00 0000 00000000 00000000 00000000"  # family, pad, type, index, flags, change


def octets(*parts: str) -> bytes:
    return bytes.fromhex("".join(parts))


def test_ip_in_ip_is_asked_for_as_iproute2_does() -> None:
    device = TunnelDevice("tunl0", Ipip(), 1480, frozenset({ip_interface("10.66.1.1/32")}))
    kind, flags, body = create_request(device)
    assert (kind, flags) == (16, NLM_F_CREATE | NLM_F_EXCL)  # RTM_NEWLINK
    assert body == octets(
        IFINFOMSG,
        "0a00 0300", "74756e6c3000 0000",  # IFLA_IFNAME "tunl0", padded
        "0800 0400", "c8050000",  # IFLA_MTU 1480
        "1000 1280",  # IFLA_LINKINFO, nested
        "0900 0100", "6970697000 000000",  # IFLA_INFO_KIND "ipip", padded
    )  # fmt: skip


@pytest.mark.parametrize(
    ("local", "attribute", "length"),
    [("192.0.2.1", "0800 0400 c0000201", 0), ("2001:db8::1", "1400 1100 20010db8000000000000000000000001", 12)],
)
def test_vxlan_is_asked_for_with_its_number_port_parent_and_local_address(
    local: str, attribute: str, length: int
) -> None:
    kind = Vxlan(4096, 4789, ip_address(local), 3)
    device = TunnelDevice("vxlan.calico", kind, 1450, mac="66:f9:37:c3:7e:94")
    _, _, body = create_request(device)
    data = 4 + 8 + 8 + (8 + length) + 8 + 8
    info = 4 + 12 + data
    assert body == octets(
        IFINFOMSG,
        "1100 0300", "76786c616e2e63616c69636f00 000000",  # IFLA_IFNAME "vxlan.calico"
        "0800 0400", "aa050000",  # IFLA_MTU 1450
        "0a00 0100", "66f937c37e94 0000",  # IFLA_ADDRESS
        info.to_bytes(2, "little").hex(), "1280",  # IFLA_LINKINFO
        "0a00 0100", "76786c616e00 0000",  # IFLA_INFO_KIND "vxlan"
        data.to_bytes(2, "little").hex(), "0280",  # IFLA_INFO_DATA
        "0800 0100", "00100000",  # IFLA_VXLAN_ID 4096
        "0800 0300", "03000000",  # IFLA_VXLAN_LINK
        attribute,  # IFLA_VXLAN_LOCAL or _LOCAL6, in network order
        "0500 0700", "00 000000",  # IFLA_VXLAN_LEARNING off
        "0600 0f00", "12b5 0000",  # IFLA_VXLAN_PORT 4789, big-endian
    )  # fmt: skip


def test_what_is_no_tunnel_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="dummy is no tunnel"):
        create_request(TunnelDevice("vxlan.calico", Other("dummy"), 1500))


def test_kinds_are_read_from_link_info() -> None:
    def info(kind: str, data: bytes) -> bytes:
        return text(1, kind) + nest(2, data)

    vxlan = octets("0800 0400 c0000201", "0600 0f00 2118 0000") + u32(1, 9) + u32(3, 5) + u8(7, 1)
    assert decode_kind(info("vxlan", vxlan)) == Vxlan(9, 8472, ip_address("192.0.2.1"), 5, learning=True)
    assert decode_kind(info("vxlan", octets("0800 0200 e0000001"))) == Vxlan(
        0, 0, None, 0, group=ip_address("224.0.0.1")
    )
    assert decode_kind(info("ipip", octets("0800 0200 00000000", "0800 0300 00000000"))) == Ipip()
    assert decode_kind(info("ipip", octets("0800 0300 c0000207"))) == Ipip(remote=ip_address("192.0.2.7"))  # type: ignore[arg-type]
    assert decode_kind(info("dummy", b"")) == Other("dummy")
    assert decode_kind(b"") == Other("")


@pytest.mark.parametrize(("delete", "wanted"), [(False, (28, NLM_F_CREATE | NLM_F_REPLACE)), (True, (29, 0))])
def test_forwarding_entries(delete: bool, wanted: tuple[int, int]) -> None:
    entry = FdbEntry(9, "66:00:00:00:00:02", ip_address("192.0.2.2"))
    kind, flags, body = fdb_request(entry, delete=delete)
    assert (kind, flags) == wanted
    assert body == octets(
        "07 000000",  # struct ndmsg: AF_BRIDGE
        "09000000", "8000", "02", "00",  # interface, NUD_PERMANENT, NTF_SELF, type
        "0800 0100", "c0000202",  # NDA_DST
        "0a00 0200", "660000000002 0000",  # NDA_LLADDR
    )  # fmt: skip
    assert decode_fdb(body) == entry
    assert decode_neighbour(body) is None


def test_a_neighbour_is_no_forwarding_entry() -> None:
    entry = Neighbour(ip_address("10.66.2.0"), 9, "66:00:00:00:00:02")
    _, _, body = neighbour_request(entry)
    assert decode_fdb(body) is None
    assert decode_neighbour(body) == entry
    of_a_bridge = octets("07 000000", "09000000", "8000", "04", "00", "0a00 0200", "660000000002 0000")  # NTF_MASTER
    assert decode_fdb(of_a_bridge) is None
    assert decode_neighbour(of_a_bridge) is None
