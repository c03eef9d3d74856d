"""A DNS server for tests, on UDP and TCP of one port, that can also be slow to answer, refuse, and cut answers short.

    async with DnsServer() as dns:
        dns.records["_etcd-client._tcp.example.test", "SRV"] = ["0 0 2379 localhost."]
        resolver = dns.resolver()

A name without any record does not exist (NXDOMAIN).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import dns.asyncresolver
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from libs.netlink.netns import in_netns


class DnsServer:
    """records: (name without its last dot, type) -> data in the text form of zone files; changed at will.

    rcodes: name -> code of the answer instead. silent: names that are not answered. truncating: UDP answers say only
    that TCP has more. asked: (name, type, over TCP), in order. netns: where it listens, the port is then usually 53.
    """

    def __init__(self, *, address: str = "127.0.0.1", port: int = 0, netns: Path | None = None) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.rcodes: dict[str, dns.rcode.Rcode] = {}
        self.silent: set[str] = set()
        self.truncating = False
        self.asked: list[tuple[str, str, bool]] = []
        self.address, self.port = address, port
        self._netns = netns
        self._server: asyncio.Server | None = None
        self._transport: asyncio.DatagramTransport | None = None

    def resolver(self) -> dns.asyncresolver.Resolver:
        """Asks this server alone."""
        found = dns.asyncresolver.Resolver(configure=False)
        found.nameservers, found.port, found.timeout = [self.address], self.port, 5.0
        return found

    async def __aenter__(self) -> Self:
        stream, datagram = self._sockets()
        try:
            loop = asyncio.get_running_loop()
            self._server = await asyncio.start_server(self._serve, sock=stream)
            self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=datagram)
        except BaseException:
            stream.close()
            datagram.close()
            raise
        return self

    def _sockets(self) -> tuple[socket.socket, socket.socket]:
        """Of TCP and UDP, bound to one port: where any will do, to one that both have free."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        for attempt in range(20):
            with in_netns(self._netns):
                stream, datagram = socket.socket(family, socket.SOCK_STREAM), socket.socket(family, socket.SOCK_DGRAM)
            try:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                stream.bind((self.address, self.port))
                datagram.bind((self.address, stream.getsockname()[1]))
            except OSError:
                stream.close()
                datagram.close()
                if self.port or attempt == 19:
                    raise
                continue
            self.port = stream.getsockname()[1]
            return stream, datagram
        raise AssertionError("the loop above returns or raises")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._transport is not None
        self._transport.close()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                if (reply := self.answer(await reader.readexactly(length), tcp=True)) is not None:
                    writer.write(struct.pack("!H", len(reply)) + reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def answer(self, wire: bytes, *, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, tcp))
        if name in self.silent:
            return None
        reply = dns.message.make_response(query, recursion_available=True)
        if (code := self.rcodes.get(name)) is not None:
            reply.set_rcode(code)
        elif not any(known == name for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif self.truncating and not tcp:
            reply.flags |= dns.flags.TC
        else:
            self._add(reply, question.name, kind)
        return reply.to_wire()

    def _add(self, reply: dns.message.Message, name: dns.name.Name, kind: str) -> None:
        """What there is of a name, behind its alias if it has one."""
        text = name.to_text(omit_final_dot=True).lower()
        if data := self.records.get((text, kind)):
            reply.answer.append(dns.rrset.from_text(name, 5, "IN", kind, *data))
        elif alias := self.records.get((text, "CNAME")):
            reply.answer.append(dns.rrset.from_text(name, 5, "IN", "CNAME", *alias))
            self._add(reply, dns.name.from_text(alias[0]), kind)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # Python 3.11's does not inherit from it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        if (reply := self._server.answer(data, tcp=False)) is not None:
            self._transport.sendto(reply, addr)
