"""Options that change while packets flow: the ruleset is then what a new process with these options would make."""

from __future__ import annotations

import pytest

from libs.policy.output import Action, Host, Nat, Policy, Pool, PortRange, Qos, Rule, Tier
from libs.testkit.reach import Verdict
from services.felix.core.failsafe import FailsafePort
from services.felix.core.options import NatOptions, RulesetOptions
from services.felix.core.overlay import OverlaySettings
from tests.kernel.ruleset_lab import Lab, gnp, hosts_of, np

pytestmark = pytest.mark.kernel

OPTIONS = {
    "reject": RulesetOptions(deny_action="Reject"),
    "host action": RulesetOptions(endpoint_to_host="Accept"),
    "log": RulesetOptions(log_prefix="other %t", log_rate=(10, "minute"), log_burst=3),
    "spoofing": RulesetOptions(allow_source_spoofing=True),
    "tunnels": RulesetOptions(overlay=OverlaySettings(port=8472), allow_ipip_from_workloads=True),
    "invalid": RulesetOptions(check_invalid=False),
    "failsafe": RulesetOptions(failsafe_in=(FailsafePort("tcp", 81),), failsafe_out=()),
    "loop": RulesetOptions(loop_prevention="Reject"),
    "marks": RulesetOptions(mark_mask=0xF00),
    "nat": RulesetOptions(nat=NatOptions(floating_ips=True, exclude_hosts=True, ports=(20000, 30000))),
}


def fill(lab: Lab) -> None:
    """Something of everything that options have a say in."""
    lab.pods()
    logged = Rule(action=Action.LOG)
    lab.builder.set_ipset("s:friends", hosts_of("a", "b"))
    lab.builder.set_policy(
        np("web"),
        Policy(
            tier="default",
            namespace="ns1",
            inbound=(
                logged,
                Rule(action=Action.DENY, protocol="tcp", dst_ports=(PortRange(81, 81),)),
                Rule(action=Action.PASS, protocol="tcp", dst_ports=(PortRange(82, 82),)),
                Rule(action=Action.ALLOW, src_sets=("s:friends",)),
            ),
        ),
    )
    lab.builder.set_policy(gnp("host"), Policy(tier="default", inbound=(Rule(action=Action.ALLOW),)))
    web = Tier(name="default", ingress=(np("web"),))
    lab.pod(
        "s",
        web,
        allowed_source_prefixes=("198.51.100.0/24", "2001:db8:9::/64"),
        nat4=(Nat("192.0.2.99", "10.77.0.3"),),
        qos=Qos(ingress_packet_rate=5000, dscp=10),
    )
    lab.builder.set_host(
        "h", Host(name="eth9", profiles=("open",), tiers=(Tier(name="default", ingress=(gnp("host"),)),))
    )
    lab.builder.set_pool("10.77.0.0/24", Pool(cidr="10.77.0.0/24", nat_outgoing=True))
    lab.builder.set_pool("fd77::/64", Pool(cidr="fd77::/64", nat_outgoing=True))
    lab.builder.set_service_cidrs(["10.96.0.0/12", "fd96::/112"])


def listing(lab: Lab) -> dict[str, list[str]]:
    """Lines of both tables, in an order of their own: chains and sets stand in the order they were made."""
    return {family: sorted(lab.nft("-s", "list", "table", family, "calico").splitlines()) for family in ("ip", "ip6")}


@pytest.mark.parametrize("name", OPTIONS)
def test_changed_options_give_what_a_new_process_would_make(built, name):
    built.fresh(OPTIONS[name])
    fill(built)
    built.apply()
    fresh = listing(built)
    built.fresh()
    fill(built)
    built.apply()
    before = listing(built)
    assert before != fresh, "these options change something"
    assert built.builder.set_options(OPTIONS[name])
    built.apply()
    assert listing(built) == fresh
    # What comes afterwards goes on from there.
    built.pod("b", Tier(name="default", ingress=(np("web"),)))
    built.builder.change_ipset("s:friends", [], hosts_of("b").members)
    built.apply()
    assert built.builder.set_options(RulesetOptions())
    built.pods()
    fill(built)
    built.apply()
    assert listing(built) == before
    assert not built.builder.set_options(RulesetOptions())


def test_deny_action_changes_what_the_sender_sees(built):
    built.fresh()
    fill(built)
    built.apply()
    built.builder.set_policy(np("web"), Policy(tier="default", namespace="ns1", inbound=(Rule(action=Action.DENY),)))
    built.apply()
    flow = ("a", "s", 8080, "udp")
    assert built.ask([flow]) == built.ask([flow], 6) == [Verdict.DENY]
    built.builder.set_options(OPTIONS["reject"])
    built.apply()
    assert built.ask([flow]) == built.ask([flow], 6) == [Verdict.REFUSED]
    built.builder.set_options(RulesetOptions())
    built.apply()
    assert built.ask([flow]) == built.ask([flow], 6) == [Verdict.DENY]


def test_workload_to_its_host_by_option(built):
    built.fresh()
    fill(built)
    built.apply()
    to_host = ("a", "node", 80, "tcp")
    built.expect({to_host: False})
    built.builder.set_options(OPTIONS["host action"])
    built.apply()
    built.expect({to_host: True})


def test_unserved_service_address_does_not_loop(built):
    built.fresh()
    built.pods()
    built.apply()
    for version, address in ((4, "10.96.0.10"), (6, "fd96::10")):
        built.builder.set_service_cidrs([])
        built.apply()
        lookup = built.spaces["out"]
        lookup.ip([f"addr add {address}/{32 if version == 4 else 128} dev eth0" + (" nodad" if version == 6 else "")])
        built.spaces["node"].ip([f"route add {address} via {'192.0.2.2' if version == 4 else '2001:db8::2'} dev eth0"])
        try:
            assert built.reach("a", address, 80, wanted=True), "unprotected it leaves by the default route"
            built.builder.set_service_cidrs(["10.96.0.0/12", "fd96::/112"])
            built.apply()
            assert not built.reach("a", address, 80, wanted=False)
            assert built.counted("no such service: would loop", "ip" if version == 4 else "ip6") > 0
            built.builder.set_options(RulesetOptions(loop_prevention="Disabled"))
            built.apply()
            assert built.reach("a", address, 80, wanted=True)
            built.builder.set_options(RulesetOptions())
            built.apply()
        finally:
            built.spaces["node"].ip([f"route del {address} dev eth0"])
            lookup.ip([f"addr del {address}/{32 if version == 4 else 128} dev eth0"])
