"""`node status` against a bus in memory, with nodes that answer marks, are behind, fail, or are silent."""

from __future__ import annotations

import asyncio

import pytest

from libs.bus import Msg, subjects, wire
from libs.bus.bgp import Negotiated, Peer, PeerKind, PeerState, State, state_subject
from libs.bus.memory import MemoryBroker
from services.calicoctl.status import document, gather, gather_bgp, show, show_bgp

pytestmark = pytest.mark.virtual_time


def report(node: str, rev: int, *, warnings: tuple[str, ...] = (), **failures: str) -> wire.Applied:
    return wire.Applied(node=node, epoch=None, rev=rev, seq=1, failures=failures, warnings=warnings)


@pytest.mark.asyncio
async def test_nodes_that_are_marked_report_and_the_others_are_missing() -> None:
    broker = MemoryBroker()
    bus, felix = broker.connect("calicoctl"), broker.connect("felix")
    marked: list[list[str]] = []

    def mark(message: Msg) -> None:
        request = wire.decoder(wire.MarkRequest).decode(message.data)
        marked.append(list(request.nodes))
        for node, rev in (("a", 7), ("b", 5), ("elsewhere", 9)):
            felix.publish(subjects.applied(node), wire.encode(report(node, rev)))
        felix.publish(subjects.applied("a"), wire.encode(report("a", 6)))  # an older one, late
        felix.publish(subjects.applied("c"), b"{")

    felix.subscribe(subjects.TYPHA_MARK, mark)
    found = await gather(bus, ["a", "b", "c"], 0.2)
    assert {node: one.rev for node, one in found.items()} == {"a": 7, "b": 5}
    assert marked[0] == ["a", "b", "c"]
    assert marked[-1] == ["b", "c"] or len(marked) == 1
    since = asyncio.get_running_loop().time()
    assert (await gather(bus, ["a"], 30))["a"].rev == 7
    assert asyncio.get_running_loop().time() == since, "it returns with the last report"


@pytest.mark.asyncio
async def test_nodes_that_report_one_after_another_are_asked_once() -> None:
    broker = MemoryBroker()
    bus, felix = broker.connect("calicoctl"), broker.connect("felix")
    nodes = [f"n{number}" for number in range(20)]
    marked: list[str] = []
    waiting: list[asyncio.Task[None]] = []

    async def answer() -> None:
        for node in nodes:
            await asyncio.sleep(0.002)
            felix.publish(subjects.applied(node), wire.encode(report(node, 7)))

    def mark(message: Msg) -> None:
        marked.extend(wire.decoder(wire.MarkRequest).decode(message.data).nodes)
        waiting.append(asyncio.create_task(answer()))

    felix.subscribe(subjects.TYPHA_MARK, mark)
    assert len(await gather(bus, nodes, 30)) == 20
    assert sorted(marked) == sorted(nodes)
    await asyncio.gather(*waiting)


def test_table_names_what_failed_and_what_has_no_effect() -> None:
    reports = {
        "a": report("a", 7, warnings=("bpfEnabled",)),
        "b": report("b", 5),
        "c": report("c", 7, **{"np/ns/x": "IP set s:1 is not known"}),
    }
    text, good = show(["d", "c", "b", "a"], reports)
    assert not good
    assert text.splitlines()[3:] == [
        "| a    | up to date |        7 |          |",
        "| b    | behind     |        5 |          |",
        "| c    | failing    |        7 |        1 |",
        "| d    | no report  |          |          |",
        "+------+------------+----------+----------+",
        "a: without effect: bpfEnabled",
        "c: np/ns/x: IP set s:1 is not known",
    ]
    assert show(["a"], reports)[1]


