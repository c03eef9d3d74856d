from __future__ import annotations

import pytest

from libs.bus import Msg, subjects, wire
from libs.bus.subject_match import matches
from services.calicoctl.tap_kinds import TapProblem, choose

EVENT = wire.EventMsg(rev=5, action="put", key="/calico/x")


def event(kind: str, namespace: str, name: str, rev: int = 5, instance: str = "i1") -> Msg:
    data = wire.encode(wire.EventMsg(rev=rev, action="put", key=f"/calico/{kind}/{namespace}/{name}"))
    return Msg(subjects.event(instance, kind, namespace, name), data, "", {}, lambda *_: None)


def status(node: str, endpoint: str) -> Msg:
    return Msg(subjects.endpoint_status(node, endpoint), b"{}", "", {}, lambda *_: None)


def shown(message: Msg, *words: str, **filters: str) -> bool:
    choice = choose(words, **filters)
    return any(matches(one, message.subject) for one in choice.subjects) and choice.accept(message)


@pytest.mark.parametrize(
    ("words", "filters", "yes", "no"),
    [
        (("np",), {}, event("NetworkPolicy", "ns1", "web"), event("GlobalNetworkPolicy", "", "web")),
        (("np", "gnp"), {}, event("GlobalNetworkPolicy", "", "a.b"), event("Tier", "", "a")),
        (("np",), {"namespace": "ns1"}, event("NetworkPolicy", "ns1", "web"), event("NetworkPolicy", "ns2", "web")),
        (("gnp",), {"name": "a.b"}, event("GlobalNetworkPolicy", "", "a.b"), event("GlobalNetworkPolicy", "", "a")),
        (
            ("pods",),
            {"name": "web-1", "namespace": "ns1"},
            event("WorkloadEndpoint", "ns1", "node--1-k8s-web--1-eth0"),
            event("WorkloadEndpoint", "ns1", "node--1-k8s-web--11-eth0"),
        ),
        (
            ("pods",),
            {"node": "node-1"},
            event("WorkloadEndpoint", "ns1", "node--1-k8s-web-eth0"),
            event("WorkloadEndpoint", "ns1", "node--11-k8s-web-eth0"),
        ),
        (("endpoints",), {"node": "n.1"}, status("n.1", "k8s/ns1/web/eth0"), status("n", "k8s/ns1/web/eth0")),
        (("endpoints",), {"name": "web"}, status("n", "k8s/ns1/web/eth0"), status("n", "k8s/ns1/web2/eth0")),
        (
            ("endpoints",),
            {"namespace": "ns1"},
            status("n", "k8s/ns1/web/eth0"),
            status("n", "k8s/ns2/web/eth0"),
        ),
        (("nodes",), {"node": "n1"}, event("Node", "", "n1"), event("Node", "", "n2")),
        (("calico.typha.*.event.>",), {}, event("Node", "", "n1"), status("n", "x")),
    ],
)
def test_kinds_and_filters(words: tuple[str, ...], filters: dict[str, str], yes: Msg, no: Msg) -> None:
    assert shown(yes, *words, **filters)
    assert not shown(no, *words, **filters)


def test_a_change_that_several_typhas_tell_is_shown_once() -> None:
    choice = choose(["np"])
    first, again = (event("NetworkPolicy", "ns1", "web", instance=instance) for instance in ("i1", "i2"))
    assert choice.accept(first)
    assert not choice.accept(again)
    assert choice.accept(event("NetworkPolicy", "ns1", "web", rev=6))


@pytest.mark.parametrize(
    ("words", "filters", "says"),
    [
        (("polices",), {}, "no kind of message is called 'polices'; did you mean"),
        (("beats",), {"node": "n1"}, "--node does not fit beats, which takes no filter"),
        (("bgp",), {"name": "x"}, "--name does not fit bgp, which takes --node"),
        (("gnp",), {"namespace": "x"}, "--namespace does not fit GlobalNetworkPolicy"),
        (("gnp",), {"node": "x"}, "--node does not fit GlobalNetworkPolicy"),
        ((), {"node": "x"}, "--node: of which kinds?"),
        (("calico.>",), {"node": "x"}, "is a subject, which filters do not fit"),
        (("calico..x",), {}, "is not a subject to subscribe to"),
    ],
)
def test_what_means_nothing_is_told(words: tuple[str, ...], filters: dict[str, str], says: str) -> None:
    with pytest.raises(TapProblem, match=says.replace("?", r"\?")):
        choose(words, **filters)
