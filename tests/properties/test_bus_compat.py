"""Every message on the bus is understood when a later release has added to it, and when an earlier one left out what
was added since (docs/design/compatibility.md).
"""

from __future__ import annotations

import inspect
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.bus import compat, wire
from libs.policy.bgp_output import BgpNode, ServiceRoutes
from libs.policy.output import Action, Host, IPSetType, NodeInfo, Policy, Pool, Profile, Rule, Workload
from tests.unit.libs.bus.grown import grown
from tests.unit.services.typha.samples import Writer, endpoint, policy

EPOCH = wire.Epoch("t1", 5, 7)
PLACE: dict[str, Any] = {"epoch": EPOCH, "rev": 3, "seq": 2, "prev": 1}
RULES = (Rule(action=Action.ALLOW, src_sets=("s:1",)),)
SET = wire.SetContent(IPSetType.NET, ["192.0.2.1/32"])
STATE = wire.StreamState(4, msgspec.Raw(wire.encode(SET)))
TABLES: dict[str, Any] = {
    "blocks": {"10.65.0.0/26": wire.BlockRow("n1", {"10.65.0.1": "n2"})},
    "nodes": {"n1": NodeInfo()},
    "pools": {"10.65.0.0/16": Pool(cidr="10.65.0.0/16")},
    "config": {"/calico/x": msgspec.Raw(b'{"spec":{}}')},
    "bgp": {"node/n1": BgpNode(cluster_id="1.0.0.1")},
    "services": {"ns1/web": ServiceRoutes(addresses=("192.0.2.9",))},
}
RULED = Policy(tier="default", selector="all()", inbound=RULES)
ENDPOINTS: dict[str, Any] = {"workloads": {"k8s/ns1/p1/eth0": Workload(name="calip1")}, "hosts": {"h": Host(name="h")}}
MESSAGES: tuple[msgspec.Struct, ...] = (
    wire.PolicyContent(RULED), wire.ProfileContent(Profile(inbound=RULES)), SET, wire.TableContent(**TABLES),
    wire.PolicyMsg(**PLACE, policy=RULED), wire.SetMsg(**PLACE, added=["192.0.2.1/32"], removed=["192.0.2.2/32"]),
    wire.TableMsg(**PLACE, **TABLES), wire.TableMsg(**PLACE, nodes={"n1": None}),
    wire.Commit(**PLACE, needs={"ipset.s:1": 4}, add={"ipset.s:1": STATE, "ipset.s:2": None}, remove=["ipset.s:3"],
                **ENDPOINTS),
    wire.Mark(epoch=EPOCH, rev=3, seq=2), wire.Beat(epoch=EPOCH, rev=3, etcd_age_s=0.5, head=4, version="v9"),
    wire.EventMsg(rev=3, action="put", key="/calico/x", value=msgspec.Raw(b"{}")),
    wire.SnapshotRequest(node="n1", streams={"ipset.s:1": 3}),
    wire.SnapshotReply(epoch=EPOCH, rev=3, etcd_age_s=0.5, head=4, chunks=1, data=b"x", version="v9"),
    wire.Snapshot(rev=3, seq=2, full=True, streams={"ipset.s:1": STATE}, gone=["ipset.s:2"], **ENDPOINTS),
    wire.MarkRequest(rev=3, nodes=["n1"]), wire.ConcernsRequest(rev=3), wire.ConcernsReply(rev=3, nodes=["n1"]),
    wire.Applied(node="n1", epoch=EPOCH, rev=3, seq=2, failures={"ipset s:1": "full"}, warnings=("x",)),
    wire.EndpointStatus(node="n1", endpoint="k8s/ns1/p1/eth0", status="up", rev=3),
)  # fmt: skip
PARTS = {wire.Epoch, wire.Envelope, wire.BlockRow, wire.StreamState}
UNIONS = {member: union for union in (wire.NodeMessage, wire.StreamMessage, wire.Content) for member in union.__args__}


def kind_of(message: msgspec.Struct) -> Any:
    """What a receiver decodes it as."""
    return UNIONS.get(type(message), type(message))


def test_every_message_is_among_the_samples() -> None:
    defined = {
        one for _, one in inspect.getmembers(wire, inspect.isclass)
        if issubclass(one, msgspec.Struct) and one.__module__ == wire.__name__
    }  # fmt: skip
    assert defined - PARTS == {type(message) for message in MESSAGES}


@given(message=st.sampled_from(MESSAGES), seed=st.integers(0, 2**32))
def test_fields_that_are_not_known_change_nothing(message: msgspec.Struct, seed: int) -> None:
    data = grown(message, Random(seed))
    assert b'"later0"' in data
    assert wire.decoder(kind_of(message)).decode(data) == message


@given(seed=st.integers(0, 2**32))
def test_what_typha_really_sends_may_grow(seed: int) -> None:
    writer = Writer(endpoint("node1", "p1", "web", 1), policy("web", "web", "db"))
    snapshot = writer.publisher.snapshot("node1", 0.0)
    assert wire.decoder(wire.Snapshot).decode(grown(snapshot, Random(seed))) == snapshot
    for raw in snapshot.streams.values():
        content = wire.decode_content(raw.content)
        assert wire.decode_content(msgspec.Raw(grown(content, Random(seed)))) == content


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_fields_with_defaults_may_be_left_out(message: msgspec.Struct) -> None:
    required = {field.name for field in msgspec.structs.fields(message) if field.required}
    told = {name: getattr(message, name) for name in required}
    config = message.__struct_config__
    if config.tag_field is not None:
        told[config.tag_field] = config.tag
    assert wire.decoder(kind_of(message)).decode(msgspec.json.encode(told)) == type(message)(
        **{name: getattr(message, name) for name in required}
    )


def test_messages_of_the_first_release_are_of_protocol_1() -> None:
    """Written down as they were then."""
    beat = wire.decoder(wire.Beat).decode(b'{"epoch":["t1",5,7],"rev":3,"etcd_age_s":0.5,"head":4}')
    reply = wire.decoder(wire.SnapshotReply).decode(b'{"epoch":["t1",5,7],"rev":3,"etcd_age_s":0.5,"head":4}')
    request = wire.decoder(wire.SnapshotRequest).decode(b'{"node":"n1","hello":true}')
    assert (beat.protocol, reply.protocol, request.protocol) == (1, 1, 1)
    assert (beat.version, reply.version, reply.refused, request.version) == ("", "", False, "")


@given(kind=st.text(max_size=12))
def test_a_kind_is_unknown_exactly_when_no_member_of_the_union_has_it(kind: str) -> None:
    data = msgspec.json.encode({"kind": kind})
    known = {"policy", "ipset", "table"}
    assert compat.unknown_kind(wire.StreamMessage, data) == ("" if kind in known else kind)


@given(data=st.binary(max_size=40))
def test_any_bytes_have_a_kind_or_none(data: bytes) -> None:
    assert isinstance(compat.unknown_kind(wire.NodeMessage, data), str)
