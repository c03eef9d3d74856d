"""Tests with kubectl, and with a real kube-apiserver where one can be had.

One control plane serves a module: `control_plane`. All tests of a module run in the same worker, so that it stays one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.kube.programs import KubernetesMissing, program
from tests.kube.ways import Way, alone, behind
from tests.marks import by_module


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    by_module(items, Path(__file__).parent, "kube")


def needs(*programs: str) -> None:
    """Skip the test when one of them is not on this machine."""
    for name in programs:
        try:
            program(name)
        except KubernetesMissing as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    needs("kubectl", "kube-apiserver", "kube-controller-manager")
    with ControlPlane() as made:
        yield made


@pytest.fixture(scope="module", params=["alone", "behind"])
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """Our apiserver as kubectl reaches it: by itself, then through kube-apiserver."""
    needs("kubectl")
    directory = tmp_path_factory.mktemp("way")
    if request.param == "alone":
        with alone(directory) as made:
            yield made
    else:
        with behind(request.getfixturevalue("control_plane"), directory) as made:
            yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report: Any = yield
    given = getattr(item, "funcargs", {})
    made = given.get("way") or given.get("control_plane")
    if report.failed and made is not None:
        report.sections.append(("servers", made.told()))
    return report
