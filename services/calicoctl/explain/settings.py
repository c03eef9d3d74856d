"""Settings of nodes' felixes, each with the layer that it comes from, as a table and as a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from libs.bus.explain import State
from services.calicoctl.documents import Json
from services.calicoctl.output import boxed

HEADINGS = ["NODE", "SETTING", "VALUE", "SOURCE"]


def text(states: Sequence[State], silent: Mapping[str, str]) -> str:
    rows = [
        [state.node, name, setting.value, setting.source]
        for state in states
        for name, setting in sorted(state.settings.items())
    ]
    told = boxed([HEADINGS, *rows]) if rows else ""
    told += "".join(f"{state.node}: everything is at its default\n" for state in states if not state.settings)
    told += "".join(f"{state.node}: without effect: {warning}\n" for state in states for warning in state.warnings)
    return told + "".join(f"{node}: {why}\n" for node, why in sorted(silent.items()))


def document(states: Sequence[State], silent: Mapping[str, str]) -> Json:
    nodes: dict[str, Json] = {
        state.node: {
            "settings": {
                name: {"value": setting.value, "source": setting.source}
                for name, setting in sorted(state.settings.items())
            },
            "warnings": list(state.warnings),
        }
        for state in states
    }
    return nodes | {node: {"error": why} for node, why in sorted(silent.items())}
