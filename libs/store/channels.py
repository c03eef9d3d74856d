"""One etcd member each: its gRPC channel with the stubs on it, how to wait for it and how to leave it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from aetcd.rpc import rpc_pb2_grpc as stubs

from libs.store.config import StoreConfig, split_endpoint

_MAX_MESSAGE_BYTES = 256 * 1024 * 1024


@dataclass(slots=True)
class Endpoint:
    """priority: of its SRV record; those with the lowest number are tried first (RFC 2782)."""

    url: str
    channel: grpc.aio.Channel
    kv: Any
    watch: Any
    lease: Any
    maintenance: Any
    auth: Any
    priority: int = 0

    @property
    def ready(self) -> bool:
        return self.channel.get_state() is grpc.ChannelConnectivity.READY


def open_endpoint(url: str, config: StoreConfig, priority: int = 0) -> Endpoint:
    """Nothing is sent before the first use."""
    secure, target = split_endpoint(url)
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", int(config.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(config.keepalive_timeout_s * 1000)),  # else 60 s in spite of the above
        ("grpc.http2.max_pings_without_data", 0),  # a quiet watch must notice a dead peer too
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),  # etcd is never behind the proxy that the shell happens to name
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if secure:
        credentials = grpc.ssl_channel_credentials(config.ca or None, config.key or None, config.cert or None)
        channel = grpc.aio.secure_channel(target, credentials, options=options)
    else:
        channel = grpc.aio.insecure_channel(target, options=options)
    return Endpoint(
        url,
        channel,
        kv=stubs.KVStub(channel),
        watch=stubs.WatchStub(channel),
        lease=stubs.LeaseStub(channel),
        maintenance=stubs.MaintenanceStub(channel),
        auth=stubs.AuthStub(channel),
        priority=priority,
    )


async def connects(channel: grpc.aio.Channel) -> bool:
    """Whether the attempt now under way, or a new one, succeeds."""
    state = channel.get_state(try_to_connect=True)
    while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return state is grpc.ChannelConnectivity.READY


async def until_ready(channel: grpc.aio.Channel, delay_s: float = 0.0) -> None:
    """Like `channel_ready`, but asks again for a connection whenever the channel has given up. delay_s: before the
    first try, unless it is connected already.
    """
    if channel.get_state() is not grpc.ChannelConnectivity.READY:
        await asyncio.sleep(delay_s)
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def retire(endpoints: Iterable[Endpoint], grace_s: float) -> None:
    """Closes them once their calls have ended, at the latest after grace_s."""
    await asyncio.gather(*(endpoint.channel.close(grace_s) for endpoint in endpoints))
