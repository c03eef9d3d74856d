"""What the controller plans beyond `autohep.changes`: what it must not do for things that it cannot read."""

from __future__ import annotations

from libs import model
from libs.policy import autohep
from services.kube_controllers.core.host_endpoints import plan

ON = model.AutoHostEndpointConfig(auto_create="Enabled", create_default_host_endpoint="Enabled")
OFF = model.AutoHostEndpointConfig(auto_create="Disabled")


def node(name: str) -> model.Node:
    spec = model.NodeSpec(bgp=model.NodeBGPSpec(ipv4_address="192.0.2.1/24"))
    return model.Node(metadata=model.ObjectMeta(name=name, labels={"rack": "a"}), spec=spec)


def made_for(*names: str) -> list[model.HostEndpoint]:
    return list(autohep.desired([node(name) for name in names], ON).endpoints.values())


def test_a_node_that_is_gone_takes_its_host_endpoint_along() -> None:
    found = plan([node("a")], made_for("a", "b"), ON)
    assert (found.changes.create, found.changes.update, found.changes.delete) == ((), (), ("b-auto-hep",))
    assert found.wanted == 1


def test_a_node_that_cannot_be_read_keeps_its_host_endpoint() -> None:
    found = plan([node("a")], made_for("a", "b", "c"), ON, unreadable_nodes={"b"})
    assert found.changes.delete == ("c-auto-hep",)
    assert found.problems == ("host endpoint b-auto-hep stays: node b cannot be read",)


def test_switched_off_removes_those_of_unreadable_nodes_as_well() -> None:
    found = plan([], made_for("a", "b"), OFF, unreadable_nodes={"b"})
    assert found.changes.delete == ("a-auto-hep", "b-auto-hep")
    assert found.problems == ()
