from __future__ import annotations

import errno
import struct

import pytest

from libs.netlink.codec import (
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NetlinkError,
    ObjectBusy,
    ObjectExists,
    ObjectNotFound,
    StaleGeneration,
    attr,
    attr_items,
    attrs,
    be32,
    cstring,
    decode_error,
    error_for,
    message,
    nest,
    split_messages,
    text,
    u32,
)


def test_attribute_is_padded_but_its_length_is_not() -> None:
    assert attr(7, b"abcde") == struct.pack("=HH", 9, 7) + b"abcde\0\0\0"


def test_attributes_survive_a_round_trip() -> None:
    data = text(1, "name") + u32(2, 7) + be32(3, 9) + nest(4, u32(1, 1), u32(2, 2))
    found = attrs(data)
    assert cstring(found[1]) == "name"
    assert found[2] == struct.pack("=I", 7)
    assert found[3] == struct.pack("!I", 9)
    assert attrs(found[4]) == {1: struct.pack("=I", 1), 2: struct.pack("=I", 2)}


@pytest.mark.parametrize("data", [b"\xff\xff\1\0", b"\3\0\1\0", struct.pack("=HH", 12, 1) + b"\0\0"])
def test_attribute_with_an_impossible_length_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="claims"):
        list(attr_items(data))


def test_too_long_an_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        attr(1, bytes(65_532))


def test_messages_of_one_datagram_are_split() -> None:
    data = message(1, 2, 3, b"abc") + message(4, 5, 6, b"")
    assert [(k, f, s, b) for k, f, s, _, b in split_messages(data)] == [(1, 2, 3, b"abc"), (4, 5, 6, b"")]


def test_message_with_an_impossible_length_is_refused() -> None:
    with pytest.raises(ValueError, match="claims"):
        list(split_messages(message(1, 0, 1, b"abcd")[:-2]))


def test_error_reply_tells_code_words_and_offset() -> None:
    request = struct.pack("=IHHII", 100, 1, 2, 3, 4)
    tail = text(1, "no such thing") + u32(2, 44)
    capped = struct.pack("=i", -errno.EINVAL) + request + tail
    assert decode_error(capped, NLM_F_CAPPED | NLM_F_ACK_TLVS) == (errno.EINVAL, "no such thing", 44)
    whole = struct.pack("=i", -errno.EINVAL) + request + bytes(84) + tail
    assert decode_error(whole, NLM_F_ACK_TLVS) == (errno.EINVAL, "no such thing", 44)
    assert decode_error(struct.pack("=i", 0) + request, NLM_F_CAPPED) == (0, "", None)


def test_short_error_reply_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        decode_error(b"\0\0", 0)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EEXIST, ObjectExists),
        (errno.ENOENT, ObjectNotFound),
        (errno.ESRCH, ObjectNotFound),
        (errno.EBUSY, ObjectBusy),
        (errno.ERESTART, StaleGeneration),
        (errno.EINVAL, NetlinkError),
    ],
)
def test_errno_decides_the_exception(code: int, kind: type[NetlinkError]) -> None:
    error = error_for(code, "route 10.0.0.0/8", "because")
    assert type(error) is kind
    assert error.errno == code
    assert "route 10.0.0.0/8: because" in str(error)
