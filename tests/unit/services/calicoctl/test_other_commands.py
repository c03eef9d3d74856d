"""version, completion, ipam show, tap, --wait and the configuration file, through the command line."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from libs.bus import Msg, subjects, wire
from libs.bus.memory import MemoryBroker
from libs.ipam.client import IpamClient
from libs.ipam.requests import AssignIpRequest
from libs.store.memory import MemoryStore
from services.calicoctl.config import ConfigProblem, load
from services.calicoctl.version import client_version
from tests.unit.services.calicoctl.ctl import Ctl

POOLS = """\
apiVersion: projectcalico.org/v3
kind: List
items:
- {apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: node1}}
- {apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: node2}}
- {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: four}, spec: {cidr: 10.0.0.0/24, blockSize: 29}}
- {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: six}, spec: {cidr: "fd00::/112"}}
- {apiVersion: projectcalico.org/v3, kind: IPReservation, metadata: {name: r}, spec: {reservedCIDRs: [10.0.0.0/31]}}
"""


def test_version(ctl: Ctl) -> None:
    client, commit = ctl.good("version", "--client").splitlines()
    assert client == f"Client Version:    {client_version()}"
    assert commit.startswith("Git commit:        ")
    assert "not initialised" in ctl.good("version")
    ctl.run(ctl.client().ensure_initialized("v3.33.0", "k8s"))
    lines = ctl.good("version").splitlines()
    assert lines[2:] == ["Cluster Version:   v3.33.0", "Cluster Type:      k8s"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(ctl: Ctl, shell: str) -> None:
    assert "_CALICOCTL_COMPLETE" in ctl.good("completion", shell)


# --- ipam ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def used(ctl: Ctl) -> Ctl:
    ctl.apply(POOLS)

    async def assign() -> None:
        ipam = IpamClient(MemoryStore(ctl.server))
        for address, node in (
            ("10.0.0.1", "node1"),
            ("10.0.0.2", "node1"),
            ("10.0.0.3", "node2"),
            ("fd00::1", "node1"),
        ):
            attrs = {"node": node, "namespace": "shop", "pod": f"pod-{address}"}
            await ipam.assign_ip(AssignIpRequest(address=ip_address(address), handle="h", node=node, attrs=attrs))

    ctl.run(assign())
    return ctl


def test_ipam_show(used: Ctl) -> None:
    assert used.good("ipam", "show") == (
        "+----------+-------------+-----------+------------+--------------+--------------+\n"
        "| GROUPING | CIDR        | IPS TOTAL | IPS IN USE | IPS RESERVED | IPS FREE     |\n"
        "+----------+-------------+-----------+------------+--------------+--------------+\n"
        "| IP Pool  | 10.0.0.0/24 |       256 |     3 (1%) |       2 (1%) |    252 (98%) |\n"
        "| IP Pool  | fd00::/112  |     65536 |     1 (0%) |       0 (0%) | 65535 (100%) |\n"
        "+----------+-------------+-----------+------------+--------------+--------------+\n"
    )


def test_ipam_show_blocks(used: Ctl) -> None:
    rows = [line.split("|")[1:3] for line in used.good("ipam", "show", "--show-blocks").splitlines() if "/" in line]
    assert [(kind.strip(), cidr.strip()) for kind, cidr in rows] == [
        ("IP Pool", "10.0.0.0/24"),
        ("Block", "10.0.0.0/29"),
        ("IP Pool", "fd00::/112"),
        ("Block", "fd00::/122"),
    ]


def test_ipam_show_ip(used: Ctl) -> None:
    assert used.good("ipam", "show", "--ip", "10.0.0.1") == (
        "IP 10.0.0.1 is in use\nHandle ID: h\nActive Owner Attributes:\n"
        "  namespace: shop\n  node: node1\n  pod: pod-10.0.0.1\n"
    )
    assert used.good("ipam", "show", "--ip", "10.0.0.9") == "10.0.0.9 is not assigned\n"
    assert used.good("ipam", "show", "--ip", "192.0.2.1") == "192.0.2.1 is not assigned\n"
    assert used.bad("ipam", "show", "--ip", "10.0.0") == "Invalid IP address specified: 10.0.0\n"


def test_ipam_show_borrowed(used: Ctl) -> None:
    lines = used.good("ipam", "show", "--show-borrowed").splitlines()
    assert [cell.strip() for cell in lines[1].split("|")[1:-1]] == [
        "IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        "10.0.0.3", "node2", "10.0.0.0/29", "node1", "pod", "shop/pod-10.0.0.3"
    ]  # fmt: skip
    assert len(lines) == 5


def test_ipam_show_tells_of_blocks_that_cannot_be_read(used: Ctl) -> None:
    key = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.64-29"
    used.run(used.client().store.put(key, b"{}"))
    result = used("ipam", "show")
    assert result.exit_code == 1
    assert "10.0.0.0/24" in result.stdout
    assert key in result.stderr


# --- tap and wait ----------------------------------------------------------------------------------------------------


class Nodes:
    """A typha and felixes that answer as soon as they are asked."""

    def __init__(self, broker: MemoryBroker, answer: dict[str, int | None]) -> None:
        """answer: node -> how far behind the revision it reports (None: it never does)."""
        self.broker = broker
        self.answer = answer
        self.bus = broker.connect("typha")
        self.bus.subscribe(subjects.TYPHA_CONCERNS, self.concerns, queue=subjects.TYPHA_QUEUE)

    def concerns(self, message: Msg) -> None:
        request = wire.decoder(wire.ConcernsRequest).decode(message.data)
        message.respond(wire.encode(wire.ConcernsReply(rev=request.rev, nodes=list(self.answer))))
        for node, behind in self.answer.items():
            if behind is not None:
                report = wire.Applied(node=node, epoch=None, rev=request.rev - behind, seq=1)
                self.bus.publish(subjects.applied(node), wire.encode(report))


TIER = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: sec}\n"


def test_apply_wait_returns_when_all_nodes_have_applied(ctl: Ctl) -> None:
    ctl.broker = MemoryBroker()
    Nodes(ctl.broker, {"node1": 0, "node2": 0})
    assert ctl.good("apply", "--wait", "-f", "-", stdin=TIER) == (
        "Successfully applied 1 'Tier' resource(s)\nApplied on 2 node(s): node1, node2\n"
    )


def test_apply_wait_names_the_nodes_that_have_not(ctl: Ctl) -> None:
    ctl.broker = MemoryBroker()
    Nodes(ctl.broker, {"node1": 0, "node2": 1, "node3": None})
    result = ctl("apply", "--wait", "--timeout", "4s", "-f", "-", stdin=TIER)
    assert result.exit_code == 1
    assert result.stdout == "Successfully applied 1 'Tier' resource(s)\n"
    assert "node1" not in result.stderr
    assert "node2: has revision" in result.stderr
    assert "node3: no report" in result.stderr


def test_delete_waits_too(ctl: Ctl) -> None:
    ctl.apply(TIER)
    ctl.broker = MemoryBroker()
    Nodes(ctl.broker, {"node1": 0})
    assert "Applied on 1 node(s): node1" in ctl.good("delete", "tier", "sec", "--wait")


def test_tap_shows_messages_and_ends_after_count(ctl: Ctl) -> None:
    ctl.broker = MemoryBroker()

    async def chatter(bus_name: str) -> None:
        bus = ctl.broker.connect(bus_name) if ctl.broker else None
        assert bus is not None
        for revision in range(1, 10_000):
            bus.publish(subjects.beat("i1"), wire.encode(BEAT(revision)))
            await asyncio.sleep(0.001)

    original = ctl._bus

    def with_chatter(config: object) -> object:
        asyncio.get_running_loop().create_task(chatter("typha"), name="chatter")
        return original(config)  # type: ignore[arg-type]

    ctl._bus = with_chatter  # type: ignore[method-assign, assignment]
    lines = ctl.good("tap", "--count", "2", "calico.typha.>").splitlines()
    assert len(lines) == 2
    assert " calico.typha.i1.beat beat " in lines[0]
    ctl.broker = MemoryBroker()
    (line,) = ctl.good("tap", "-o", "json", "--count", "1").splitlines()
    assert json.loads(line)["subject"] == "calico.typha.i1.beat"


def test_tap_refuses_what_is_no_subject(ctl: Ctl) -> None:
    assert ctl.bad("tap", "calico.typha.", "--count", "1") == "'calico.typha.' is not a subject to subscribe to\n"


def BEAT(revision: int) -> wire.Beat:
    return wire.Beat(epoch=wire.Epoch("i1", 1, 2), rev=revision, etcd_age_s=0.1, head=revision)


# --- configuration ---------------------------------------------------------------------------------------------------

CONFIG = """\
apiVersion: projectcalico.org/v3
kind: CalicoAPIConfig
metadata:
spec:
  datastoreType: etcdv3
  etcdEndpoints: https://a:2379,https://b:2379
  etcdUsername: me
  etcdPassword: from-the-file
  natsURL: nats://bus:4222
