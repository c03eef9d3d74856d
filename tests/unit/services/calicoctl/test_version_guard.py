"""Clusters of another version are refused, unless the user says otherwise; some commands never ask."""

from __future__ import annotations

import pytest

from libs.resources.version_guard import CALICO, DATA_FORMAT, FORMAT, fits
from services.calicoctl.version import client_version
from tests.unit.services.calicoctl.ctl import Ctl

TIER = "kind: Tier\napiVersion: projectcalico.org/v3\nmetadata: {name: sec}\n"


@pytest.mark.parametrize(
    ("cluster", "good"),
    [
        ("", True), (f"v{CALICO}.0", True), (f"{CALICO}.7-0.dev-12-gabcdef", True), (f"v{CALICO}", True),
        (client_version(), True), (f"{client_version()}-3-gabc", True),
        ("v3.26.1", False), (f"v{CALICO}0.1", False), ("v4.0.0", False), ("master", False),
    ],
)  # fmt: skip
def test_which_versions_fit(cluster: str, good: bool) -> None:
    assert fits(cluster, client_version()) is good


@pytest.fixture
def old(ctl: Ctl) -> Ctl:
    ctl.run(ctl.client().ensure_initialized("v3.26.1", "k8s"))
    return ctl


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "tiers"), ("apply", "-f", "-"), ("create", "-f", "-"), ("replace", "-f", "-"), ("delete", "tier", "x"),
        ("delete", "-f", "-", "--dry-run=server"), ("patch", "tier", "default", "-p", "{}"),
        ("label", "tier", "default", "a=b"), ("ipam", "show"), ("ipam", "check"), ("ipam", "configure",
        "--strictaffinity=true"), ("datastore", "migrate", "lock"), ("datastore", "migrate", "export"),
        ("datastore", "migrate-policy-names"), ("get", "tiers", "--watch"),
    ],
)  # fmt: skip
def test_others_are_refused_before_anything_happens(old: Ctl, arguments: tuple[str, ...]) -> None:
    before = old.server.snapshot()
    message = old.bad(*arguments, stdin=TIER)
    assert message.startswith("Version mismatch.\nClient Version:   ")
    assert "Cluster Version:  v3.26.1\nUse --allow-version-mismatch to override." in message
    assert old.server.snapshot() == before


def test_the_flag_lets_them_through(old: Ctl) -> None:
    assert "default" in old.good("get", "tiers", "--allow-version-mismatch")
    assert "applied 1" in old.good("apply", "-f", "-", "--allow-version-mismatch", stdin=TIER)


def test_version_and_validate_do_not_ask(old: Ctl) -> None:
    assert "Cluster Version:   v3.26.1" in old.good("version")
    assert "validated 1" in old.good("validate", "-f", "-", stdin=TIER)


def test_a_cluster_that_says_nothing_is_no_mismatch(ctl: Ctl) -> None:
    assert ctl.good("get", "tiers")
    ctl.apply(TIER)
    assert "sec" in ctl.good("get", "tiers")


def test_data_that_a_later_release_wrote_are_refused_with_the_reason(ctl: Ctl) -> None:
    async def upgraded() -> None:
        client = ctl.client()
        await client.ensure_initialized("v9.1.0", "k8s")
        found = await client.get("ClusterInformation", "default")
        found.metadata.annotations = {DATA_FORMAT: str(FORMAT + 1)}
        await client.update(found)

    ctl.run(upgraded())
    before = ctl.server.snapshot()
    message = ctl.bad("apply", "-f", "-", stdin=TIER)
    assert f"data of format {FORMAT + 1}" in message
    assert "Cluster Version:  v9.1.0" in message
    assert ctl.server.snapshot() == before
