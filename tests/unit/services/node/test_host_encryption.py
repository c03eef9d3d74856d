from __future__ import annotations

from libs.model import FelixConfiguration, FelixConfigurationSpec, ObjectMeta
from services.node.core.host_encryption import host_encryption


def layer(name: str, on: bool | None, selector: str = "", created: str = "") -> FelixConfiguration:
    spec = FelixConfigurationSpec(wireguard_host_encryption_enabled=on, node_selector=selector)
    return FelixConfiguration(metadata=ObjectMeta(name=name, creation_timestamp=created), spec=spec)


def test_layers_win_in_order_and_only_when_they_say_something() -> None:
    labels = {"zone": "a"}
    default, zone = layer("default", True), layer("zone", False, "zone == 'a'", "2026-01-01T00:00:00Z")
    assert not host_encryption([], "node1", labels)
    assert host_encryption([default], "node1", labels)
    assert not host_encryption([default, zone], "node1", labels)
    assert host_encryption([default, zone], "node1", {"zone": "b"})
    assert host_encryption([default, zone, layer("node.node1", True)], "node1", labels)
    assert not host_encryption([default, zone, layer("node.node1", None)], "node1", labels)
    assert not host_encryption([default, zone, layer("node.node2", True)], "node1", labels)


def test_of_those_that_select_the_node_the_oldest_counts_and_a_bad_selector_selects_nothing() -> None:
    older = layer("z", True, "all()", "2026-01-01T00:00:00Z")
    newer = layer("a", False, "all()", "2026-01-02T00:00:00Z")
    bad = layer("b", False, "zone ==", "2025-01-01T00:00:00Z")
    assert host_encryption([newer, older, bad], "node1", {})
