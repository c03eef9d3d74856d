"""Names made of parts: workload endpoints' names hold node, orchestrator, workload and endpoint.

    k8s         <node>-k8s-<pod>-<endpoint>
    cni         <node>-cni-<containerID>-<endpoint>
    libnetwork  <node>-libnetwork-libnetwork-<endpoint>
    any other   <node>-<orchestrator>-<workload>-<endpoint>

Inside a part each dash is doubled, so a lone dash separates. A part neither begins nor ends with a dash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libs.model.endpoints import WorkloadEndpointSpec

KUBERNETES, CNI, LIBNETWORK = "k8s", "cni", "libnetwork"


class NamePartError(ValueError):
    """A part is missing or cannot be part of a name. `field` is its JSON name in the spec."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.reason = message


@dataclass(frozen=True, slots=True)
class WorkloadEndpointName:
    """Parts from left to right; those a prefix does not reach are ""."""

    node: str = ""
    orchestrator: str = ""
    workload: str = ""
    endpoint: str = ""


def workload_field(orchestrator: str) -> str:
    """Which field of the spec is the third part, by JSON name; "" where it is fixed."""
    return {KUBERNETES: "pod", CNI: "containerID", LIBNETWORK: ""}.get(orchestrator, "workload")


def workload_endpoint_name(spec: WorkloadEndpointSpec) -> str:
    """The name that a workload endpoint with these fields must have.

    Raises NamePartError for a part that is missing or has a dash at an end.
    """
    field = workload_field(spec.orchestrator)
    workload = {"pod": spec.pod, "containerID": spec.container_id, "workload": spec.workload, "": LIBNETWORK}[field]
    parts = (
        ("node", spec.node),
        ("orchestrator", spec.orchestrator),
        (field, workload),
        ("endpoint", spec.endpoint),
    )
    return "-".join(_escape(name, value) for name, value in parts)


def workload_endpoint_prefix(*parts: str) -> str:
    """What every name with these first parts (node, orchestrator, …) begins with.

    Other names may begin with it too: parse what a listing returns and compare.
    """
    return "".join(f"{_escape('name', part)}-" for part in parts)


def parse_workload_endpoint_name(name: str) -> WorkloadEndpointName:
    """The parts of a full name. Raises ValueError when there are not exactly four."""
    parts = _split(name)
    if len(parts) != 4 or not all(parts):
        raise ValueError(f"workload endpoint name {name!r} must have four parts: node-orchestrator-workload-endpoint")
    return WorkloadEndpointName(*parts)


def _escape(field: str, value: str) -> str:
    if not value:
        raise NamePartError(field, "must not be empty: the endpoint's name is made of it")
    if value.startswith("-") or value.endswith("-"):
        raise NamePartError(field, f"must not begin or end with a dash: {value!r}")
    return value.replace("-", "--")


def _split(name: str) -> list[str]:
    parts, current, at = [], "", 0
    while at < len(name):
        if name.startswith("--", at):
            current, at = current + "-", at + 2
        elif name[at] == "-":
            parts.append(current)
            current, at = "", at + 1
        else:
            current, at = current + name[at], at + 1
    return [*parts, current]