SINCE = "2026-03-01T10:00:00Z"
PEERS = (
    Peer(name="Mesh_192_0_2_2", kind=PeerKind.MESH, address="192.0.2.2", remote_as=64512, state=PeerState.ESTABLISHED,
         since=SINCE, received=12, accepted=10, advertised=3, negotiated=Negotiated(router_id="192.0.2.2")),
    Peer(name="Node_192_0_2_3_port_1790", kind=PeerKind.NODE, address="192.0.2.3", port=1790, remote_as=64600,
         state=PeerState.ACTIVE, since=SINCE, last_error="connection refused"),
    Peer(name="Global_2001_db8__9_port_1790", kind=PeerKind.GLOBAL, address="2001:db8::9", port=1790,
         state=PeerState.IDLE, last_error="old", detail="its password cannot be read"),
    Peer(name="Local_Workload_10_65_0_2", kind=PeerKind.LOCAL_WORKLOAD, address="10.65.0.2", remote_as=65000,
         state=PeerState.OPEN_SENT, since=SINCE),
)  # fmt: skip


@pytest.mark.asyncio
async def test_g21_speakers_are_asked_and_those_that_are_silent_or_strange_are_left_out() -> None:
    broker = MemoryBroker()
    bus, speaker = broker.connect("calicoctl"), broker.connect("bgp")
    state = State(node="a", ready=True, peers=PEERS)
    speaker.subscribe(state_subject("a"), lambda message: message.respond(wire.encode(state)))
    speaker.subscribe(state_subject("b"), lambda message: message.respond(b"{"))
    speaker.subscribe(state_subject("slow"), lambda message: None)
    assert await gather_bgp(bus, ["a", "b", "slow", "nobody"], 0.1) == {"a": state}


def test_g21_all_kinds_of_peers_are_shown_with_their_ports() -> None:
    text, good = show_bgp(["a", "b"], {"a": State(node="a", ready=True, peers=PEERS)})
    assert good  # a session that is down is no fault of the node
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| a")]
    assert rows == [
        ["a", "10.65.0.2", "local workload", "65000", "OpenSent", SINCE, "", "", "", ""],
        ["a", "192.0.2.2", "node-to-node mesh", "64512", "Established", SINCE, "12", "10", "3", ""],
        ["a", "192.0.2.3:1790", "node specific", "64600", "Active", SINCE, "", "", "", "connection refused"],
        ["a", "[2001:db8::9]:1790", "global", "", "Idle", "", "", "", "", "its password cannot be read"],
    ]
    assert [line for line in text.splitlines() if "BGP" in line] == [
        "IPv4 BGP", "IPv6 BGP", "no BGP speaker answers: b",
    ]  # fmt: skip


def test_g21_a_speaker_that_is_not_ready_or_leaves_something_out_is_a_fault() -> None:
    text, good = show_bgp(["a"], {"a": State(node="a", ready=False, detail="port 179 is taken")})
    assert not good
    assert "IPv4 BGP: no peers\n\nIPv6 BGP: no peers\n" in text
    assert "a: the BGP speaker is not ready: port 179 is taken\n" in text
    text, good = show_bgp(["a"], {"a": State(node="a", ready=True, problems={"BGPPeer x": "no filter y"})})
    assert (good, "a: BGP: BGPPeer x: no filter y\n" in text) == (False, True)


def test_without_any_speaker_nothing_is_said_of_bgp() -> None:
    assert show_bgp(["a", "b"], {}) == ("", True)


def test_for_programs_all_is_there_in_one_document() -> None:
    reports = {"a": report("a", 7, **{"np/ns/x": "why"}), "b": report("b", 5, warnings=("w",))}
    states = {"a": State(node="a", ready=True, router_id="192.0.2.1", peers=PEERS[:1])}
    found = document(["c", "b", "a"], reports, states)
    assert isinstance(found, list)
    first, second, third = found
    assert isinstance(first, dict)
    bgp = first.pop("bgp")
    assert first == {"node": "a", "status": "failing", "revision": 7, "failures": {"np/ns/x": "why"}, "warnings": []}
    assert isinstance(bgp, dict)
    assert (bgp["ready"], bgp["router_id"]) == (True, "192.0.2.1")
    (peer,) = bgp["peers"]  # type: ignore[misc]
    assert isinstance(peer, dict)
    assert (peer["kind"], peer["state"], peer["accepted"]) == ("Mesh", "Established", 10)
    assert second == {"node": "b", "status": "behind", "revision": 5, "failures": {}, "warnings": ["w"]}
    assert third == {"node": "c", "status": "no report"}
