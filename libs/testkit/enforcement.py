"""How long a policy change takes: from handing it to etcd to the first packet that is treated the new way.

A client sends a small UDP or TCP probe every half millisecond through the real dataplane; the change flips what happens
to it, and the clock stops at the first probe whose fate is the new one. Both directions of the flip are measured, in
turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass

from libs import model
from libs.model import keys
from libs.store.api import Store
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.topology import Namespace

NAME = "enforcement-probe"
GIVE_UP_S = 10.0


@dataclass(frozen=True, slots=True)
class Change:
    """Milliseconds until the first packet was treated the new way: from handing the change to etcd's client, and from
    etcd's answer (below zero when the packet was sooner).
    """

    deny: bool
    from_put_ms: float
    from_ack_ms: float


class Prober:
    """Tries new UDP flows from `source` to `target` all the time; `wait(allowed)` returns when one has that fate."""

    def __init__(self, source: Namespace, address: str, target: Namespace, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._address = (address, port)
        self._server = target.socket(family, socket.SOCK_DGRAM)
        self._server.bind((address, port))
        self._server.setblocking(False)
        self._source = source
        self._family = family

    def wait(self, allowed: bool, started: threading.Event) -> float:
        """Moment (monotonic) at which the first packet with the wanted fate was sent. Raises TimeoutError.

        Every probe is a flow of its own (a fresh source port), so connection tracking never answers for the policy.
        On one machine a packet's way is walked inside the send call, so what did not arrive right after it never will.
        """
        deadline = time.monotonic() + GIVE_UP_S
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(self._source.socket(self._family, socket.SOCK_RAW, socket.IPPROTO_UDP))
            sport = 20_000
            number = 0
            started.set()
            while time.monotonic() < deadline:
                sport = 20_000 + (sport - 20_000 + 1) % 40_000
                number += 1
                sent_at = time.monotonic()
                payload = number.to_bytes(8, "big")
                length = 8 + len(payload)
                header = struct.pack("!HHHH", sport, self._address[1], length, 0)
                with contextlib.suppress(OSError):
                    client.sendto(header + payload, (self._address[0], 0))
                if self._arrived(payload) is allowed:
                    return sent_at
                time.sleep(0.0002)
        raise TimeoutError(f"no packet was {'allowed' if allowed else 'denied'} within {GIVE_UP_S:g} s")

    def _arrived(self, payload: bytes) -> bool:
        deadline = time.monotonic() + 0.0005
        while True:
            try:
                if self._server.recv(64) == payload:
                    return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False

    def close(self) -> None:
        self._server.close()


def flip_policy(target: Pod, deny: bool) -> bytes:
    """A GlobalNetworkPolicy before all others that denies, or allows, everything to `target`, as etcd stores it."""
    app = target.labels.get("app", target.name)
    policy = model.GlobalNetworkPolicy(
        metadata=model.ObjectMeta(
            name=NAME, uid="00000000-0000-4000-8000-000000000001", creation_timestamp="2026-01-01T00:00:00Z"
        ),
        spec=model.GlobalNetworkPolicySpec(
            tier="default",
            order=-1000,
            selector=f"projectcalico.org/namespace == '{target.namespace}' && app == '{app}'",
            types=["Ingress"],
            ingress=[model.Rule(action="Deny" if deny else "Allow")],
        ),
    )
    return model.to_storage(policy)


async def measure(
    cluster: Cluster, store: Store, source: Pod, target: Pod, *, port: int, changes: int, family: int = 4
) -> list[float]:
    """Milliseconds of each change, deny and allow in turn, from handing it to etcd's client."""
    done = await measure_changes(cluster, store, source, target, port=port, changes=changes, family=family)
    return [change.from_put_ms for change in done]


async def measure_changes(
    cluster: Cluster, store: Store, source: Pod, target: Pod, *, port: int, changes: int, family: int = 4
) -> list[Change]:
    """Deny and allow in turn. Removes its policy in the end."""
    prober = Prober(source.netns, str(target.address(family)), target.netns, port + 10_000)
    key = keys.resource_key("GlobalNetworkPolicy", NAME)
    samples: list[Change] = []
    try:
        await store.put(key, flip_policy(target, deny=False))
        await asyncio.to_thread(prober.wait, True, threading.Event())
        for number in range(changes):
            deny = number % 2 == 0
            started = threading.Event()
            waiting = asyncio.ensure_future(asyncio.to_thread(prober.wait, not deny, started))
            await asyncio.to_thread(started.wait, 5.0)
            value = flip_policy(target, deny)
            begun = time.monotonic()
            await store.put(key, value)
            acked = time.monotonic()
            seen = await waiting
            samples.append(Change(deny, (seen - begun) * 1000, (seen - acked) * 1000))
    finally:
        prober.close()
        with contextlib.suppress(Exception):
            await store.delete(key)
    return samples
