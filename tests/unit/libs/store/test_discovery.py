"""etcd's members by DNS: which records count, in which order, and what is said when there are none."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import dns.asyncresolver
import dns.name
import dns.rcode
import pytest
from dns.nameserver import Do53Nameserver

from libs.store.api import StoreUnavailable
from libs.store.discovery import Discovery, Lookups, Member, Srv, in_order
from libs.testkit.dns_server import DnsServer

DOMAIN = "example.test"
SECURE, PLAIN = f"_etcd-client-ssl._tcp.{DOMAIN}", f"_etcd-client._tcp.{DOMAIN}"


@pytest.fixture
async def dns_server() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


def discovery(server: DnsServer, *, domain: str = DOMAIN, secure: bool = False, timeout_s: float = 10.0) -> Discovery:
    return Discovery(domain, secure=secure, random=Random(1), resolver=server.resolver, timeout_s=timeout_s)


async def urls(found: Discovery) -> list[str]:
    return [member.url for member in await found.members()]


# --- order -----------------------------------------------------------------------------------------------------------


def test_lower_priorities_come_first_whatever_their_weight() -> None:
    records = [Srv(20, 65535, 1, "last"), Srv(0, 0, 1, "first"), Srv(10, 1, 1, "middle")]
    for seed in range(50):
        assert [one.target for one in in_order(records, Random(seed))] == ["first", "middle", "last"]


def test_weights_are_shares_of_who_is_first_and_nobody_is_left_out() -> None:
    records = [Srv(0, 3, 1, "three"), Srv(0, 1, 1, "one"), Srv(0, 0, 1, "none")]
    random, first = Random(7), Counter[str]()
    for _ in range(4000):
        ordered = in_order(records, random)
        assert set(ordered) == set(records)
        first[ordered[0].target] += 1
    assert 0.5 < first["three"] / 4000 < 0.7  # 3 of the 5 numbers from 0 to 4
    assert 0.15 < first["one"] / 4000 < 0.25
    assert 0.15 < first["none"] / 4000 < 0.25


def test_equal_weights_share_evenly_and_a_record_told_twice_counts_once() -> None:
    records = [Srv(0, 10, 1, name) for name in "abcab"]
    first = Counter(in_order(records, Random(seed))[0].target for seed in range(3000))
    assert all(0.28 < first[name] / 3000 < 0.39 for name in "abc")
    assert len(in_order(records, Random(1))) == 3


# --- records ---------------------------------------------------------------------------------------------------------


async def test_secure_records_win_over_plain_ones(dns_server: DnsServer) -> None:
    dns_server.records[PLAIN, "SRV"] = ["0 0 2379 plain.example.test."]
    dns_server.records[SECURE, "SRV"] = ["5 0 2380 b.example.test.", "0 0 2379 a.example.test."]
    assert await discovery(dns_server).members() == [
        Member("https://a.example.test:2379", 0),
        Member("https://b.example.test:2380", 5),
    ]


async def test_plain_records_count_where_there_are_no_others(dns_server: DnsServer) -> None:
    dns_server.records[PLAIN, "SRV"] = ["0 0 2379 plain.example.test."]
    assert await urls(discovery(dns_server)) == ["http://plain.example.test:2379"]
    dns_server.records[SECURE, "SRV"] = ["0 0 0 ."]  # RFC 2782: decidedly not available
    assert await urls(discovery(dns_server)) == ["http://plain.example.test:2379"]
    dns_server.records[SECURE, "TXT"] = ['"the name exists, without this type"']
    del dns_server.records[SECURE, "SRV"]
    assert await urls(discovery(dns_server)) == ["http://plain.example.test:2379"]


async def test_plain_records_do_not_count_with_certificates(dns_server: DnsServer) -> None:
    dns_server.records[PLAIN, "SRV"] = ["0 0 2379 plain.example.test."]
    with pytest.raises(StoreUnavailable, match=rf"DNS: no SRV record {SECURE}; with certificates set, and after"):
        await urls(discovery(dns_server, secure=True))
    assert {name for name, _, _ in dns_server.asked} == {SECURE}


@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_a_refused_secure_name_is_no_reason_to_go_on_in_clear(
    dns_server: DnsServer, code: dns.rcode.Rcode
) -> None:
    dns_server.records[PLAIN, "SRV"] = ["0 0 2379 plain.example.test."]
    dns_server.rcodes[SECURE] = code
    with pytest.raises(StoreUnavailable, match=rf"DNS: no .* for {SECURE}.*127.0.0.1 .*{code.name}"):
        await urls(discovery(dns_server, timeout_s=30.0))


async def test_large_answers_come_over_tcp(dns_server: DnsServer) -> None:
    dns_server.truncating = True
    dns_server.records[SECURE, "SRV"] = [f"0 0 2379 member-{number:03}.example.test." for number in range(200)]
    assert len(await urls(discovery(dns_server))) == 200
    assert (SECURE, "SRV", True) in dns_server.asked


async def test_names_of_records_may_be_aliases(dns_server: DnsServer) -> None:
    dns_server.records[SECURE, "SRV"] = ["0 0 2379 a.example.test."]
    dns_server.records["_etcd-client-ssl._tcp.alias.test", "CNAME"] = [f"{SECURE}."]
    assert await urls(discovery(dns_server, domain="alias.test.")) == ["https://a.example.test:2379"]


async def test_search_list_of_the_host_completes_a_domain(dns_server: DnsServer) -> None:
    """As Kubernetes' resolv.conf has it: `etcd.kube-system.svc`."""
    dns_server.records["_etcd-client._tcp.etcd.kube-system.svc.cluster.test", "SRV"] = ["0 0 2379 a.example.test."]

    def resolver() -> dns.asyncresolver.Resolver:
        found = dns_server.resolver()
        found.search = [dns.name.from_text("cluster.test.")]
        found.ndots = 5
        return found

    found = Discovery("etcd.kube-system.svc", secure=False, random=Random(1), resolver=resolver)
    assert await urls(found) == ["http://a.example.test:2379"]


