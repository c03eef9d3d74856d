"""etcd's members by DNS (ETCD_DISCOVERY_SRV): SRV records `_etcd-client-ssl._tcp.DOMAIN`, and for plain HTTP
`_etcd-client._tcp.DOMAIN`.

Flows in: a domain, and what the servers of resolv.conf say. Flows out: endpoints in the order to try them (RFC 2782).
The targets stay names, for the certificates of the members are checked against them; gRPC looks up their addresses,
IPv4 and IPv6.

etcd's own client (client/pkg/v3/srv, `GetClient`) takes the records of both names together. Here plain members count
only where there are no others, and not at all with certificates configured: who can spoil one DNS answer would else
be told our password. Nor does a lookup that failed count as "no records".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

import dns.asyncresolver
import dns.exception
import dns.resolver

from libs.runtime.backoff import Backoff
from libs.store.api import StoreUnavailable
from libs.store.config import is_domain

log = logging.getLogger(__name__)

_SECURE, _PLAIN = "_etcd-client-ssl._tcp", "_etcd-client._tcp"
_SERVER_S, _LONGEST_S = 1.0, 20.0
"""One server has so long for one name; a lookup has time for each server and name of the search list, to this limit."""
_AWAY_S = 1.0
"""For so long no member is reachable before DNS is asked again."""


@dataclass(frozen=True, slots=True)
class Srv:
    """One SRV record. target: without the dot at its end."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Member:
    """url: `https://name:port` or `http://name:port`. priority: of its record; the lowest number is tried first."""

    url: str
    priority: int


def in_order(records: Iterable[Srv], random: Random) -> list[Srv]:
    """By priority; those of one priority by chance, each in proportion to its weight (RFC 2782, "Weight")."""
    left = sorted(set(records), key=lambda record: (record.priority, record.weight, record.target, record.port))
    ordered = []
    while left:
        first = [record for record in left if record.priority == left[0].priority]
        mark = random.randint(0, sum(record.weight for record in first))
        for record in first:  # those of weight 0 stand in front, and are met only by a mark of 0
            mark -= record.weight
            if mark <= 0:
                break
        ordered.append(record)
        left.remove(record)
    return ordered


class Discovery:
    """domain: below which the records are. secure: take no plain members, as from when there were others. resolver:
    makes one for each lookup, so that a changed resolv.conf counts. timeout_s: for each of the two names, at least.
    """

    def __init__(
        self,
        domain: str,
        *,
        secure: bool,
        random: Random,
        resolver: Callable[[], dns.asyncresolver.Resolver] = dns.asyncresolver.Resolver,
        timeout_s: float = 4.0,
    ) -> None:
        self.domain = domain
        self._secure = secure
        self._random = random
        self._resolver = resolver
        self._timeout_s = timeout_s

    async def members(self) -> list[Member]:
        """In the order to try them; at least one. Raises StoreUnavailable."""
        domain = self.domain.rstrip(".")
        if records := await self._records(_SECURE):
            self._secure = True
            return self._members("https", records)
        if self._secure:
            raise StoreUnavailable(
                f"DNS: no SRV record {_SECURE}.{domain}; with certificates set, and after members with TLS,"
                f" {_PLAIN} is not asked for"
            )
        if records := await self._records(_PLAIN):
            return self._members("http", records)
        raise StoreUnavailable(f"DNS: no SRV record {_SECURE}.{domain} nor {_PLAIN}.{domain}")

    def _members(self, scheme: str, records: list[Srv]) -> list[Member]:
        return [
            Member(f"{scheme}://{record.target}:{record.port}", record.priority)
            for record in in_order(records, self._random)
        ]

    async def _records(self, service: str) -> list[Srv]:
        """Those of one name, none where it does not exist. Raises StoreUnavailable when nobody can say."""
        name, lifetime_s = f"{service}.{self.domain}", self._timeout_s
        try:
            resolver = self._resolver()
            resolver.timeout = min(resolver.timeout, _SERVER_S)  # else the first server that is dead takes all the time
            rounds = len(resolver.nameservers) * (len(resolver.search) + 1)
            lifetime_s = max(lifetime_s, min(_LONGEST_S, 1.2 * _SERVER_S * rounds))
            answer = await resolver.resolve(name, "SRV", search=True, lifetime=lifetime_s)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except dns.resolver.NoResolverConfiguration as error:
            raise StoreUnavailable("DNS: /etc/resolv.conf is missing or names no server") from error
        except dns.resolver.NoNameservers as error:
            raise StoreUnavailable(f"DNS: no server answers for {name}: {_reasons(error)}") from error
        except dns.resolver.LifetimeTimeout as error:
            text = f"DNS: no answer for {name} within {lifetime_s:g} s: {_reasons(error)}"
            raise StoreUnavailable(text) from error
        except (dns.exception.DNSException, OSError) as error:
            raise StoreUnavailable(f"DNS: {name}: {error or type(error).__name__}") from error
        records = [
            Srv(found.priority, found.weight, found.port, found.target.to_text(omit_final_dot=True)) for found in answer
        ]
        records = [record for record in records if record.target not in ("", ".")]  # which says "decidedly none"
        for record in records:
            if not record.port or not is_domain(record.target):
                raise StoreUnavailable(
                    f"DNS: {name} names {record.target!r} port {record.port}: no place to connect to"
                )
        return records


def _reasons(error: dns.exception.DNSException) -> str:
    """Of dnspython's list (server, over TCP, port, what happened, answer), each once."""
    told = []
    for server, _, port, what, _ in error.kwargs.get("errors") or ():
        reason = str(what).rstrip(".") or type(what).__name__
        address = str(server).removeprefix("Do53:").rpartition("@")[0] or server
        told.append(f"{address} port {port}: {reason}")
    return "; ".join(dict.fromkeys(told)) or "no server was reached"


class Lookups:
    """When DNS is asked: for the first members, and again while none of the known ones serves, one lookup at a time and
    with growing pauses.

    wanted: whether no member serves. found: gets what DNS says. problem: of the latest lookup, "" when it went well.
    """

    def __init__(
        self,
        discovery: Discovery,
        random: Random,
        *,
        wanted: Callable[[], bool],
        found: Callable[[list[Member]], None],
    ) -> None:
        self.problem = f"DNS: no answer yet for SRV records of {discovery.domain}"
        self._discovery = discovery
        self._wanted, self._found = wanted, found
        self._backoff = Backoff(random, first_s=1.0)
        self._not_before = 0.0
        self._any_found = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> asyncio.Task[None]:
        """The lookup under way, pause included, or a new one. It raises nothing."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="etcd discovery")
        return self._task

    def served(self) -> None:
        """A member did what it was asked: the next trouble is a new one."""
        if self._backoff.failures:
            self._backoff.reset()
            self._not_before = 0.0

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(_AWAY_S if self._any_found else 0.0, self._not_before - loop.time()))
        if self._closed or not self._wanted():
            return
        try:
            members = await self._discovery.members()
        except StoreUnavailable as error:
            if str(error) != self.problem:
                log.warning("etcd's members not found", extra={"domain": self._discovery.domain, "error": str(error)})
            self.problem = str(error)
        else:
            self.problem, self._any_found = "", True
            self._found(members)
        self._not_before = loop.time() + self._backoff.next_s()
