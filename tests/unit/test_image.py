"""What compose.yaml, the Dockerfile and the image's entry say, without a container."""

from __future__ import annotations

import subprocess
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from libs.runtime.config import RuntimeConfig
from services.cni.pods import addresses_of, configuration, pod
from services.node.app import CHILD_GRACE_S, GOODBYE_S

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NODES = ("node1", "node2", "node3")


def test_ports_are_published_on_loopback_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_who_shares_the_hosts_network_listens_on_its_loopback() -> None:
    hosts = {name: service for name, service in SERVICES.items() if service.get("network_mode") == "host"}
    assert set(hosts) == {"apiserver"}
    command = hosts["apiserver"]["command"]
    assert command[command.index("--bind-address") + 1] == "localhost"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_nobody_is_killed_while_it_ends_in_an_orderly_way(name: str) -> None:
    grace = SERVICES[name]["stop_grace_period"]
    assert grace.endswith("s")
    assert int(grace[:-1]) > RuntimeConfig().shutdown_grace_s >= CHILD_GRACE_S + GOODBYE_S


def test_the_owner_of_a_kubeconfig_reads_it() -> None:
    """Kubectl writes it with mode 0600, so the container must be able to run as its owner."""
    service = SERVICES["kube-controllers"]
    assert "CALICO_KUBECONFIG_USER" in service["user"]
    assert service["environment"]["KUBECONFIG"] == service["volumes"][0].split(":")[-2]


@pytest.mark.parametrize("name", sorted(set(SERVICES) - set(NODES)))
def test_services_off_the_nodes_have_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["user"].removeprefix("${CALICO_KUBECONFIG_USER:-").removesuffix("}") == "65532:65532"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service


@pytest.mark.parametrize("name", NODES)
def test_nodes_are_not_privileged(name: str) -> None:
    assert "privileged" not in SERVICES[name]
    assert SERVICES[name]["environment"]["NODENAME"] == name
    assert SERVICES[name]["cap_drop"] == ["ALL"]


def test_the_image_has_the_projects_version() -> None:
    for service in SERVICES.values():
        assert service["image"] == f"localhost/calico-py:${{CALICO_VERSION:-{PROJECT['version']}}}"


def test_every_service_can_be_picked_by_the_entry(tmp_path: Path) -> None:
    services = sorted(name for name in PROJECT["scripts"] if name.startswith("calico-"))
    assert len(services) == 7
    for name in services:
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nprintf "%s|" {name} "$@"\n')
        program.chmod(0o755)
        command = ["sh", str(ROOT / "image/entrypoint"), name.removeprefix("calico-"), "--port", "1 2"]
        done = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, check=True)
        assert done.stdout.decode() == f"{name}|--port|1 2|"


def test_the_entry_runs_other_commands_as_they_are_and_tells_what_there_is() -> None:
    entry = ["sh", str(ROOT / "image/entrypoint")]
    assert subprocess.run([*entry, "sh", "-c", "exit 7"], check=False).returncode == 7
    told = subprocess.run(entry, capture_output=True, check=True, text=True).stdout
    assert all(name.removeprefix("calico-") in told for name in PROJECT["scripts"] if name.startswith("calico-"))


def test_a_pods_configuration_asks_for_its_addresses_and_carries_the_result_of_add() -> None:
    addresses = [ip_address("10.65.1.80"), ip_address("fd00:65::1:80")]
    config = configuration({"app": "web"}, addresses)
    assert config["args"]["cni"] == {
        "labels": [{"key": "app", "value": "web"}],
        "ips": ["10.65.1.80", "fd00:65::1:80"],
    }
    result = {"ips": [{"address": "10.65.1.80/32"}, {"address": "fd00:65::1:80/128"}]}
    assert addresses_of(configuration({}, [], result)) == addresses
    assert "ips" not in configuration({}, [])["args"]["cni"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "twelve-chars"], "1 to 11 of a-z"),
        (["add", "Web"], "1 to 11 of a-z"),
        (["add", "web", "--label", "app"], "is not KEY=VALUE"),
        (["add", "web", "--ip", "10.65.1.300"], "10.65.1.300"),
        (["add", "web", "--port", "0"], "not in the range"),
        (["exec", "nosuchpod", "true"], "there is no pod nosuchpod on this node"),
        (["delete", "nosuchpod"], "there is no pod nosuchpod on this node"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_made(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(pod, arguments)
    assert done.exit_code != 0
    assert said in done.output
