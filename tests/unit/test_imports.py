"""Imports point one way, and the pure parts stay pure.

- libs never import services; services import no other service.
- In a service: shell → drivers → core/calc → model. The wiring (app, config, __main__, metrics) is above them all.
- core, calc and model of a service, libs.model and libs.policy: nothing that waits, talks or tells the time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Modules that a pure one must not import; of `random` the class Random may be named, since a caller passes one in.
IMPURE = {
    "asyncio", "socket", "select", "selectors", "threading", "subprocess", "multiprocessing", "signal", "time",
    "random", "aiohttp", "grpc", "nats", "aetcd", "uvloop", "pyroute2",
    "libs.netlink.socket", "libs.netlink.drivers", "libs.nftables.kernel", "libs.runtime", "libs.bus.nats",
    "libs.bus.memory", "libs.store.etcd", "libs.store.memory", "libs.testkit",
}  # fmt: skip
PURE_LIBS = ("libs.model", "libs.policy", "libs.feed.feed", "libs.feed.delta", "libs.feed.streams")
LAYERS = {"model": 0, "core": 1, "calc": 1, "drivers": 2, "shell": 3}


def modules(top: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / top).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path: Path, module: str) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it or None). What only type checkers see does not count; what functions import does."""
    for node in _runtime_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                yield node.module or "", alias.name


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _runtime_nodes(child)


def within(module: str, name: str | None, package: str) -> bool:
    """Does `from module import name` reach into the package, or is it the package?"""
    full = f"{module}.{name}" if name else module
    return any(text == package or text.startswith(f"{package}.") for text in (module, full))


def test_libs_never_import_services_and_neither_imports_tests() -> None:
    wrong = [
        f"{module}: {target}"
        for top in ("libs", "services")
        for module, path in modules(top)
        for target, name in imported(path, module)
        if within(target, name, "tests") or (top == "libs" and within(target, name, "services"))
    ]
    assert wrong == []


def test_services_import_no_other_service() -> None:
    wrong = []
    for module, path in modules("services"):
        own = ".".join(module.split(".")[:2])
        for target, name in imported(path, module):
            full = f"{target}.{name}" if target == "services" and name else target
            if full.startswith("services.") and not (full == own or full.startswith(f"{own}.")):
                wrong.append(f"{module}: {full}")
    assert wrong == []


def test_inside_a_service_imports_go_down() -> None:
    wrong = []
    for module, path in modules("services"):
        parts = module.split(".")
        layer = LAYERS.get(parts[2]) if len(parts) > 2 else None
        if layer is None:
            continue
        for target, _ in imported(path, module):
            other = target.split(".")
            if other[:2] != parts[:2] or len(other) < 3:
                continue
            if LAYERS.get(other[2], 4 if other[2] in ("app", "__main__") else 0) > layer:
                wrong.append(f"{module}: {target}")
    assert wrong == []


def pure_modules() -> list[tuple[str, Path]]:
    found = [item for item in modules("libs") if any(within(item[0], None, package) for package in PURE_LIBS)]
    for module, path in modules("services"):
        parts = module.split(".")
        if len(parts) > 2 and parts[2] in ("core", "calc", "model"):
            found.append((module, path))
    return found


@pytest.mark.parametrize(("module", "path"), pure_modules(), ids=[module for module, _ in pure_modules()])
def test_pure_modules_import_nothing_that_waits_talks_or_tells_the_time(module: str, path: Path) -> None:
    wrong = [
        f"{target}.{name}" if name else target
        for target, name in imported(path, module)
        if (target, name) != ("random", "Random") and any(within(target, name, impure) for impure in IMPURE | {"os"})
    ]
    assert wrong == []


def test_the_test_sees_what_it_is_for(tmp_path: Path) -> None:
    """Or a change of the walk would make all of the above true."""
    text = "import time\nfrom random import Random, choice\nfrom libs import runtime\ndef f():\n    import socket\n"
    (tmp_path / "m.py").write_text(text + "if TYPE_CHECKING:\n    import asyncio\n")
    found = list(imported(tmp_path / "m.py", "m"))
    assert found == [("time", None), ("random", "Random"), ("random", "choice"), ("libs", "runtime"), ("socket", None)]
    assert within("libs", "runtime", "libs.runtime")
    assert not within("libs.runtimes", None, "libs.runtime")
    assert len(pure_modules()) > 40
