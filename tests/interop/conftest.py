"""Interoperation: a subject (our speaker, or the daemon that INTEROP_SUBJECT names) and a real router beside it.

Each test names its feature by a marker; results become docs/interop.md when INTEROP_RESULTS names a file (`./dev
interop-matrix`). Logs and configurations of all daemons are part of a failure's report.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.testkit.netns import can_make_namespaces
from libs.testkit.routers.lab import Lab
from libs.testkit.routers.peer import Peer, RouterMissing
from tests.interop.pairs import KINDS, Pairing, subject

_results: dict[str, dict[str, list[list[str]]]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with Lab() as made:
        request.node.stash[_LAB] = made
        yield made


_LAB = pytest.StashKey[Lab]()


@pytest.fixture
def pairing(lab: Lab, request: pytest.FixtureRequest) -> Pairing:
    """Makes routers in this test's network; a daemon that is not on this machine skips the test."""
    return Pairing(lab)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> type[Peer]:
    """The router opposite; a test says by `needs` what it must be able to do."""
    found = KINDS[request.param]
    missing = {ability for marker in request.node.iter_markers("needs") for ability in marker.args} - found.can
    if missing:
        pytest.skip(f"the router opposite cannot: {request.param} {', '.join(sorted(missing))}")
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    if call.excinfo is not None and call.excinfo.errisinstance(RouterMissing):
        call.excinfo = pytest.ExceptionInfo.from_exc_info(_skipped(str(call.excinfo.value)))
    report: Any = yield
    lab = item.stash.get(_LAB, None)
    if report.when == "call" and report.failed and lab is not None:
        report.sections.append(("routers", lab.told()))
    marker = item.get_closest_marker("feature")
    if marker and (report.when == "call" or report.skipped or report.failed):
        _record(item, marker.args[0], marker.kwargs.get("router", "raw"), report)
    return report


def _skipped(reason: str) -> Any:
    try:
        pytest.skip(reason)
    except pytest.skip.Exception as error:
        return type(error), error, error.__traceback__


def _record(item: pytest.Item, feature: str, default: str, report: pytest.TestReport) -> None:
    call = getattr(item, "callspec", None)
    peer = (
        next((call.params[name] for name in ("kind", "opposite") if name in call.params), default) if call else default
    )
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    outcome = "skip" if report.skipped else report.outcome
    _results.setdefault(feature, {}).setdefault(peer, []).append([item.name, outcome, reason])


def pytest_sessionfinish(session: pytest.Session) -> None:
    if target := os.environ.get("INTEROP_RESULTS"):
        Path(target).write_text(json.dumps({"subject": subject().daemon, "features": _results}, indent=1))
