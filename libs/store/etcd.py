"""The store over etcd v3's gRPC API: our own thin client on the protobuf stubs that aetcd ships (docs/adr/0003)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from libs.store.api import (
    Compacted,
    Compare,
    Conflict,
    FutureRevision,
    KeyExists,
    KeyValue,
    LeaseLost,
    Listing,
    Op,
    Page,
    Put,
    ServerStatus,
    StoreError,
    Summary,
    TxnResult,
    WatchBatch,
)
from libs.store.codec import (
    compare_revision,
    decode_key,
    encode_key,
    first_key_value,
    get_op,
    key_value,
    pb,
    prefix_range,
    txn_request,
    write_op,
)
from libs.store.config import StoreConfig
from libs.store.connection import Connection, PermissionDenied
from libs.store.lease import LeaseKeeper
from libs.store.watch import Watch

if TYPE_CHECKING:
    from libs.store.discovery import Discovery

_COMPACTED = "required revision has been compacted"
_FUTURE = "required revision is a future revision"
_LIST_TRIES = 5


class EtcdStore:
    """Make it inside a running event loop; nothing is sent before the first call. See `api.Store` for what each method
    promises. discovery: how to find the members where config names a domain; else by the system's resolv.conf.
    """

    def __init__(self, config: StoreConfig, discovery: Discovery | None = None) -> None:
        self._config = config
        self._connection = Connection(config, discovery=discovery)
        self._leases = LeaseKeeper(self._connection)

    @property
    def cluster_id(self) -> int | None:
        """Of the server that answered last; None before any did."""
        return self._connection.cluster_id

    # --- reads -------------------------------------------------------------------------------------------------------

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        reply = await self._range(pb.RangeRequest(key=encode_key(key), revision=revision))
        return first_key_value(reply.kvs)

    async def list(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Listing:
        for _ in range(_LIST_TRIES - 1):
            try:
                return await self._list_once(prefix, revision, keys_only)
            except Compacted:
                if revision:
                    raise  # otherwise a compaction overtook us between two pages: begin anew at a younger revision
        return await self._list_once(prefix, revision, keys_only)

    async def _list_once(self, prefix: str, revision: int, keys_only: bool) -> Listing:
        start, range_end = prefix_range(prefix)
        kvs: list[KeyValue] = []
        while True:
            request = pb.RangeRequest(
                key=start, range_end=range_end, limit=self._config.page_keys, revision=revision, keys_only=keys_only
            )
            reply = await self._range(request)
            revision = revision or reply.header.revision
            kvs += map(key_value, reply.kvs)
            if not reply.more:
                return Listing(kvs, revision)
            start = reply.kvs[-1].key + b"\0"

    async def page(self, prefix: str, *, limit: int, after: str = "", revision: int = 0) -> Page:
        start, range_end = prefix_range(prefix)
        if after:
            start = encode_key(after) + b"\0"
        request = pb.RangeRequest(key=start, range_end=range_end, limit=limit, revision=revision)
        try:
            reply = await self._range(request)
        except StoreError as error:
            if _FUTURE not in str(error):
                raise
            raise FutureRevision(revision, (await self.status()).revision) from error
        kvs = list(map(key_value, reply.kvs))
        return Page(kvs, revision or reply.header.revision, reply.count - len(kvs))

    async def summary(self, prefix: str, *, after: int) -> Summary:
        # Filtered by revision, etcd still counts all keys of the range (server/etcdserver/apply.go, Range).
        key, range_end = prefix_range(prefix)
        request = pb.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True, min_mod_revision=after + 1)
        reply = await self._range(request)
        return Summary(reply.count, bool(reply.kvs), reply.header.revision)

    async def _range(self, request: Any) -> Any:
        try:
            return await self._connection.read(lambda at: at.kv.Range, request)
        except StoreError as error:
            if _COMPACTED in str(error):
                raise Compacted(await self._oldest_revision(request)) from error
            raise

    async def _oldest_revision(self, request: Any) -> int:
        """What a Range that came too late does not tell: a watch at that revision is refused with the answer."""
        prefix = decode_key(request.key)
        async with aclosing(self.watch(prefix, revision=request.revision)) as batches:
            try:
                await anext(batches)
            except Compacted as compacted:
                return compacted.revision
        return int(request.revision)

    def watch(
        self, prefix: str, *, revision: int, known: dict[str, int] | None = None
    ) -> AsyncGenerator[WatchBatch, None]:
        return Watch(self._connection, prefix, revision, known, self.list).batches()

    async def status(self) -> ServerStatus:
        """Raises StoreUnavailable unless a majority of the cluster answers: the revision is that of a linearizable
        read.
        """
        member = await self._connection.read(lambda at: at.maintenance.Status, pb.StatusRequest())
        header = member.header
        with suppress(PermissionDenied):  # etcd looks at permissions only after the majority has answered
            header = (await self._range(pb.RangeRequest(key=encode_key(self._config.probe_key), keys_only=True))).header
        return ServerStatus(header.cluster_id, header.member_id, header.revision, member.version)

    # --- writes ------------------------------------------------------------------------------------------------------

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        reply = await self._swap(key, 0, Put(key, value, lease))
        if reply.succeeded:
            return int(reply.header.revision)
        current = first_key_value(reply.responses[0].response_range.kvs)
        assert current is not None, "etcd says that the key exists, and does not return it"
        raise KeyExists(current)

    async def update(self, key: str, value: bytes, *, mod_revision: int, lease: int = 0) -> int:
        if mod_revision < 1:
            raise ValueError("update needs the revision it replaces; use create for a new key")
        reply = await self._swap(key, mod_revision, Put(key, value, lease))
        if reply.succeeded:
            return int(reply.header.revision)
        raise Conflict(key, first_key_value(reply.responses[0].response_range.kvs))

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        request = pb.PutRequest(key=encode_key(key), value=value, lease=lease)
        reply = await self._connection.write(lambda at: at.kv.Put, request)
        return int(reply.header.revision)

    async def delete(self, key: str, *, mod_revision: int | None = None) -> int | None:
        raw = encode_key(key)
        if mod_revision is None:
            reply = await self._connection.write(lambda at: at.kv.DeleteRange, pb.DeleteRangeRequest(key=raw))
            return int(reply.header.revision) if reply.deleted else None
        if mod_revision < 1:
            raise ValueError("delete needs the revision of what it removes, or None")
        request = pb.TxnRequest(
            compare=[compare_revision(raw, mod_revision)],
            success=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=raw))],
            failure=[get_op(raw)],
        )
        reply = await self._connection.write(lambda at: at.kv.Txn, request)
        if reply.succeeded:
            return int(reply.header.revision)
        raise Conflict(key, first_key_value(reply.responses[0].response_range.kvs))

    async def _swap(self, key: str, mod_revision: int, op: Op) -> Any:
        raw = encode_key(key)
        request = pb.TxnRequest(
            compare=[compare_revision(raw, mod_revision)], success=[write_op(op)], failure=[get_op(raw)]
        )
        return await self._connection.write(lambda at: at.kv.Txn, request)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        reply = await self._connection.write(lambda at: at.kv.Txn, txn_request(compares, ops))
        if reply.succeeded:
            return TxnResult(True, reply.header.revision, {})
        names = dict.fromkeys(compare.key for compare in compares)
        found = (first_key_value(response.response_range.kvs) for response in reply.responses)
        return TxnResult(False, reply.header.revision, dict(zip(names, found, strict=True)))

    # --- leases and the rest -----------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int) -> int:
        return await self._leases.grant(ttl_s)

    async def lease_revoke(self, lease: int) -> None:
        self._leases.forget(lease)
        with suppress(LeaseLost):  # which is what was wanted
            await self._connection.read(lambda at: at.lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=lease))

    def lease_left_s(self, lease: int) -> float:
        return self._leases.left_s(lease)

    async def compact(self, revision: int) -> None:
        try:
            await self._connection.read(lambda at: at.kv.Compact, pb.CompactionRequest(revision=revision))
        except StoreError as error:
            if _COMPACTED not in str(error):
                raise

    async def close(self) -> None:
        await self._leases.close()
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


async def connect(config: StoreConfig) -> EtcdStore:
    """A store that has reached etcd once. Raises StoreUnavailable or StoreAuthError."""
    store = EtcdStore(config)
    try:
        await store.status()
    except BaseException:
        await store.close()
        raise
    return store
