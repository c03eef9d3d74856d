"""What all tests share: Hypothesis profiles, the rule that a skip must stand in tests/skips.txt, that workers keep to
groups, and that who looks for tests of the virtual machine finds them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from libs.runtime import logs
from libs.testkit.servers import CRASH_ETCD

settings.register_profile(
    "gate", derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "hunt", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
_profile = os.environ.get("HYPOTHESIS_PROFILE", "gate")
settings.load_profile(_profile)
if _profile == "gate":
    # Hypothesis also draws numbers and texts that stand in those of our modules that are loaded by then: it would
    # depend on the tests that the same worker ran before.
    if not callable(getattr(providers, "_get_local_constants", None)):
        raise RuntimeError("this release of Hypothesis finds our constants in another way than tests/conftest.py knows")
    _nothing = providers.Constants()
    providers._get_local_constants = lambda: _nothing

SKIPS = Path(__file__).parent / "skips.txt"
_unlisted: list[str] = []


@pytest.fixture(scope="session")
def crash_etcd() -> Path:
    """A server that may be killed."""
    if not CRASH_ETCD.exists():
        pytest.skip("distribution's etcd is not here")
    return CRASH_ETCD


def allowed_skips() -> list[str]:
    """Reasons that may be given, one a line; `#` starts a comment."""
    lines = (line.split("#", 1)[0].strip() for line in SKIPS.read_text().splitlines())
    return [line for line in lines if line]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Groups that xdist does not see are torn apart silently, and each worker starts what they share. A file that does
    not name the mark is not taken along into the virtual machine, where loading all of them takes too long.
    """
    if getattr(config.option, "loadgroup", False):
        alone = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if alone:
            raise pytest.UsageError(f"xdist does not know the group of {len(alone)} tests, of {alone[0]} for one")
    for path in {item.path for item in items if item.get_closest_marker("stock_kernel")}:
        if "stock_kernel" not in path.read_text().lower():
            raise pytest.UsageError(f"{path}: its tests are marked stock_kernel, a word that `./dev` looks for in it")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed in reason for allowed in allowed_skips()):
        _unlisted.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unlisted:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unlisted:
        terminalreporter.section("skips that are not listed in tests/skips.txt", red=True)
        for line in _unlisted:
            terminalreporter.line(line)


@pytest.fixture(autouse=True, scope="module")
def logs_as_before() -> Iterator[None]:
    """A command or service that a test runs in this process sets up logs, which are also those of all other tests."""
    level = logging.getLogger().level
    yield
    logs.close()
    logging.getLogger().setLevel(level)
