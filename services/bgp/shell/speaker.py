"""The speaker on the event loop: peers, tables, kernel, and who is served first.

What peers say goes into the tables as it arrives. Then, in turns of the loop: other peers are told, in pieces as large
as their sockets take, and the kernel gets a slice of routes, written by its own thread meanwhile. So a table of a
hundred thousand routes is at the next peer long before it is in the kernel, and keepalives are never late.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

from services.bgp.core.paths import Change, Family, IPAddress, IPNetwork
from services.bgp.core.rib.peers import Session
from services.bgp.core.rib.rib import Rib
from services.bgp.core.session.negotiation import Negotiated, Restart
from services.bgp.core.settings import PeerSettings, SecretRef, SpeakerSettings
from services.bgp.core.wire.errors import Cease, ErrorCode, Notification
from services.bgp.shell.kernel import Kernel
from services.bgp.shell.listener import Listener
from services.bgp.shell.peer import Peer
from services.bgp.shell.secrets import NotYet, Secrets

log = logging.getLogger(__name__)

PIECE = 64 * 1024  # octets of UPDATEs handed to one peer at a time
DEFERRAL_S = 120.0  # after a restart, how long peers may take to tell their routes again (RFC 4724 section 4.1)
SECRETS_EVERY_S = 2.0
DYNAMIC_LOOK_S = 5.0
DYNAMIC_LIMIT = 1000  # peers at a time that no settings name, only a range of addresses

Password = bytes | str | None


class Speaker:
    """`start` once, then `configure` as often as settings change; `stop` leaves the kernel's routes in place."""

    def __init__(self, settings: SpeakerSettings, kernel: Kernel, secrets: Secrets, random: Random) -> None:
        self.settings = settings
        self.kernel = kernel
        self.peers: dict[str, Peer] = {}
        self.dynamic: dict[str, Peer] = {}
        self.configured_at = datetime.now(UTC)
        self.on_session: list[Callable[[Peer], None]] = []  # came up, went down, or is not wanted any more
        self.rib: Rib
        self._secrets = secrets
        self._known_secrets: Mapping[SecretRef, bytes | str] = {}
        self._random = random
        self._listener = Listener(self._accept)
        self._restart = Restart()
        self._pump: asyncio.Handle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._reading = asyncio.Lock()

    async def start(self) -> None:
        """Takes over what the kernel has of an earlier life, then begins the sessions."""
        restarted = await self.kernel.start(self)
        kept = frozenset(family for family in Family if self.kernel.fib.held[family])
        # Peers ask about the node, not the program: what BIRD left goes on leading there, and to the node's own pods.
        # So it is a restart, and nothing is complete (a reflector's routes above all) before they have told theirs.
        birds = await self.kernel.fib.predecessor()
        restarted, kept = restarted or bool(birds), kept | birds
        self._restart = Restart(restarting=restarted, preserved=kept)
        deferral_s = DEFERRAL_S if restarted else None
        self.rib = Rib(self.settings, self.kernel.next_hops.resolve, time.monotonic(), deferral_s)
        self.kernel.attach(self.rib)
        await self._read_secrets(self.settings)
        self._apply_peers(self.settings)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self.kernel.write_forever(), name="kernel routes"),
            loop.create_task(self._watch_secrets(), name="secrets"),
        ]
        self.wake()

    async def configure(self, settings: SpeakerSettings) -> None:
        """New settings, live. Sessions that they do not touch go on."""
        await self._read_secrets(settings)
        before, self.settings = self.settings, settings
        self.configured_at = datetime.now(UTC)
        if (before.router_id, before.local_as) != (settings.router_id, settings.local_as):
            log.warning("router ID or AS number changed: all sessions begin again")
            self._end(list(self.peers) + list(self.dynamic))
        self.rib.configure(settings, [peer.settings for peer in self.dynamic.values()])
        self.kernel.configure(settings)
        self._apply_peers(settings)
        self.wake()

    async def stop(self) -> None:
        """Closes without a word: peers with graceful restart keep our routes, the kernel keeps theirs."""
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in (*self.peers.values(), *self.dynamic.values()):
            peer.abandon()
        for handle in (self._pump, self._expiry):
            if handle is not None:
                handle.cancel()
        await self.kernel.stop()

    @property
    def failures(self) -> dict[str, str]:
        """What of the settings cannot be done on this host just now, by what it concerns."""
        held = {f"peer {peer.name}": peer.held_down for peer in self.peers.values() if peer.held_down}
        return {**self._listener.failures, **held, **self.kernel.failures}

    def all_peers(self) -> list[Peer]:
        return [*self.peers.values(), *self.dynamic.values()]

    # --- peers ---

    def _apply_peers(self, settings: SpeakerSettings) -> None:
        wanted = {peer.name: peer for peer in settings.peers}
        fixed = {name: peer for name, peer in wanted.items() if peer.prefix is None}
        ranges = {name: peer for name, peer in wanted.items() if peer.prefix is not None}
        self._end([name for name in self.peers if name not in fixed])
        self._end([name for name, peer in self.dynamic.items() if not _covered(peer.settings, ranges.values())])
        addresses = (*settings.bind, *settings.local_peering) if settings.bind else ()
        self._listener.configure(addresses, settings.listen_port, self._passwords(settings))
        for name, one in fixed.items():
            secret = self._secret(one)
            if (peer := self.peers.get(name)) is not None:
                peer.update(one, secret)
            else:
                peer = self.peers[name] = self._make(one, secret)
                peer.start()
        for peer in self.dynamic.values():
            peer.update(peer.settings, self._secret(peer.settings))
        self.rib.hold_down(name for name, peer in self.peers.items() if _held_for_good(peer))

    def _make(self, settings: PeerSettings, secret: Password, gone: Callable[[Peer], None] | None = None) -> Peer:
        return Peer(
            settings,
            self.settings.router_id,
            self,
            self._random,
            secret=secret,
            restart=self._restart,
            hostname=self.settings.node,
            gone=gone,
        )

    def _end(self, names: list[str]) -> None:
        """Peers that are not wanted any more, their routes with them."""
        for name in names:
            peer = self.peers.pop(name, None) or self.dynamic.pop(name)
            peer.stop(Notification(ErrorCode.CEASE, Cease.PEER_DECONFIGURED))
            self.rib.forget(name)
            self._session_changed(peer)
            log.info("peer removed", extra={"peer": name})

    def _accept(self, channel: socket.socket, address: IPAddress) -> None:
        """Of several peers with one address, the one that is not up: ports do not tell them apart."""
        known = [peer for peer in self.all_peers() if peer.settings.address == address and not peer.held_down]
        peer = next((one for one in known if not one.up), known[0] if known else self._make_dynamic(address))
        reason = ""
        if peer is None:
            reason = "not a peer of ours, or one that is held down"
        elif peer.password is not None and not self._listener.signs(
            peer.settings.prefix or peer.settings.address, peer.password
        ):
            reason = "the kernel does not check its password"
        if peer is None or reason:
            log.warning("connection refused", extra={"address": str(address), "reason": reason})
            channel.close()
            return
        peer.accept(channel)

    def _make_dynamic(self, address: IPAddress) -> Peer | None:
        for one in self.settings.peers:
            if one.prefix is None or address.version != one.prefix.version or address not in one.prefix:
                continue
            if isinstance(self._secret(one), str):
                return None  # held down, as a range
            if len(self.dynamic) >= DYNAMIC_LIMIT:
                log.error("too many dynamic peers", extra={"limit": DYNAMIC_LIMIT})
                return None
            settings = replace(one, name=f"{one.name}_{address}", address=address, passive=True)
            peer = self.dynamic[settings.name] = self._make(settings, self._secret(one), self._dynamic_gone)
            peer.start()
            return peer
        return None

    def _dynamic_gone(self, peer: Peer) -> None:
        """Its connections have ended. It is kept while its routes are: it may be restarting."""
        if self.dynamic.get(peer.name) is not peer or not peer.quiet:
            return
        if any(self.rib.counts(peer.name, family).received for family in Family):
            asyncio.get_running_loop().call_later(DYNAMIC_LOOK_S, self._dynamic_gone, peer)
        else:
            self._end([peer.name])

    # --- secrets ---

    def _secret(self, peer: PeerSettings) -> Password:
        if peer.password is None:
            return None
        return self._known_secrets.get(peer.password, NotYet("its password was not read yet"))

    def _passwords(self, settings: SpeakerSettings) -> dict[IPAddress | IPNetwork, bytes]:
        found: dict[IPAddress | IPNetwork, bytes] = {}
        for peer in settings.peers:
            secret = self._secret(peer)
            if isinstance(secret, bytes):
                found[peer.prefix or peer.address] = secret
        return found

    async def _read_secrets(self, settings: SpeakerSettings) -> bool:
        """True when something is another than before."""
        async with self._reading:  # a slow look at older settings must not come last
            wanted = (*settings.peers, *self.settings.peers)
            refs = {peer.password for peer in wanted if peer.password is not None}
            found = await self._secrets.read(refs)
            changed, self._known_secrets = found != self._known_secrets, found
            return changed

    async def _watch_secrets(self) -> None:
        while True:
            await asyncio.sleep(SECRETS_EVERY_S)
            try:
                if await self._read_secrets(self.settings) or self._listener.failures:
                    self._apply_peers(self.settings)
            except Exception:
                log.exception("secrets not looked at")

    # --- what peers say ---

    def established(self, peer: Peer, negotiated: Negotiated) -> None:
        own = {Family.IPV4 if one.version == 4 else Family.IPV6: one.packed for one in self.settings.addresses}
        session = Session(
            context=negotiated.context,
            remote_as=negotiated.theirs.asn,
            remote_id=negotiated.theirs.router_id,
            addresses={**own, **peer.local_addresses},
            graceful=frozenset(negotiated.families) if negotiated.expects_end_of_rib else frozenset(),
            preserved=negotiated.forwarding,
            restarting=negotiated.peer_restarting,
            restart_time_s=negotiated.restart_time_s or 0,
            long_lived=dict(negotiated.long_lived),
            knows_long_lived=negotiated.knows_long_lived,
            long_lived_preserved=negotiated.long_lived_forwarding,
            long_lived_only=frozenset(dict(negotiated.long_lived)) - negotiated.kept_families,
        )
        self.rib.peer_up(peer.settings, session, time.monotonic())
        self._session_changed(peer)
        self.wake()

    def down(self, peer: Peer, kept: tuple[Family, ...]) -> None:
        self.rib.peer_down(peer.name, time.monotonic(), kept)
        self._session_changed(peer)
        self.wake()

    def received(self, peer: Peer, changes: list[Change]) -> None:
        self.rib.receive(peer.name, changes, time.monotonic())
        self.wake()

    def refresh_requested(self, peer: Peer, family: Family) -> None:
        if not self.rib.sweep_allowed(family):
            return  # after our own restart: nothing is told yet, and all of it will be
        peer.answer_refresh(family)
        self.rib.refresh(peer.name, family)
        self.wake()

    def refreshing(self, peer: Peer, family: Family, begins: bool) -> None:
        if begins:
            self.rib.begin_refresh(peer.name, family)
        else:
            self.rib.end_refresh(peer.name, family)
        self.wake()

    def drained(self, peer: Peer) -> None:
        self.wake()

    def _session_changed(self, peer: Peer) -> None:
        for tell in self.on_session:
            tell(peer)

    # --- turns ---

    def wake(self) -> None:
        """There may be something to tell: once in this turn of the loop."""
        if self._pump is None:
            self._pump = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._pump = None
        more = False
        for peer in self.all_peers():
            if peer.up and peer.writable:
                more |= self._tell(peer)
        if self._restart.restarting and all(self.rib.sweep_allowed(family) for family in Family):
            self._restart = Restart()
            for peer in self.all_peers():
                peer.session.restart = self._restart
            log.info("all routes are known again")
        self.kernel.wake()
        self._arm()
        if more:
            self.wake()

    def _tell(self, peer: Peer) -> bool:
        """True when there was something. What cannot be told to one peer is not to keep the others waiting."""
        try:
            messages = self.rib.take_messages(peer.name, PIECE)
        except Exception:
            log.exception("peer cannot be told its routes", extra={"peer": peer.name})
            peer.reset("internal error")
            return False
        if messages:
            peer.send(messages)
        else:
            peer.told_everything()
        return bool(messages)

    def _arm(self) -> None:
        deadline = self.rib.deadline()
        if deadline is None or (self._expiry is not None and self._expires_at <= deadline):
            return
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at = deadline
        delay_s = max(0.0, deadline - time.monotonic())
        self._expiry = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self.rib.expire(time.monotonic())
        self.wake()


def _held_for_good(peer: Peer) -> bool:
    """For as long as settings and secrets stay as they are. While a password is only not known yet, as when the
    Kubernetes API is away, the peer may be back any moment: after a restart it is waited for like the others.
    """
    return bool(peer.held_down) and not isinstance(peer.secret, NotYet)


def _covered(peer: PeerSettings, ranges: Iterable[PeerSettings]) -> bool:
    """Is a dynamic peer's range still there, unchanged?"""
    return any(peer == replace(one, name=peer.name, address=peer.address, passive=True) for one in ranges)
