"""Which programs run, when one is started again at once, and when BGP is good enough."""

from __future__ import annotations

import asyncio
import json
from random import Random

import pytest

from libs.bus.bgp import Peer, PeerKind, PeerState
from libs.runtime.config import load
from libs.runtime.health import Aggregator
from services.cni.config import InstallConfig
from services.cni.network import network_config
from services.node.core.bgp_health import of_family, problem
from services.node.core.programs import Program, at_once, programs
from services.node.shell.supervisor import Supervised


def names(backend: str, *, felix: bool = True, cni: bool = False) -> list[str]:
    found = programs("n", backend=backend, felix=felix, cni=cni, felix_health=("::1", 1), bgp_health=("localhost", 2))
    return [one.name for one in found]


@pytest.mark.parametrize(
    ("backend", "expected"), [("bird", ["felix", "bgp"]), ("vxlan", ["felix"]), ("none", ["felix"])]
)
def test_the_backend_decides_on_bgp(backend: str, expected: list[str]) -> None:
    assert names(backend) == expected
    assert names(backend, felix=False, cni=True) == [*expected[1:], "cni"]


def test_probes_are_asked_where_they_answer() -> None:
    felix, bgp = programs(
        "n", backend="bird", felix=True, cni=False, felix_health=("::1", 1), bgp_health=("localhost", 2)
    )
    assert (felix.health, bgp.health) == ("http://[::1]:1", "http://localhost:2")
    assert felix.environment == {"NODENAME": "n", "FELIX_HEALTHHOST": "::1", "FELIX_HEALTHPORT": "1"}


async def test_a_program_is_told_what_we_ask_it_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an empty text, another port or the log file of ours; nor is it for it to tell systemd that we are ready."""
    ours = {"FELIX_HEALTHPORT": "", "FELIX_HEALTHHOST": "far", "NODENAME": "x", "NOTIFY_SOCKET": "@s", "KEPT": "k"}
    ours["LOG_FILE_PATH"] = "/log/node.log"
    asked = asyncio.Event()
    told: dict[str, str] = {}

    async def spawn(*_arguments: object, env: dict[str, str], **_options: object) -> None:
        told.update(env)
        asked.set()
        raise OSError("enough")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    program = Program("felix", (), {"NODENAME": "n", "FELIX_HEALTHHOST": "::1", "FELIX_HEALTHPORT": "1"})
    run = asyncio.create_task(Supervised(program, Aggregator(), Random(1), ours, 1.0).run())
    await asked.wait()
    run.cancel()
    assert told == {**program.environment, "KEPT": "k", "LOG_FILE_PATH": "/log/node-felix.log"}


def test_the_network_list_names_the_node_that_felix_is() -> None:
    (cni,) = programs("n", backend="none", felix=False, cni=True, felix_health=("", 1), bgp_health=("", 2))
    environ = {"KUBERNETES_NODE_NAME": "ip-192-0-2-1"} | dict(cni.environment)
    config = load(InstallConfig, [], environ, prog="cni")
    assert json.loads(network_config(config, has_portmap=False))["plugins"][0]["nodename"] == "n"


def test_only_who_asks_for_it_is_started_again_at_once_and_not_in_a_spin() -> None:
    assert at_once(129, 15)
    assert not at_once(129, 3)
    assert not at_once(1, 15)
    assert not at_once(-9, 15)


def peer(name: str, up: bool, address: str = "192.0.2.1", interface: str = "") -> Peer:
    state = PeerState.ESTABLISHED if up else PeerState.ACTIVE
    return Peer(name=name, kind=PeerKind.MESH, address=address, state=state, interface=interface)


def test_soon_after_start_all_sessions_have_to_be_up_and_later_one() -> None:
    some, none = [peer("a", True), peer("b", False)], [peer("a", False), peer("b", False)]
    assert problem(some, since_start_s=29, threshold_s=30) == "BGP not established with b"
    assert problem(some, since_start_s=30, threshold_s=30) == ""
    assert problem(none, since_start_s=3600, threshold_s=30) == "BGP not established with a, b"
    assert problem([peer("a", True)], since_start_s=0, threshold_s=30) == ""
    assert problem([], since_start_s=0, threshold_s=30) == ""
    assert problem([peer("pod", False, interface="cali1")], since_start_s=0, threshold_s=30) == ""


def test_families_are_told_apart() -> None:
    four, six = peer("a", True), peer("b", True, "2001:db8::1")
    assert (of_family([four, six], 4), of_family([four, six], 6)) == ([four], [six])
