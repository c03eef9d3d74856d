"""What `nats.NatsBus` does to one nats-py client: the few places that reach into the library, or work around it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from libs.bus.api import BusPayloadTooLarge
from libs.bus.config import BusConfig, BusConfigError

UNLIMITED = 1 << 62
PORT = 4222


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to its end a coroutine of nats-py that has nothing to wait for, given the unlimited queues above."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("nats-py waited where it should not: was the client made with unlimited queues?")


def publish_on(client: Client, subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
    try:
        now(client.publish(subject, data, reply, dict(headers) if headers else None))
    except nats.errors.ConnectionClosedError:
        pass  # closed under us and the supervisor not told yet: lost, as it would be on the wire
    except nats.errors.MaxPayloadError as error:
        raise BusPayloadTooLarge(str(error)) from error


async def resolve(server: str) -> None:
    """Raises OSError when there is no such host. Before nats-py asks the same: given up in the middle, uvloop's
    connecting leaves the question behind, and its late answer is logged as an exception that nobody retrieved.
    """
    url = urlsplit(server)
    await asyncio.get_running_loop().getaddrinfo(url.hostname, url.port or PORT, type=socket.SOCK_STREAM)


async def flush(client: Client, timeout_s: float) -> None:
    """A real barrier. The first PING may overtake queued messages, but it makes the flusher write them; so the second
    cannot.
    """
    async with asyncio.timeout(timeout_s):
        await client.flush(timeout_s)
        await client.flush(timeout_s)
    if client.is_closed:
        raise nats.errors.ConnectionClosedError


async def abort(client: Client) -> None:
    """Drop the connection at once. `Client.close` first tries to send, which never ends when the peer is stopped."""
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    client._pending, client._pending_data_size = [], 0
    with contextlib.suppress(Exception):
        async with asyncio.timeout(2.0):
            await client.close()


def backlog_bytes(client: Client) -> int:
    """What was published and has not been taken by the socket yet."""
    writer = getattr(client._transport, "_io_writer", None)
    buffered: int = writer.transport.get_write_buffer_size() if writer is not None else 0
    return buffered + int(client.pending_data_size)


def where(client: Client) -> str:
    server = client._current_server
    return str(server.uri.netloc.rpartition("@")[2]) if server else "?"


def tls_context(config: BusConfig) -> ssl.SSLContext | None:
    if not (config.ca_file or config.cert_file or any(url.startswith("tls://") for url in config.servers)):
        return None
    try:
        context = ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file else None)
        if config.cert_file and config.key_file:
            context.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise BusConfigError(f"TLS files of the bus cannot be used: {error}") from error
    return context


def auth_options(config: BusConfig) -> dict[str, Any]:
    if config.creds_file or config.nkey_file:
        try:
            import nkeys  # type: ignore[import-not-found] # noqa: F401
        except ImportError as error:
            raise BusConfigError("NATS_CREDS and NATS_NKEY need the package nkeys (nats-py[nkeys])") from error
    options = {
        "user": config.user,
        "password": config.password,
        "token": config.token,
        "user_credentials": str(config.creds_file) if config.creds_file else None,
        "nkeys_seed": str(config.nkey_file) if config.nkey_file else None,
    }
    return {key: value for key, value in options.items() if value}
