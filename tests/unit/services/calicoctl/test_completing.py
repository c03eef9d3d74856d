"""What shells and kubectl are offered."""

from __future__ import annotations

import pytest
from click.shell_completion import ShellComplete

from services.calicoctl import completing
from services.calicoctl.__main__ import invoked_as
from services.calicoctl.app import COMMANDS, NODE, cli
from services.calicoctl.lazy import LazyGroup
from services.calicoctl.session import Environment
from tests.unit.services.calicoctl.ctl import Ctl

OBJECTS = """\
apiVersion: projectcalico.org/v3
kind: List
items:
- {apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: sec}}
- {apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {tier: sec}}
- {apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: api}}
- {apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: node1}}
"""


@pytest.fixture
def offered(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> object:
    ctl.apply(OBJECTS)
    environment = Environment(store=ctl._store, bus=ctl._bus, variables={})

    def offers(*words: str) -> list[str]:
        *before, incomplete = words
        completer = ShellComplete(cli, {"obj": environment}, "calicoctl", "_CALICOCTL_COMPLETE")
        return [item.value for item in completer.get_completions(before, incomplete)]

    return offers


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("a",), ["apply"]),
        (("node", "ch"), ["checksystem"]),
        (("get", "ti"), ["tiers"]),
        (("get", "gnp"), ["gnp", "gnps"]),
        (("get", "tier", "se"), ["sec"]),
        (("get", "tier", "sec", "se"), []),
        (("get", "-n", "shop", "np", ""), ["web"]),
        (("get", "np", ""), ["api"]),
        (("label", "node", "n"), ["node1"]),
        (("node", "status", ""), ["node1"]),
        (("get", "nonsense", ""), []),
        (("patch", "tier", "sec", "-t", "m"), ["merge"]),
    ],
)
def test_offers(offered, words: tuple[str, ...], expected: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert offered(*words) == expected


def test_a_datastore_that_is_away_offers_nothing_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "DEADLINE_S", 0.2)
    environment = Environment(variables={"ETCD_ENDPOINTS": "http://127.0.0.1:1"})
    completer = ShellComplete(cli, {"obj": environment}, "calicoctl", "_CALICOCTL_COMPLETE")
    assert completer.get_completions(["get", "tier"], "") == []


def test_kubectl_gets_lines_and_a_directive() -> None:
    assert completing.for_kubectl(["get", "tie"]) == "tiers\tTier\n:4\n"
    assert completing.for_kubectl(["apply", "-f", ""]).endswith(":0\n")
    assert completing.for_kubectl([]).startswith("apply\t")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/bin/kubectl-calico", "kubectl calico"),
        ("/usr/bin/calicoctl", "calicoctl"),
        ("x/__main__.py", "calicoctl"),
    ],
)
def test_the_usage_text_says_what_the_user_typed(path: str, name: str) -> None:
    assert invoked_as(path) == name


def test_every_command_can_be_loaded_and_describes_itself() -> None:
    for table in (COMMANDS, NODE):
        for name, lazy in table.items():
            command = lazy.load()
            assert command.name == name
            assert command.help
            assert lazy.help[0].isupper()


def test_help_lists_all_without_loading_any(ctl: Ctl) -> None:
    assert isinstance(cli, LazyGroup)
    text = ctl.good("--help")
    assert all(f"\n  {name} " in text for name in COMMANDS)
