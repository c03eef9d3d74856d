"""etcd found by DNS (ETCD_DISCOVERY_SRV): a real etcd, and a DNS server that says what the test wants."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from random import Random

import pytest

from libs.store import StoreConfig, StoreUnavailable, connection, discovery
from libs.store.discovery import Discovery
from libs.store.etcd import EtcdStore
from libs.testkit import netns
from libs.testkit.dns_server import DnsServer
from libs.testkit.pki import Authority
from libs.testkit.relay import Relay
from libs.testkit.servers import EtcdServer, free_port
from tests.contract.store_backends import eventually, eventually_get, take

pytestmark = pytest.mark.servers
DOMAIN = "example.test"
SECURE, PLAIN = f"_etcd-client-ssl._tcp.{DOMAIN}", f"_etcd-client._tcp.{DOMAIN}"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
async def dns_server() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


def found_by(server: DnsServer, ca: Path | None = None, request_timeout_s: float = 10.0) -> EtcdStore:
    pem = ca.read_bytes() if ca else b""
    config = StoreConfig(
        discovery_srv=DOMAIN,
        ca=pem,
        request_timeout_s=request_timeout_s,
        keepalive_time_s=120,  # it would also notice silence, in its time
        keepalive_timeout_s=120,
    )
    return EtcdStore(config, Discovery(DOMAIN, secure=bool(ca), random=Random(1), resolver=server.resolver))


async def test_members_are_found_and_the_dead_ones_passed_over(etcd: EtcdServer, dns_server: DnsServer) -> None:
    dead = [f"0 9 {free_port()} localhost." for _ in range(3)]
    dns_server.records[PLAIN, "SRV"] = [*dead, f"0 1 {etcd.port} localhost.", "0 9 2379 no-such-host.invalid."]
    async with found_by(dns_server) as store:
        await store.put("/found", b"1")
        assert await eventually_get(store, "/found") == b"1"
        assert len(dns_server.asked) == 2, "asked again though a member serves"


async def test_later_priorities_wait_until_the_earlier_ones_are_away(
    etcd: EtcdServer, dns_server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HEAD_START_S", 2.0)
    monkeypatch.setattr(connection, "_LATEST_START_S", 6.0)
    monkeypatch.setattr(discovery, "_AWAY_S", 30.0)  # asked anew, all would begin again
    async with Relay(etcd.port) as main, Relay(etcd.port) as spare:
        dead = f"0 0 {free_port()} localhost."
        dns_server.records[PLAIN, "SRV"] = [f"10 9 {spare.port} localhost.", f"1 0 {main.port} localhost.", dead]
        for _ in range(2):
            async with found_by(dns_server) as store:
                await store.status()
        assert (main.accepted > 0, spare.accepted) == (True, 0)
        async with found_by(dns_server) as store:
            await store.put("/priority", b"1")
            await main.cut()
            assert await eventually_get(store, "/priority") == b"1"
            assert spare.accepted > 0


async def test_names_of_records_are_those_that_certificates_must_have(dns_server: DnsServer, tmp_path: Path) -> None:
    ca = Authority("etcd", tmp_path)
    right, wrong = ca.issue("right", names=("localhost",)), ca.issue("wrong", names=("elsewhere.test", "127.0.0.1"))
    with EtcdServer(cert_file=right.cert, key_file=right.key) as etcd:
        dns_server.records[SECURE, "SRV"] = [f"0 0 {etcd.port} localhost."]
        async with found_by(dns_server, ca.cert) as store:
            await store.put("/tls", b"1")
    with EtcdServer(cert_file=wrong.cert, key_file=wrong.key) as etcd:
        dns_server.records[SECURE, "SRV"] = [f"0 0 {etcd.port} localhost."]
        async with found_by(dns_server, ca.cert, request_timeout_s=2.0) as store:
            with pytest.raises(StoreUnavailable, match=f"no etcd endpoint reachable: https://localhost:{etcd.port}"):
                await store.get("/tls")


async def test_members_that_moved_are_found_again_and_a_watch_misses_nothing(
    etcd: EtcdServer, dns_server: DnsServer
) -> None:
    async with Relay(etcd.port) as before, Relay(etcd.port) as after, EtcdStore(StoreConfig((etcd.endpoint,))) as other:
        dns_server.records[PLAIN, "SRV"] = [f"0 0 {before.port} localhost."]
        async with found_by(dns_server) as store:
            begin = await other.put("/moved/a", b"1")
            async with aclosing(store.watch("/moved/", revision=begin)) as batches:
                await take(batches, lambda events: len(events) == 1)
                await before.cut()
                dns_server.records[PLAIN, "SRV"] = [f"0 0 {after.port} localhost."]
                await other.put("/moved/a", b"2")
                events = await take(batches, lambda events: len(events) == 1)
                assert [event.kv and event.kv.value for event in events] == [b"2"]
            assert await eventually_get(store, "/moved/a") == b"2"


async def test_member_that_only_accepts_is_left_for_what_dns_says_then(etcd: EtcdServer, dns_server: DnsServer) -> None:
    """Its connection stays up, and nothing that is asked over it succeeds. Watches move at once."""
    async with Relay(etcd.port) as before, Relay(etcd.port) as after, EtcdStore(StoreConfig((etcd.endpoint,))) as other:
        dns_server.records[PLAIN, "SRV"] = [f"0 0 {before.port} localhost."]
        async with found_by(dns_server, request_timeout_s=0.5) as store:
            begin = await other.put("/stuck", b"1")
            async with aclosing(store.watch("/stuck", revision=begin)) as batches:
                await take(batches, lambda events: len(events) == 1)
                before.stall()
                await other.put("/stuck", b"2")
                dns_server.records[PLAIN, "SRV"] = [f"0 0 {after.port} localhost."]
                assert await eventually_get(store, "/stuck") == b"2"
                assert len(await take(batches, lambda events: len(events) == 1)) == 1


async def test_records_that_come_late_are_taken_and_their_absence_is_told(
    etcd: EtcdServer, dns_server: DnsServer
) -> None:
    async with found_by(dns_server, request_timeout_s=1.0) as store:
        with pytest.raises(StoreUnavailable, match=f"^DNS: no SRV record {SECURE} nor {PLAIN}$"):
            await store.get("/late")
        dns_server.records[PLAIN, "SRV"] = [f"0 0 {etcd.port} localhost."]
        async with asyncio.timeout(15):
            while True:
                try:
                    await store.put("/late", b"1")
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.01)


async def test_dns_that_fails_is_told_beside_the_members_that_are_away(etcd: EtcdServer, dns_server: DnsServer) -> None:
    async with Relay(etcd.port) as relay, found_by(dns_server, request_timeout_s=3.0) as store:
        dns_server.records[PLAIN, "SRV"] = [f"0 0 {relay.port} localhost."]
        await store.put("/away", b"1")
        await relay.cut()
        dns_server.records.clear()
        told = f"no etcd endpoint reachable: http://localhost:{relay.port}; DNS: no SRV record"
        with pytest.raises(StoreUnavailable, match=told):
            await store.get("/away")
        dns_server.records[PLAIN, "SRV"] = [f"0 0 {etcd.port} localhost."]
        assert await eventually_get(store, "/away") == b"1"


async def test_closing_ends_a_lookup_under_way(dns_server: DnsServer) -> None:
    dns_server.silent |= {SECURE, PLAIN}
    store = found_by(dns_server)
    asking = asyncio.create_task(store.get("/closed"))
    async with asyncio.timeout(30):
        await eventually(lambda: dns_server.asked)
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await asking


async def test_calicoctl_finds_etcd_by_the_hosts_resolv_conf(tmp_path: Path) -> None:
    """A host of its own: resolv.conf, IPv6 alone, a member whose certificate has the name that the record has."""
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    ca = Authority("etcd", tmp_path)
    pair = ca.issue("etcd", names=("member.example.test",))
    resolv_conf, config = tmp_path / "resolv.conf", tmp_path / "calicoctl.cfg"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    config.write_text(
        "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n"
        f"  etcdDiscoverySrv: {DOMAIN}\n  etcdCACertFile: {ca.cert}\n"
    )

    async def calicoctl(*arguments: str, **variables: str) -> tuple[int, str]:
        inherited = {name: value for name, value in os.environ.items() if "ETCD" not in name}
        process = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", host.name, "sh", "-c", f'mount --bind {resolv_conf} /etc/resolv.conf && exec "$@"',
            "sh", sys.executable, "-m", "services.calicoctl", *arguments, "--allow-version-mismatch",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=inherited | {"PYTHONPATH": str(ROOT)} | variables,
        )  # fmt: skip
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    with (
        netns.namespace("srv") as host,
        EtcdServer(netns=host.name, address="::1", cert_file=pair.cert, key_file=pair.key),
    ):
        async with DnsServer(port=53, netns=host.path) as server:
            server.records[SECURE, "SRV"] = ["0 0 2379 member.example.test."]
            server.records["member.example.test", "AAAA"] = ["::1"]
            by_file = await calicoctl("get", "profiles", "-o", "json", "--config", str(config))
            by_variables = await calicoctl(
                "get", "profiles", "-o", "json", CALICO_ETCD_DISCOVERY_SRV=DOMAIN, ETCD_CA_CERT_FILE=str(ca.cert)
            )
            for status, output in (by_file, by_variables):
                assert status == 0, output
                assert json.loads(output)["kind"] == "ProfileList"
            status, output = await calicoctl("get", "profiles", ETCD_DISCOVERY_SRV=f"other.{DOMAIN}")
            assert status == 1
            assert f"DNS: no SRV record _etcd-client-ssl._tcp.other.{DOMAIN}" in output
