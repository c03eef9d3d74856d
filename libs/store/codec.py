"""etcd's protobuf messages to and from the values of `api` (api/etcdserverpb/rpc.proto, api/mvccpb/kv.proto)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from aetcd.rpc import kv_pb2, rpc_pb2

from libs.store.api import Compare, Delete, Event, KeyValue, Op, Put

pb: Any = rpc_pb2
_DELETE: int = kv_pb2.Event.DELETE


def encode_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def decode_key(raw: bytes) -> str:
    """Bytes that are not UTF-8 survive a round trip; nobody writes such keys, but a list must not fail over one."""
    return raw.decode("utf-8", "surrogateescape")


def prefix_end(prefix: bytes) -> bytes:
    """First key after all that begin with `prefix`; `\\0` means "to the end"."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """(key, range_end) that cover a prefix. etcd has no empty key: everything begins at `\\0`."""
    raw = encode_key(prefix)
    return raw or b"\0", prefix_end(raw)


def key_value(raw: Any) -> KeyValue:
    return KeyValue(decode_key(raw.key), raw.value, raw.mod_revision, raw.create_revision, raw.version, raw.lease)


def first_key_value(raw: Sequence[Any]) -> KeyValue | None:
    return key_value(raw[0]) if raw else None


def event(raw: Any) -> Event:
    previous = key_value(raw.prev_kv) if raw.HasField("prev_kv") else None
    if raw.type == _DELETE:
        return Event(decode_key(raw.kv.key), None, raw.kv.mod_revision, previous)
    found = key_value(raw.kv)
    return Event(found.key, found, found.mod_revision, previous)


def get_op(key: bytes) -> Any:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def write_op(op: Op) -> Any:
    match op:
        case Put(key, value, lease):
            return pb.RequestOp(request_put=pb.PutRequest(key=encode_key(key), value=value, lease=lease))
        case Delete(key):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=encode_key(key)))


def compare_revision(key: bytes, mod_revision: int) -> Any:
    """A key that does not exist compares as mod_revision 0."""
    return pb.Compare(key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=mod_revision)


def txn_request(compares: Sequence[Compare], ops: Iterable[Op]) -> Any:
    """If all compares hold the ops, else a look at every compared key."""
    keys = list(dict.fromkeys(encode_key(compare.key) for compare in compares))
    return pb.TxnRequest(
        compare=[compare_revision(encode_key(compare.key), compare.mod_revision) for compare in compares],
        success=[write_op(op) for op in ops],
        failure=[get_op(key) for key in keys],
    )
