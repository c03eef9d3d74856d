"""FelixConfiguration over its layers, and what of it is ignored with a word."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from libs.testkit.bootstrap import key
from services.felix.core.live import LiveSettings, effective, seconds

LABELS = {"rack": "a", "kubernetes.io/hostname": "node1"}


def stored(*configs: tuple[str, dict[str, Any]], at: str = "2026-01-01T00:00:00Z") -> dict[str, msgspec.Raw]:
    return {
        key("felixconfigurations", name): msgspec.Raw(
            json.dumps({"metadata": {"name": name, "creationTimestamp": spec.pop("at", at)}, "spec": spec}).encode()
        )
        for name, spec in configs
    }


def test_nothing_is_set_by_default() -> None:
    assert effective({}, "node1", LABELS) == LiveSettings({}, None, None, ())


def test_later_layers_win_field_by_field() -> None:
    layers = stored(
        ("default", {"logSeverityScreen": "Error", "routeRefreshInterval": "1m30s", "nftablesRefreshInterval": "10s"}),
        ("rack-a", {"nodeSelector": "rack == 'a'", "logSeverityScreen": "Warning", "routeRefreshInterval": "20s"}),
        ("node.node1", {"logSeverityScreen": "Debug", "logSeverityFile": "Fatal"}),
        ("node.node2", {"logSeverityScreen": "Info", "routeRefreshInterval": "1h"}),
    )
    assert effective(layers, "node1", LABELS) == LiveSettings({"screen": "debug", "file": "critical"}, 10.0, 20.0)
    assert effective(layers, "node2", {}) == LiveSettings({"screen": "info"}, 10.0, 3600.0)
    assert effective(layers, "node3", {}) == LiveSettings({"screen": "error"}, 10.0, 90.0)


def test_of_several_selected_ones_the_oldest_counts_and_names_break_the_tie() -> None:
    def selected(level: str, at: str) -> dict[str, Any]:
        return {"nodeSelector": "has(rack)", "logSeverityScreen": level, "at": at}

    old, new = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    for configs, level in (
        ((("a", selected("Info", new)), ("b", selected("Debug", old))), "debug"),
        ((("b", selected("Debug", old)), ("a", selected("Info", old))), "info"),
    ):
        assert effective(stored(*configs), "node1", LABELS).log_levels == {"screen": level}


def test_what_cannot_be_read_is_named_and_leaves_the_rest() -> None:
    layers = stored(
        ("default", {"logSeverityScreen": "Loud", "logSeveritySys": "Info", "routeRefreshInterval": "soon"}),
        ("other", {"nodeSelector": "rack ==", "logSeverityScreen": "Debug"}),
        ("node.node1", {"nftablesRefreshInterval": "0s"}),
    )
    layers[key("felixconfigurations", "broken")] = msgspec.Raw(b'{"spec": {"logSeverityScreen": 7}}')
    found = effective(layers, "node1", LABELS)
    assert (found.log_levels, found.nftables_refresh_s, found.route_refresh_s) == ({"syslog": "info"}, 0.0, None)
    assert len(found.problems) == 4
    assert {text.split(":")[0] for text in found.problems} == {
        "broken", "other", "log_severity_screen", "route_refresh_interval",
    }  # fmt: skip


def test_a_selected_one_without_selector_and_other_kinds_are_not_ours() -> None:
    layers = stored(("stray", {"logSeverityScreen": "Debug"}))
    layers[key("bgpconfigurations", "default")] = msgspec.Raw(b'{"spec": {"logSeverityScreen": "Debug"}}')
    assert effective(layers, "node1", LABELS) == LiveSettings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90s", 90.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("250ms", 0.25), ("0s", 0.0), ("0", 0.0),
        (None, None), ("", None), ("90", None), ("s", None), ("-1s", None), ("1s2", None), ("1 s", None),
    ],
)  # fmt: skip
def test_durations(text: str | None, value: float | None) -> None:
    assert seconds(text) == value
