"""Untracked policy (doNotTrack) of a host endpoint, of traffic to services that kube-proxy leads through IPVS (rows
S01, S07).

IPVS takes packets that are not tracked as well. What it sends on then is judged packet by packet, so an answer is a
flow of its own; in kube-proxy's other modes, where such packets are never given another address, no service works.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from libs.policy.output import Action, Host, Policy, PortRange, Rule, Tier
from services.felix.core.options import RulesetOptions
from tests.kernel.ipvs_lab import (
    ALLOW,
    BACKEND,
    BEHIND,
    DENY,
    NAMES,
    NODE_PORT,
    OF_BEHIND,
    OF_HOST,
    ON_HOST,
    SERVICE,
    VIP,
    Services,
    policy,
    running,
    udp,
)
from tests.kernel.ruleset_lab import NODE, OUT, Lab, address, gnp, tcp

pytestmark = [pytest.mark.kernel, pytest.mark.stock_kernel, pytest.mark.xdist_group("kernel-ipvs-untracked")]


@pytest.fixture(scope="module")
def made() -> Iterator[Services]:
    with running() as services:
        out, node = services.lab.spaces["out"], services.lab.spaces["node"]
        out.ip([f"addr add {BEHIND[version]}/{width} dev lo" for version, width in ((4, 32), (6, 128))])
        node.ip([f"route add {BEHIND[6]}/128 via {OUT[6]}"])
        yield services


@pytest.fixture
def services(made: Services) -> Services:
    made.fresh()
    return made


def untracked(lab: Lab, inbound: tuple[Rule, ...], outbound: tuple[Rule, ...] = ()) -> tuple[Tier, ...]:
    """What none of these rules decides meets the policy that comes later."""
    key = gnp("untracked")
    lab.builder.set_policy(key, Policy(tier="default", inbound=inbound, outbound=outbound, untracked=True))
    ways = {"ingress": (key,) if inbound else (), "egress": (key,) if outbound else ()}
    return (Tier(name="default", default_action="Pass", **ways),)


def host(lab: Lab, tiers: tuple[Tier, ...], forward_tiers: tuple[Tier, ...] = ()) -> None:
    lab.builder.set_host("h", Host(name="eth0", untracked_tiers=tiers, forward_tiers=forward_tiers))
    lab.apply()


def entries(lab: Lab, protocol: str, version: int) -> list[str]:
    """Of connection tracking: flows that were opened towards the service's address."""
    lines = (line for line in lab.conntrack().splitlines() if line.startswith(protocol))
    return [line for line in lines if line.partition(" dst=")[2].startswith(f"{VIP[version]} ")]


def test_what_it_denies_reaches_no_service(services: Services) -> None:
    lab = services.lab
    host(lab, untracked(lab, (tcp(SERVICE, OF_HOST, NODE_PORT, action=Action.DENY), udp(NAMES, action=Action.DENY))))
    services.reached(VIP, SERVICE, out=False, a=True)
    services.reached(NODE, NODE_PORT, out=False, a=True)
    services.reached(VIP, OF_HOST, out=False)
    services.reached(VIP, NAMES, out=False, a=True, protocol="udp")
    # It sees what the sender wrote, never a pod's port.
    host(lab, untracked(lab, (tcp(BACKEND, action=Action.DENY),)))
    services.reached(VIP, SERVICE, out=True)


def test_what_it_says_nothing_of_is_tracked_and_meets_all_other_policy(services: Services) -> None:
    lab = services.lab
    silent = untracked(lab, (tcp(9000),), (tcp(9000),))
    host(lab, silent)
    services.reached(VIP, SERVICE, out=True)
    services.reached(VIP, NAMES, out=True, protocol="udp")
    for version in (4, 6):
        assert entries(lab, "tcp", version)
        assert entries(lab, "udp", version)
    host(lab, silent, forward_tiers=policy(lab, "closed", (tcp(BACKEND, action=Action.DENY), ALLOW)))
    services.reached(VIP, SERVICE, out=False)
    lab.pod("s", *policy(lab, "only-a", (udp(NAMES),)))
    host(lab, silent)
    services.reached(VIP, SERVICE, out=False, a=False)
    services.reached(VIP, NAMES, out=True, protocol="udp")