"""


def test_the_file_goes_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "calicoctl.cfg"
    file.write_text(CONFIG)
    found = load(
        str(file), {"ETCD_ENDPOINTS": "http://other:1", "CALICO_NATS_USER": "n", "CALICO_NATS_PASSWORD": "p" * 9}
    )
    assert found.store.endpoints == ("https://a:2379", "https://b:2379")
    assert (found.store.username, found.store.password) == ("me", "from-the-file")
    assert found.bus.servers == ("nats://bus:4222",)
    assert found.bus.user == "n"
    assert "from-the-file" not in repr(found.store)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Other\n", "expected CalicoAPIConfig"),
        ("", "found 0 documents"),
        ("kind: [", "not valid YAML"),
        (CONFIG.replace("https://a:2379,https://b:2379", "5"), "spec.etcdEndpoints: expected text"),
        (CONFIG.replace("etcdv3", "consul"), "expected etcdv3 or kubernetes"),
        (CONFIG.replace("  etcdUsername", "  etcdKeyFile: /none\n  etcdUsername"), "/none"),
    ],
)
def test_bad_configuration_is_told(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "calicoctl.cfg"
    file.write_text(text)
    with pytest.raises(ConfigProblem) as caught:
        load(str(file), {})
    assert message in str(caught.value)


def test_a_missing_file_is_told_when_it_was_asked_for(ctl: Ctl) -> None:
    assert "cannot read configuration /none" in ctl.bad("get", "tiers", "-c", "/none")
