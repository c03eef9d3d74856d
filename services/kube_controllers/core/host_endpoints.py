"""What the controller of automatic host endpoints has to write, given what it can and cannot read."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from libs import model
from libs.policy import autohep
from libs.policy.autohep import Changes


@dataclass(frozen=True, slots=True)
class Plan:
    """wanted: how many there should be. problems: for the log."""

    changes: Changes
    wanted: int
    problems: tuple[str, ...] = ()


def plan(
    nodes: Iterable[model.Node],
    endpoints: Iterable[model.HostEndpoint],
    config: model.AutoHostEndpointConfig,
    *,
    unreadable_nodes: Collection[str] = (),
) -> Plan:
    """unreadable_nodes: nodes that exist and whose value nobody can read. Their host endpoints stay as they are: a host
    must not lose its policy because somebody damaged its node.
    """
    stored = list(endpoints)
    desired = autohep.desired(nodes, config)
    changes = autohep.changes(stored, desired.endpoints)
    on = config.auto_create == "Enabled"
    of_node = {one.metadata.name: one.spec.node for one in stored}
    kept = [name for name in changes.delete if on and of_node[name] in unreadable_nodes]
    if kept:
        changes = replace(changes, delete=tuple(name for name in changes.delete if name not in kept))
    problems = [
        *desired.problems,
        *changes.problems,
        *(f"host endpoint {name} stays: node {of_node[name]} cannot be read" for name in kept),
    ]
    return Plan(changes, len(desired.endpoints), tuple(problems))