def test_what_it_allows_still_meets_the_pods_policy_packet_by_packet(services: Services) -> None:
    lab = services.lab
    everything = untracked(lab, (ALLOW,))
    # Of the host endpoint's policy it is out of reach; the answer is not.
    host(lab, everything, forward_tiers=policy(lab, "forward", (DENY,), (ALLOW,)))
    services.reached(VIP, NAMES, out=True, a=True, protocol="udp")
    for version in (4, 6):
        found = entries(lab, "udp", version)  # of each try
        assert found
        assert all(from_pod_a(entry, version) for entry in found)
    host(lab, everything, forward_tiers=policy(lab, "forward", (ALLOW,), (DENY,)))
    services.reached(VIP, NAMES, out=False, a=True, protocol="udp")
    host(lab, everything)
    lab.pod("s", *policy(lab, "receiver", (udp(NAMES),)))
    lab.apply()
    services.reached(VIP, NAMES, out=True, protocol="udp")
    lab.pod("s", *policy(lab, "receiver", (Rule(action=Action.ALLOW, src_sets=("a",)),)))
    lab.apply()
    services.reached(VIP, NAMES, out=False, a=True, protocol="udp")
    services.reached(VIP, SERVICE, out=False, a=True)
    lab.pod("s", *policy(lab, "receiver", (), (DENY,)))
    lab.apply()
    services.reached(VIP, NAMES, out=False, a=True, protocol="udp")
    lab.pod("s", state="inactive")
    lab.apply()
    services.reached(VIP, NAMES, out=False, a=False, protocol="udp")


@pytest.mark.parametrize("check_invalid", [True, False])
def test_a_connection_to_a_pod_is_allowed_as_it_is_without_a_service(services: Services, check_invalid: bool) -> None:
    """What a pod answers to a packet that was not tracked is invalid to connection tracking."""
    services.fresh(RulesetOptions(check_invalid=check_invalid))
    lab = services.lab
    host(lab, untracked(lab, (ALLOW,)))
    lab.expect({("out", "s", BACKEND, "tcp"): not check_invalid})
    services.reached(VIP, SERVICE, out=not check_invalid, a=True)
    lab.pod("s", *policy(lab, "receiver", (tcp(BACKEND, src_sets=("a",)),)))
    lab.apply()
    lab.expect({("out", "s", BACKEND, "tcp"): False})
    services.reached(VIP, SERVICE, out=False, a=True)


def test_a_process_of_the_host_behind_a_service_answers_by_its_own_port(services: Services) -> None:
    lab = services.lab
    answers = Rule(action=Action.ALLOW, protocol="tcp", src_ports=(PortRange(ON_HOST, ON_HOST),))
    host(lab, untracked(lab, (tcp(OF_HOST),), (answers,)))
    services.reached(VIP, OF_HOST, out=True)
    services.reached(NODE, ON_HOST, out=False)
    for version in (4, 6):
        assert entries(lab, "tcp", version) == []
    host(lab, untracked(lab, (tcp(OF_HOST),)))
    services.reached(VIP, OF_HOST, out=False)
    host(lab, untracked(lab, (tcp(ON_HOST),), (answers,)))
    services.reached(VIP, OF_HOST, out=False)


def test_answers_that_it_allows_meet_the_policy_of_the_pod_that_asked(services: Services) -> None:
    """As they do where no service is between them: what comes back by this interface is not tracked either."""
    lab = services.lab
    host(lab, untracked(lab, (ALLOW,), (DENY,)))
    services.reached(BEHIND, BACKEND, a=True, protocol="udp")
    services.reached(VIP, OF_BEHIND, a=True, protocol="udp")
    lab.pod("a", *policy(lab, "asks", (DENY,)))
    lab.apply()
    services.reached(BEHIND, BACKEND, a=False, b=True, protocol="udp")
    services.reached(VIP, OF_BEHIND, a=False, b=True, protocol="udp")


def from_pod_a(entry: str, version: int) -> bool:
    return f"src={address('a', version)} " in entry
