"""Policy where kube-proxy leads packets to services by IPVS: real packets through the kernel's IPVS (rows S01, S07)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from libs.policy.output import Action, Host, Policy, Pool, Qos, Rule, Tier
from libs.testkit.patience import patient
from services.felix.core.options import RulesetOptions
from tests.kernel.ipvs_lab import (
    ALLOW,
    BACKEND,
    DENY,
    NAMES,
    NODE_PORT,
    OF_HOST,
    OF_OUT,
    ON_HOST,
    ON_OUT,
    SERVICE,
    VIP,
    Services,
    policy,
    unmarked,
)
from tests.kernel.ruleset_lab import FAMILIES, NODE, Lab, gnp, hosts_of, received_tos, tcp, tell_tos

pytestmark = [pytest.mark.kernel, pytest.mark.stock_kernel, pytest.mark.xdist_group("kernel-ipvs")]


def test_open_pods_reach_a_service_and_without_the_change_none_does(services: Services) -> None:
    lab = services.lab
    lab.apply()
    services.reached(VIP, SERVICE, a=True, b=True, out=True, node=True)
    services.reached(NODE, NODE_PORT, a=True, out=True)
    if services.masquerades:
        services.reached(VIP, SERVICE, s=True)
    lab.builder.set_ipvs(False)
    lab.apply()
    services.reached(VIP, SERVICE, a=False, out=True)


def test_the_receivers_policy_sees_the_real_sender_and_its_own_port(services: Services) -> None:
    lab = services.lab
    logged = Rule(action=Action.LOG)
    lab.pod("s", *policy(lab, "from-a", inbound=(logged, tcp(BACKEND, src_sets=("a",)))))
    lab.apply()
    services.reached(VIP, SERVICE, a=True, b=False, out=False, node=True)
    services.reached(NODE, NODE_PORT, a=True, b=False, out=False)
    lab.pod("s", *policy(lab, "services-port", inbound=(tcp(SERVICE),)))
    lab.apply()
    services.reached(VIP, SERVICE, a=False, out=False)
    lab.pod("s", state="inactive")
    lab.apply()
    services.reached(VIP, SERVICE, a=False, out=False)


def test_the_senders_policy_sees_the_pod_behind_the_service(services: Services) -> None:
    lab = services.lab
    lab.builder.set_ipset("s", hosts_of("s"))
    lab.pod("a", *policy(lab, "to-s", outbound=(tcp(BACKEND, dst_sets=("s",)),)))
    lab.pod("b", *policy(lab, "to-service", outbound=(tcp(SERVICE),)))
    lab.apply()
    services.reached(VIP, SERVICE, a=True, b=False)
    services.reached(NODE, NODE_PORT, a=True, b=False)
    lab.pod("a", profiles=())
    lab.apply()
    services.reached(VIP, SERVICE, a=False)


def test_what_ipvs_leaves_is_for_the_host(services: Services) -> None:
    """Also what it turns to the host itself, and its ports beside those of services."""
    lab = services.lab
    lab.apply()
    services.reached(NODE, SERVICE, a=False, out=True)
    services.reached(VIP, OF_HOST, a=False, out=True, node=True)
    services.fresh(RulesetOptions(endpoint_to_host="Accept"))
    lab.pod("b", *policy(lab, "host", outbound=(tcp(ON_HOST),)))
    lab.apply()
    services.reached(VIP, OF_HOST, a=True, b=True)
    services.reached(NODE, SERVICE, a=True, b=False)


def test_host_endpoints_judge_services_as_forwarded(services: Services) -> None:
    lab = services.lab
    lab.builder.set_host("h", Host(name="eth0"))
    lab.apply()
    services.reached(NODE, SERVICE, out=False, a=False)
    services.reached(VIP, SERVICE, out=True, a=True)
    services.reached(NODE, NODE_PORT, out=True)
    services.reached(VIP, OF_HOST, out=False)
    closed = policy(lab, "closed", inbound=(tcp(BACKEND, action=Action.DENY), ALLOW))
    lab.builder.set_host("h", Host(name="eth0", tiers=policy(lab, "open", (ALLOW,), (ALLOW,)), forward_tiers=closed))
    lab.apply()
    services.reached(VIP, SERVICE, out=False, a=True)
    services.reached(NODE, NODE_PORT, out=False)
    services.reached(NODE, SERVICE, out=True)
    services.reached(VIP, OF_HOST, out=True)
    lab.builder.set_host("h", Host(name="*", tiers=policy(lab, "open", (ALLOW,), (ALLOW,)), forward_tiers=closed))
    lab.apply()
    lab.expect({("a", "s", BACKEND, "tcp"): False})
    services.reached(VIP, SERVICE, out=False, a=False, node=True)
    allowed = Tier(name="default", ingress=(gnp("early"),))
    lab.builder.set_policy(gnp("early"), Policy(tier="default", inbound=(ALLOW,), pre_dnat=True))
    lab.builder.set_host("h", Host(name="eth0", pre_dnat_tiers=(allowed,), forward_tiers=closed))
    lab.apply()
    services.reached(VIP, SERVICE, out=True)


def test_what_leaves_by_an_interface_with_a_host_endpoint(services: Services) -> None:
    """A service whose pod is elsewhere: the way out is forwarding, never the host's own sending."""
    lab = services.lab
    lab.builder.set_host("h", Host(name="eth0", tiers=policy(lab, "none", (DENY,), (DENY,))))
    lab.apply()
    services.reached(VIP, OF_OUT, a=True, node=False)
    forbidden = policy(lab, "forbidden", outbound=(tcp(ON_OUT, action=Action.DENY), ALLOW))
    lab.builder.set_host("h", Host(name="eth0", tiers=policy(lab, "all", (ALLOW,), (ALLOW,)), forward_tiers=forbidden))
    lab.apply()
    services.reached(VIP, OF_OUT, a=False, node=True)


