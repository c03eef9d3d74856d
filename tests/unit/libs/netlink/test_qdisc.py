"""Traffic control messages, against what `tc` sends and the kernel answers (iproute2 6.1, Linux 6.18, x86-64)."""

from __future__ import annotations

import struct
import sys

import pytest

from libs.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, attrs
from libs.netlink.links import new_ifb, no_link_local
from libs.netlink.qdisc import (
    INGRESS_HANDLE,
    U32_MAX,
    BucketState,
    Filter,
    TokenBucket,
    decode_filter,
    decode_qdisc,
    delete_bucket,
    delete_filter,
    delete_ingress,
    new_bucket,
    new_ingress,
    new_redirect,
    ticks,
)

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="recorded samples are not here for this byte order")

# tc filter add dev lo ingress protocol all prio 1 u32 match u32 0 0 classid 1:1 action mirred egress redirect dev bw0
TC_FILTER = (
    "000000000100000000000000f2ffffff0003010008000100753332006800020008000100010001003800070034000100"
    "0b0001006d69727265640000240002802000020000000000000000000400000000000000000000000100000002000000"
    "240005000100010000000000000000000000000000000000000000000000000000000000"
)
TC_INGRESS = "0000000001000000 0000ffff f1ffffff 00000000 0c000100 696e677265737300"
# What the kernel lists after the above, and after: tc qdisc add dev bw0 root handle 1: tbf rate 100gbit
# burst 100000000 limit 5000000 peakrate 400gbit minburst 90000
KERNEL_FILTER = (
    "000000000100000000080080f2ffffff000301000800010075333200e000020024000500010001000000000000000000"
    "0000000000000000000000000000000000000000080002000000008008000b0008000000a8000700a40001000b000100"
    "6d6972726564000044000400140001000000000000000000000000000000000014000700000000000000000000000000"
    "0000000018000300000000000000000000000000000000000000000008000a0000000000480002002000020001000000"
    "000000000400000001000000010000000100000002000000240001000000000000000000000000000000000000000000"
    "000000000000000000000000"
)
KERNEL_TABLE = "000000000100000000000080f2ffffff0003010008000100753332000c0002000800040001000000"
KERNEL_BUCKET = (
    "000000000200000000000100ffffffff02000000080001007462660044000200280001000001000000000000ffffffff"
    "0001000000000000ffffffff404b4c0047e801001c0000000c00040000dd0ee9020000000c00050000743ba40b000000"
)
KERNEL_NOQUEUE = "000000000100000000000000ffffffff020000000c0001006e6f717565756500"


def tree(data: bytes, *path: int) -> dict[int, bytes]:
    """The attributes below `path`, whichever order and flags they have."""
    found = attrs(data, 20)
    for step in path:
        found = attrs(found[step])
    return found


def test_redirect_is_what_tc_sends() -> None:
    theirs = bytes.fromhex(TC_FILTER)
    kind, flags, ours = new_redirect(1, 2, priority=1)
    assert (kind, flags) == (44, NLM_F_CREATE | NLM_F_EXCL)
    assert ours[:20] == theirs[:20]
    assert tree(ours)[1] == tree(theirs)[1]
    for leaf in (1, 5):  # class, selector
        assert tree(ours, 2)[leaf] == tree(theirs, 2)[leaf]
    assert tree(ours, 2, 7, 1)[1] == tree(theirs, 2, 7, 1)[1] == b"mirred\0"
    assert tree(ours, 2, 7, 1, 2) == tree(theirs, 2, 7, 1, 2)
    assert tree(ours, 2).keys() == tree(theirs, 2).keys()


def test_ingress_qdisc_is_what_tc_sends() -> None:
    kind, flags, ours = new_ingress(1)
    assert (kind, flags) == (36, NLM_F_CREATE | NLM_F_EXCL)
    assert ours.startswith(bytes.fromhex(TC_INGRESS))
    assert delete_ingress(1) == (37, 0, ours[:20])


def bucket_options(bucket: TokenBucket) -> dict[int, bytes]:
    kind, _, body = new_bucket(7, bucket, 0x10000)
    assert kind == 36
    assert body[:20] == struct.pack("=iiIII", 0, 7, 0x10000, 0xFFFFFFFF, 0)
    assert tree(body)[1] == b"tbf\0"
    return tree(body, 2)


def test_bucket_below_32_bits_has_its_rate_in_the_old_structure() -> None:
    found = bucket_options(TokenBucket(rate=U32_MAX, burst=100_000, limit=5_000))
    assert found.keys() == {1, 6}
    spec = "=BBHhHI"
    assert found[1] == struct.pack(spec, 0, 1, 0, -1, 0, U32_MAX) + bytes(12) + struct.pack("=III", 5_000, 363, 0)
    assert found[6] == struct.pack("=I", 100_000)


