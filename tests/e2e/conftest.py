"""A whole Kubernetes with our network: real control plane, our services, nodes that are namespaces or real kubelets.

A cluster serves a module. Tests leave it as they found it: their namespaces and cluster-wide policies go with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.testkit.kube import real_node
from libs.testkit.kube.programs import KubernetesMissing, program
from libs.testkit.netns import can_make_namespaces
from tests.marks import by_module


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    by_module(items, Path(__file__).parent, "cluster")


def needs_kubernetes() -> None:
    """Skip where there is no control plane to be had."""
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    for name in ("kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        try:
            program(name)
        except KubernetesMissing as error:
            pytest.skip(str(error))


def needs_real_kubelets() -> None:
    if reason := real_node.missing():
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report: Any = yield
    kube = getattr(item, "funcargs", {}).get("kube")
    if report.failed and kube is not None:
        report.sections.append(("cluster", kube.told()))
    return report
