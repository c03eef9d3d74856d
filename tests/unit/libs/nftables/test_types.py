from __future__ import annotations

import pytest

from libs.nftables.model import DataType
from libs.nftables.types import (
    ElementError,
    key_from_number,
    key_length,
    key_type_number,
    pack_element,
    pack_elements,
    parse_part,
    unpack_element,
)

D = DataType


@pytest.mark.parametrize(
    ("data_type", "text", "low", "high"),
    [
        (D.IPV4, "10.0.0.1", "0a000001", "0a000001"),
        (D.IPV4, "10.0.0.1/32", "0a000001", "0a000001"),
        (D.IPV4, "10.0.0.0/8", "0a000000", "0affffff"),
        (D.IPV4, "0.0.0.0/0", "00000000", "ffffffff"),
        (D.IPV4, "10.0.0.1-10.0.0.3", "0a000001", "0a000003"),
        (D.IPV6, "fd00::/8", "fd" + "00" * 15, "fd" + "ff" * 15),
        (D.PORT, "80", "0050", "0050"),
        (D.PORT, 443, "01bb", "01bb"),
        (D.PORT, "80-90", "0050", "005a"),
        (D.PROTO, "tcp", "06", "06"),
        (D.PROTO, "ipv6-icmp", "3a", "3a"),
        (D.PROTO, "132", "84", "84"),
        (D.IFNAME, "cali-1", b"cali-1".hex().ljust(32, "0"), b"cali-1".hex().ljust(32, "0")),
        (D.MARK, "0x10", "10000000", "10000000"),
        (D.CT_STATE, "established", "02000000", "02000000"),
    ],
)
def test_text_packs_to_an_inclusive_range(data_type: DataType, text: str | int, low: str, high: str) -> None:
    assert parse_part(data_type, text) == (bytes.fromhex(low), bytes.fromhex(high))


@pytest.mark.parametrize(
    ("data_type", "text", "words"),
    [
        (D.IPV4, "10.0.0", "is not an ipv4_addr"),
        (D.IPV4, "fd00::1", "is not an ipv4_addr"),
        (D.IPV4, "10.0.0.1/8", "beyond its prefix length"),
        (D.IPV4, "10.0.0.0/33", "0 to 32"),
        (D.IPV4, "10.0.0.0/x", "0 to 32"),
        (D.IPV4, "10.0.0.0/", "0 to 32"),
        (D.IPV4, "10.0.0.3-10.0.0.1", "ends before it starts"),
        (D.IPV6, "10.0.0.1", "is not an ipv6_addr"),
        (D.IPV4, "10.0.0.1\0", "is not an ipv4_addr"),
        (D.PORT, "65536", "does not fit"),
        (D.PORT, -1, "does not fit"),
        (D.PORT, "http", "is not a value"),
        (D.PROTO, "256", "does not fit"),
        (D.IFNAME, "", "1 to 15 bytes"),
        (D.IFNAME, "cali012345678901", "1 to 15 bytes"),
    ],
)
def test_bad_values_are_named(data_type: DataType, text: str | int, words: str) -> None:
    with pytest.raises(ElementError, match=words):
        parse_part(data_type, text)


def test_parts_of_a_concatenation_are_padded_to_registers() -> None:
    key = (D.IPV4, D.PROTO, D.PORT)
    low, high = pack_element(key, "10.0.0.1 . tcp . 80")
    assert low == high == bytes.fromhex("0a0000010600000000500000")
    assert key_length(key) == 12
    assert unpack_element(key, low) == "10.0.0.1 . tcp . 80"


def test_wrong_number_of_parts_is_an_error() -> None:
    with pytest.raises(ElementError, match="has 2 parts"):
        pack_element((D.IPV4, D.PROTO, D.PORT), "10.0.0.1 . tcp")


def test_set_without_intervals_takes_hosts_only() -> None:
    assert pack_elements((D.IPV4,), ["10.0.0.1/32", "10.0.0.1"], interval=False) == {bytes((10, 0, 0, 1))}
    for key, text in (((D.IPV4,), "10.0.0.0/8"), ((D.IPV6,), "fd00::/8"), ((D.PORT,), "1-2")):
        with pytest.raises(ElementError, match="no intervals"):
            pack_elements(key, [text], interval=False)


@pytest.mark.parametrize("key", [(D.IPV4,), (D.IFNAME, D.IPV4), (D.IPV6, D.PROTO, D.PORT)])
def test_key_type_survives_its_number(key: tuple[DataType, ...]) -> None:
    assert key_from_number(key_type_number(key)) == key


def test_foreign_key_type_is_unknown() -> None:
    assert key_from_number(9) is None  # ether_addr
    assert key_from_number(0) is None


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ((D.IPV4,), "10.0.0.0/8"),
        ((D.IPV4,), "10.0.0.1-10.0.0.3"),
        ((D.IPV6,), "::/0"),
        ((D.PORT,), "80-90"),
        ((D.IFNAME, D.IPV4), "calia . 10.0.0.0/30"),
        ((D.PROTO,), "udp"),
    ],
)
def test_unpacked_element_is_the_shortest_text(key: tuple[DataType, ...], text: str) -> None:
    (element,) = pack_elements(key, [text], interval=True)
    assert unpack_element(key, element) == text