def test_rates_above_32_bits_stand_beside_it() -> None:
    bucket = TokenBucket(rate=1 << 32, burst=U32_MAX, limit=U32_MAX, peak_rate=125_000_000_000_000, peak_burst=90_000)
    found = bucket_options(bucket)
    assert found.keys() == {1, 4, 5, 6, 7}
    assert struct.unpack_from("=I", found[1], 8) == struct.unpack_from("=I", found[1], 20) == (U32_MAX,)
    assert found[4] == struct.pack("=Q", 1 << 32)
    assert found[5] == struct.pack("=Q", 125_000_000_000_000)
    assert found[6] == struct.pack("=I", U32_MAX)
    assert found[7] == struct.pack("=I", 90_000)


@pytest.mark.parametrize("field", ["burst", "limit", "peak_burst"])
def test_sizes_above_32_bits_are_refused(field: str) -> None:
    sizes = {"burst": 3000, "limit": 3000, "peak_burst": 3000} | {field: 1 << 32}
    with pytest.raises(ValueError, match="32 bits"):
        new_bucket(7, TokenBucket(rate=1000, peak_rate=2000, **sizes), 0x10000)


def test_change_creates_nothing() -> None:
    assert new_bucket(7, TokenBucket(1000, 3000, 3000), 0x10000, change=True)[1] == 0
    assert new_bucket(7, TokenBucket(1000, 3000, 3000), 0x10000)[1] == NLM_F_CREATE | NLM_F_EXCL
    assert delete_bucket(7, 0x10000) == (37, 0, struct.pack("=iiIII", 0, 7, 0x10000, 0xFFFFFFFF, 0))


def test_what_the_kernel_lists_is_read() -> None:
    bucket = decode_qdisc(bytes.fromhex(KERNEL_BUCKET))
    assert (bucket.index, bucket.handle, bucket.parent, bucket.kind) == (2, 0x10000, 0xFFFFFFFF, "tbf")
    given = TokenBucket(12_500_000_000, 100_000_000, 5_000_000, 50_000_000_000, 90_000)
    assert bucket.bucket == BucketState(12_500_000_000, 5_000_000, 124_999, 50_000_000_000, 28)
    assert bucket.bucket.is_of(given)
    noqueue = decode_qdisc(bytes.fromhex(KERNEL_NOQUEUE))
    assert (noqueue.kind, noqueue.handle, noqueue.bucket) == ("noqueue", 0, None)
    redirect = Filter(1, 0xFFFFFFF2, 0x80000800, 1, 3, "u32", redirect=2)
    assert decode_filter(bytes.fromhex(KERNEL_FILTER)) == redirect
    assert delete_filter(redirect)[2].startswith(bytes.fromhex("000000000100000000080080f2ffffff00030100"))
    assert decode_filter(bytes.fromhex(KERNEL_TABLE)) == Filter(1, 0xFFFFFFF2, 0x80000000, 1, 3, "u32")
    assert INGRESS_HANDLE == 0xFFFF0000


@pytest.mark.parametrize(
    "other",
    [
        TokenBucket(1_000_001, 100_000, 5_000),
        TokenBucket(1_000_000, 101_000, 5_000),
        TokenBucket(1_000_000, 100_000, 5_001),
        TokenBucket(1_000_000, 100_000, 5_000, 2_000_000, 2_000),
    ],
    ids=str,
)
def test_another_bucket_is_told_from_what_was_read(other: TokenBucket) -> None:
    state = BucketState(1_000_000, 5_000, ticks(100_000, 1_000_000))
    assert state.is_of(TokenBucket(1_000_000, 100_000, 5_000))
    assert not state.is_of(other)


def test_a_burst_whose_time_does_not_fit_is_known_by_its_low_bits() -> None:
    bucket = TokenBucket(rate=125, burst=1 << 29, limit=3_000)
    long = ticks(bucket.burst, bucket.rate)
    assert long > U32_MAX
    assert BucketState(125, 3_000, long & U32_MAX).is_of(bucket)
    assert not BucketState(125, 3_000, (long + 1_000_000_000) & U32_MAX).is_of(bucket)


def test_ifb_is_made_down_and_without_an_address() -> None:
    kind, flags, body = new_ifb("bw0", 1400)
    assert (kind, flags, body[:16]) == (16, NLM_F_CREATE | NLM_F_EXCL, bytes(16))
    found = attrs(body, 16)
    assert (found[3], found[4], attrs(found[18])[1]) == (b"bw0\0", struct.pack("=I", 1400), b"ifb\0")
    kind, flags, body = no_link_local(9)
    assert (kind, flags, body[:16]) == (16, 0, struct.pack("=BxHiII", 0, 0, 9, 0, 0))
    assert attrs(attrs(attrs(body, 16)[26])[10]) == {8: b"\1"}
