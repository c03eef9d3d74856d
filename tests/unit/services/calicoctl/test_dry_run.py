"""--dry-run: all is checked, conflicts with what is stored included, and nothing is stored."""

from __future__ import annotations

import pytest

from tests.unit.services.calicoctl.ctl import Ctl

TIER = "kind: Tier\napiVersion: projectcalico.org/v3\nmetadata: {name: sec}\nspec: {order: 5}\n"
POLICY = """\
kind: NetworkPolicy
apiVersion: projectcalico.org/v3
metadata: {name: web, namespace: shop}
spec: {tier: sec, order: 1, selector: all()}
"""


def test_the_server_checks_all_and_changes_nothing(ctl: Ctl) -> None:
    ctl.apply(TIER)
    before = ctl.server.snapshot()
    shown = ctl.good("apply", "--dry-run=server", "-f", "-", stdin=TIER.replace("5", "6") + "---\n" + POLICY)
    assert shown.splitlines()[:5] == ["--- a/tier/sec", "+++ b/tier/sec", "@@ -4,5 +4,5 @@", "   name: sec", " spec:"]
    assert "-  order: 5\n+  order: 6\n" in shown
    assert "--- /dev/null\n+++ b/networkpolicy/shop/web\n" in shown
    assert "+  selector: all()\n" in shown
    assert shown.endswith("Successfully applied 2 resource(s)\nDry run by the server: nothing is changed.\n")
    assert ctl.server.snapshot() == before


def test_a_document_sees_what_those_before_it_would_make(ctl: Ctl) -> None:
    assert "Successfully created 2" in ctl.good("create", "--dry-run=server", "-f", "-", stdin=TIER + "---\n" + POLICY)
    message = ctl.bad("create", "--dry-run=server", "-f", "-", stdin=POLICY)
    assert message.endswith("resource does not exist: Tier(sec)\n")
    message = ctl.bad("create", "--dry-run=server", "-f", "-", stdin=f"{TIER}---\n{TIER}")
    assert "resource already exists: Tier(sec)" in message


def test_conflicts_with_what_is_stored_are_found(ctl: Ctl) -> None:
    pool = "kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {name: %s}\nspec: {cidr: %s}\n"
    ctl.apply(pool % ("one", "10.0.0.0/16"))
    assert "spec.cidr: " in ctl.bad("apply", "--dry-run=server", "-f", "-", stdin=pool % ("two", "10.0.9.0/24"))
    ctl.apply(TIER)
    ctl.apply(POLICY)
    assert "tier is not empty" in ctl.bad("delete", "tier", "sec", "--dry-run=server")
    version = ctl.get("tier", "sec")["metadata"]["resourceVersion"]
    stale = TIER.replace("{name: sec}", f"{{name: sec, resourceVersion: '{int(version) - 1}'}}")
    assert "update conflict" in ctl.bad("replace", "--dry-run=server", "-f", "-", stdin=stale)


def test_deletion_is_shown_and_not_done(ctl: Ctl) -> None:
    ctl.apply(TIER)
    shown = ctl.good("delete", "tier", "sec", "--dry-run=server")
    assert "--- a/tier/sec\n+++ /dev/null\n" in shown
    assert "sec" in ctl.names("tiers")


def test_what_is_there_already_differs_in_nothing(ctl: Ctl) -> None:
    ctl.apply(TIER)
    assert "@@" not in ctl.good("apply", "--dry-run=server", "-f", "-", stdin=TIER)


def test_the_client_needs_no_datastore(ctl: Ctl) -> None:
    shown = ctl.good("create", "--dry-run=client", "-f", "-", stdin=TIER)
    assert "the datastore was not asked" in shown
    assert "spec.order" in ctl.bad("create", "--dry-run=client", "-f", "-", stdin=TIER.replace("5", "x"))
    assert "Successfully deleted" in ctl.good("delete", "tier", "sec", "--dry-run=client")
    assert ctl.clients == 0


def test_waiting_for_what_does_not_happen_is_refused(ctl: Ctl) -> None:
    assert ctl("apply", "--dry-run=server", "--wait", "-f", "-", stdin=TIER).exit_code == 2


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"FORCE_COLOR": "1"}, True), ({}, False), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False)],
)
def test_colours(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool) -> None:
    from click.testing import CliRunner

    from services.calicoctl.app import cli
    from services.calicoctl.session import Environment

    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment = Environment(store=ctl._store, bus=ctl._bus, variables={})
    arguments = ["create", "--dry-run=server", "-f", "-"]
    shown = CliRunner().invoke(cli, arguments, input=TIER, obj=environment, color=True).stdout
    assert ("\x1b[32m+  name: sec" in shown) is coloured
    assert ("\x1b" in shown) is coloured