@pytest.mark.parametrize("data", ["0 0 0 a.example.test.", r"0 0 2379 a\032b.example.test."])
async def test_places_that_cannot_be_are_named(dns_server: DnsServer, data: str) -> None:
    dns_server.records[SECURE, "SRV"] = [data]
    with pytest.raises(StoreUnavailable, match=f"DNS: {SECURE} names .*: no place to connect to"):
        await urls(discovery(dns_server))


# --- no answer -------------------------------------------------------------------------------------------------------


async def test_no_record_at_all_names_both(dns_server: DnsServer) -> None:
    with pytest.raises(StoreUnavailable, match=f"DNS: no SRV record {SECURE} nor {PLAIN}$"):
        await urls(discovery(dns_server))


async def test_silence_ends_in_time_and_names_the_server(dns_server: DnsServer) -> None:
    dns_server.silent.add(SECURE)
    with pytest.raises(
        StoreUnavailable, match=rf"no answer for {SECURE} within 1.2 s: 127.0.0.1 port {dns_server.port}"
    ):
        async with asyncio.timeout(10):
            await urls(discovery(dns_server, timeout_s=0.6))


async def test_nobody_at_the_servers_address_is_told() -> None:
    async with DnsServer() as gone:
        pass
    with pytest.raises(StoreUnavailable, match=rf"DNS: no (answer|server).*127.0.0.1 port {gone.port}"):
        await urls(discovery(gone, timeout_s=1.0))


@pytest.mark.parametrize("dead", [1, 2])
async def test_a_dead_server_in_front_leaves_time_for_the_next(dns_server: DnsServer, dead: int) -> None:
    """Whatever resolv.conf says of one server's time, and with each name of the search list begun anew."""
    dns_server.records[PLAIN, "SRV"] = ["0 0 2379 etcd-0.example.test."]
    async with DnsServer() as silent:
        silent.silent |= {SECURE, PLAIN, f"{SECURE}.local", f"{PLAIN}.local"}

        def resolver() -> dns.asyncresolver.Resolver:
            found = dns_server.resolver()
            good = Do53Nameserver(dns_server.address, dns_server.port)
            found.nameservers = [Do53Nameserver(silent.address, silent.port)] * dead + [good]
            found.search = [dns.name.from_text("local")]
            found.timeout = 5.0
            return found

        # One second for each server and name loses 4 s at most; all of its time for the first would lose 10.
        found = Discovery(DOMAIN, secure=False, random=Random(1), resolver=resolver, timeout_s=9.0)
        assert await urls(found) == ["http://etcd-0.example.test:2379"]


async def test_members_with_tls_are_not_followed_by_plain_ones(dns_server: DnsServer) -> None:
    """One spoiled answer would else have our password sent in clear."""
    dns_server.records[SECURE, "SRV"] = ["0 0 2379 etcd-0.example.test."]
    dns_server.records[PLAIN, "SRV"] = ["0 0 2379 other.example.test."]
    found = discovery(dns_server)
    assert await urls(found) == ["https://etcd-0.example.test:2379"]
    del dns_server.records[SECURE, "SRV"]
    with pytest.raises(StoreUnavailable, match=f"no SRV record {SECURE}"):
        await urls(found)


async def test_host_without_resolv_conf_is_told(tmp_path: Path) -> None:
    def resolver() -> dns.asyncresolver.Resolver:
        return dns.asyncresolver.Resolver(filename=str(tmp_path / "resolv.conf"))

    with pytest.raises(StoreUnavailable, match=r"resolv\.conf is missing or names no server"):
        await urls(Discovery(DOMAIN, secure=False, random=Random(1), resolver=resolver))


# --- when DNS is asked -----------------------------------------------------------------------------------------------


async def test_pauses_between_lookups_grow_until_a_member_serves(
    dns_server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    loop = asyncio.get_running_loop()

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    still = SimpleNamespace(time=lambda: 0.0, create_task=loop.create_task)
    its = SimpleNamespace(sleep=sleep, wait=asyncio.wait, get_running_loop=lambda: still)
    monkeypatch.setattr("libs.store.discovery.asyncio", its)  # the resolver has pauses of its own
    found: list[list[Member]] = []
    lookups = Lookups(discovery(dns_server), Random(1), wanted=lambda: True, found=found.append)
    for _ in range(7):
        await lookups.ask()
    assert slept[0] == 0.0
    assert all(0.3 < pause <= 2**number for number, pause in enumerate(slept[1:]))
    assert slept[-1] > 10
    assert "no SRV record" in lookups.problem
    dns_server.records[SECURE, "SRV"] = ["0 0 2379 a.example.test."]
    lookups.served()
    await lookups.ask()
    assert slept[-1] == 0.0
    assert found == [[Member("https://a.example.test:2379", 0)]]
    assert lookups.problem == ""
    await lookups.close()


async def test_dns_is_left_alone_while_a_member_serves_and_asked_once_for_all_who_wait(dns_server: DnsServer) -> None:
    dns_server.records[SECURE, "SRV"] = ["0 0 2379 a.example.test."]
    wanted = False
    found: list[list[Member]] = []
    lookups = Lookups(discovery(dns_server), Random(1), wanted=lambda: wanted, found=found.append)
    await lookups.ask()
    assert dns_server.asked == []
    wanted = True
    await asyncio.gather(*(lookups.ask() for _ in range(5)))
    assert len(found) == 1
    await lookups.close()
