"""What diagnostics pick: services by their command lines, health ports, pods whose logs are taken; deadlines hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from services.calicoctl.cluster_diags import chosen_pods
from services.calicoctl.host.node_diags import health_port, service_of, services
from services.calicoctl.host.runner import output


@pytest.mark.parametrize(
    ("arguments", "service"),
    [
        (["python", "-m", "services.felix", "--health-port", "9099"], "felix"),
        (["/usr/bin/python3", "-m", "services.kube_controllers"], "kube_controllers"),
        (["/opt/bin/calico-felix"], "felix"),
        (["/usr/bin/python3", "/opt/bin/calico-kube-controllers"], "kube_controllers"),
        (["python", "-m", "services.calicoctl", "node", "diags"], None),
        (["vi", "calico-felix.cfg"], None),
        (["grep", "services.felix"], None),
        ([""], None),
    ],
)
def test_services_are_known_by_their_command_lines(arguments: list[str], service: str | None) -> None:
    assert service_of(arguments) == service


@pytest.mark.parametrize(
    ("arguments", "environment", "port"),
    [
        (["x", "--health-port", "9099"], {}, 9099),
        (["x", "--health-port=9098"], {"FELIX_HEALTHPORT": "1"}, 9098),
        (["x"], {"FELIX_HealthPort": "9097"}, 9097),
        (["x"], {"TYPHA_HEALTH_PORT": "9096", "PATH": "/bin"}, 9096),
        (["x", "--health-port", "none"], {}, 0),
        (["x", "--health-port"], {}, 0),
        (["x"], {}, 0),
    ],
)
def test_health_ports(arguments: list[str], environment: dict[str, str], port: int) -> None:
    assert health_port(arguments, environment) == port


def test_processes_are_read_from_proc(tmp_path: Path) -> None:
    for pid, line, environment in (
        ("7", "python\0-m\0services.bgp\0", "A=b=c\0D\0"),
        ("12", "sh\0", ""),
        ("x", "", ""),
    ):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_text(line)
        (tmp_path / pid / "environ").write_text(environment)
    (tmp_path / "9").mkdir()  # one that has just ended
    assert list(services(tmp_path)) == [(7, "bgp", ["python", "-m", "services.bgp"], {"A": "b=c"})]


def pod(name: str, owner: str, node: str) -> dict[str, object]:
    return {"metadata": {"name": name, "ownerReferences": [{"uid": owner}]}, "spec": {"nodeName": node}}


def test_logs_are_of_some_pods_of_each_owner_those_in_focus_first() -> None:
    items = [pod(f"calico-node-{n}", "ds", f"node{n}") for n in range(9)] + [pod("calico-typha-a", "rs", "node1")]
    items.append({"metadata": {"name": "coredns-x"}, "spec": {}})
    listing = json.dumps({"items": items}).encode()
    chosen = chosen_pods(listing, ["node8"], 2, calico_only=True)
    assert chosen == ["calico-node-8", "calico-node-0", "calico-typha-a"]
    assert "coredns-x" in chosen_pods(listing, [], 2, calico_only=False)
    assert chosen_pods(b"error: no such thing", [], 2, calico_only=False) == []


async def test_commands_that_are_missing_overdue_or_endless_end_and_say_so() -> None:
    assert await output(["no-such-tool-at-all"]) == (127, b"no-such-tool-at-all: not installed here\n")
    status, text = await output([sys.executable, "-c", "print('begun', flush=True); input()"], stdin=b"")
    assert (status, b"begun" in text) == (1, True)
    status, text = await output(["sh", "-c", "echo begun; exec sleep 600"], deadline_s=5.0)
    assert status == 124
    assert b"begun" in text
    assert b"not done after 5 s" in text
    assert await output([sys.executable, "-c", "print(input())"], stdin=b"given\n") == (0, b"given\n")
