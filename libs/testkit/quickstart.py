"""The files of examples/quickstart, and in its folder demo/ the pods to make and the matrices that a person wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
WORDS = {"+": "allow", ".": "deny"}


class BadExample(Exception):
    """The example contradicts itself; the text says where."""


@dataclass(frozen=True, slots=True)
class PodSpec:
    name: str
    namespace: str
    node: str
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """expected: (from, to, port) -> "allow" or "deny"."""

    name: str
    apply: tuple[Path, ...]
    expected: dict[tuple[str, str, int], str]


@dataclass(frozen=True, slots=True)
class Quickstart:
    pods: tuple[PodSpec, ...]
    ports: tuple[int, ...]
    families: tuple[int, ...]
    stages: tuple[Stage, ...]


def load(directory: Path = DIRECTORY) -> Quickstart:
    """Raises BadExample."""
    described: dict[str, Any] = yaml.safe_load((directory / "demo" / "pods.yaml").read_text())
    wanted: dict[str, Any] = yaml.safe_load((directory / "demo" / "expected.yaml").read_text())
    pods = tuple(PodSpec(**pod) for pod in described["pods"])
    ports = tuple(int(port) for port in wanted["ports"])
    names = [pod.name for pod in pods]
    stages = tuple(
        Stage(
            stage["name"],
            tuple(directory / name for name in stage["apply"]),
            dict(_cells(stage["name"], stage["matrix"], names, ports)),
        )
        for stage in wanted["stages"]
    )
    return Quickstart(pods, ports, tuple(wanted.get("families", [4])), stages)


def _cells(
    stage: str, matrix: str, names: list[str], ports: tuple[int, ...]
) -> Iterator[tuple[tuple[str, str, int], str]]:
    rows = [line.split() for line in matrix.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if [row[0] for row in rows] != names:
        raise BadExample(f"stage {stage}: rows are {[row[0] for row in rows]}, pods are {names}")
    for source, *cells in rows:
        if len(cells) != len(names):
            raise BadExample(f"stage {stage}, row {source}: {len(cells)} cells for {len(names)} pods")
        for target, cell in zip(names, cells, strict=True):
            if (source == target) != (cell == "-" * len(ports)) or len(cell) != len(ports):
                raise BadExample(f"stage {stage}, {source} to {target}: {cell!r}")
            if source != target:
                for port, mark in zip(ports, cell, strict=True):
                    yield (source, target, port), WORDS[mark]