@pytest.mark.parametrize("version", [4, 6])
def test_limits_of_connections_hold_at_both_ends(services: Services, version: int) -> None:
    lab = services.lab
    for limited, qos in (("s", Qos(ingress_max_connections=1)), ("a", Qos(egress_max_connections=1))):
        services.fresh()
        lab.pod(limited, qos=qos)
        lab.apply()
        with _connected(lab, version), pytest.raises(ConnectionRefusedError), _connected(lab, version):
            pass


@pytest.mark.parametrize("version", [4, 6])
def test_limits_of_packets_hold_at_both_ends(services: Services, version: int) -> None:
    lab = services.lab
    for limited, qos in (
        ("s", Qos(ingress_packet_rate=3, ingress_packet_burst=3)),
        ("a", Qos(egress_packet_rate=3, egress_packet_burst=3)),
    ):
        services.fresh()
        lab.apply()
        services.reached(VIP, NAMES, a=True, protocol="udp")
        lab.pod(limited, qos=qos)
        lab.apply()
        with lab.udp("a", version) as sender:
            for _ in range(50):
                sender.sendto(b"x", (VIP[version], NAMES))
        assert lab.counted("more than 3 packets a second", "ip" if version == 4 else "ip6") > 20, limited


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_pod_answers_by_a_service_has_its_dscp(services: Services, version: int) -> None:
    lab = services.lab
    for cidr in ("10.77.0.0/24", "fd77::/64"):
        lab.builder.set_pool(cidr, Pool(cidr=cidr))
    lab.pod("s", qos=Qos(dscp=46))
    lab.apply()
    for asks, value in (("out", 46), ("a", 0)):
        with lab.udp(asks, version) as sock:
            tell_tos(sock, version)
            sock.settimeout(patient(3))
            sock.sendto(b"x", (VIP[version], NAMES))
            assert received_tos(sock) == value << 2, asks


@contextlib.contextmanager
def _connected(lab: Lab, version: int) -> Iterator[None]:
    sock = lab.spaces["a"].socket(FAMILIES[version], socket.SOCK_STREAM)
    with sock:
        sock.settimeout(3)
        sock.connect((VIP[version], SERVICE))
        sock.sendall(b"x")
        yield


def test_nothing_leaves_with_the_mark(services: Services) -> None:
    """It may mean something else to whoever looks next."""
    lab = services.lab
    lab.apply()
    with unmarked(lab, "input", "postrouting"):
        services.reached(VIP, SERVICE, a=True, out=True)
        services.reached(VIP, OF_HOST, out=True)


def test_a_mask_without_a_third_bit_and_reject_are_told(services: Services) -> None:
    lab = services.lab
    for options in (RulesetOptions(mark_mask=0x30000), RulesetOptions(mark_mask=0x70000, wireguard_bit=0x40000)):
        services.fresh(options)
        assert "nftablesMarkMask" in lab.builder.problems[0]
        lab.builder.set_host("h", Host(name="eth0", profiles=("open",)))
        lab.apply()
        services.reached(VIP, SERVICE, a=False, out=False, node=True)
        services.reached(VIP, OF_HOST, out=True)
        services.reached(NODE, SERVICE, out=True)
    services.fresh(RulesetOptions(deny_action="Reject"))
    assert "nftablesFilterDenyAction" in lab.builder.problems[0]
    lab.pod("s", *policy(lab, "nobody", inbound=(DENY,)))
    lab.apply()
    services.reached(VIP, SERVICE, a=False)
