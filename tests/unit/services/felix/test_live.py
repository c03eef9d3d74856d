"""FelixConfiguration over its layers, and what of it is ignored with a word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.model.metrics import MetricsPlace
from libs.testkit.bootstrap import key
from services.felix.core import ipvs
from services.felix.core.configfile import file_settings
from services.felix.core.failsafe import FailsafePort
from services.felix.core.fields import OF_OTHER_DATAPLANES, SUPPORTED, seconds
from services.felix.core.interface_exclude import InterfaceExclude
from services.felix.core.live import (
    LiveSettings,
    camel,
    effective,
    environment_settings,
    metrics_at_start,
)
from services.felix.core.options import NatOptions, RulesetOptions
from services.felix.core.overlay import ClusterRoutes, OverlaySettings
from services.felix.core.route_settings import RouteSettings

LABELS = {"rack": "a", "kubernetes.io/hostname": "node1"}


def stored(*configs: tuple[str, dict[str, Any]], at: str = "2026-01-01T00:00:00Z") -> dict[str, msgspec.Raw]:
    return {
        key("felixconfigurations", name): msgspec.Raw(
            json.dumps({"metadata": {"name": name, "creationTimestamp": spec.pop("at", at)}, "spec": spec}).encode()
        )
        for name, spec in configs
    }


def test_nothing_is_set_by_default() -> None:
    assert effective({}, "node1", LABELS) == LiveSettings()


def test_later_layers_win_field_by_field() -> None:
    layers = stored(
        ("default", {"logSeverityScreen": "Error", "routeRefreshInterval": "1m30s", "nftablesRefreshInterval": "10s"}),
        ("rack-a", {"nodeSelector": "rack == 'a'", "logSeverityScreen": "Warning", "routeRefreshInterval": "20s"}),
        ("node.node1", {"logSeverityScreen": "Debug", "logSeverityFile": "Fatal"}),
        ("node.node2", {"logSeverityScreen": "Info", "routeRefreshInterval": "1h"}),
    )

    def seen(node: str, labels: dict[str, str]) -> object:
        found = effective(layers, node, labels)
        assert not found.problems
        return found.log_levels, found.nftables_refresh_s, found.route_refresh_s

    assert seen("node1", LABELS) == ({"screen": "debug", "file": "critical"}, 10.0, 20.0)
    assert seen("node2", {}) == ({"screen": "info"}, 10.0, 3600.0)
    assert seen("node3", {}) == ({"screen": "error"}, 10.0, 90.0)
    assert effective(layers, "node1", LABELS).sources == {
        "log_severity_screen": "node.node1", "log_severity_file": "node.node1",
        "nftables_refresh_interval": "default", "route_refresh_interval": "rack-a",
    }  # fmt: skip


@pytest.mark.parametrize("top", range(6))
def test_each_layer_wins_over_those_before_it_and_is_named(top: int) -> None:
    """Row D09: default < global < selector < node < file < environment."""
    layers = [
        ("default", {"logSeverityScreen": "Error"}),
        ("rack-a", {"nodeSelector": "rack == 'a'", "logSeverityScreen": "Warning"}),
        ("node.node1", {"logSeverityScreen": "Info"}),
    ]
    file, problems = file_settings("[global]\nLogSeverityScreen = Debug\n" if top >= 4 else "")
    environment = environment_settings({"FELIX_LOGSEVERITYSCREEN": "Fatal"} if top >= 5 else {})
    found = effective(stored(*layers[:top]), "node1", LABELS, environment, None, file)
    assert not problems
    level, source, shown = (
        (None, None, None),
        ("error", "default", "Error"),
        ("warning", "rack-a", "Warning"),
        ("info", "node.node1", "Info"),
        ("debug", "configuration file", "Debug"),
        ("critical", "environment", "Fatal"),
    )[top]
    assert found.log_levels.get("screen") == level
    assert found.sources.get("log_severity_screen") == source
    assert found.shown.get("log_severity_screen") == shown


def test_a_configuration_file_says_what_it_has_in_vain() -> None:
    """Names in any case, comments, values with signs of other formats; one bad line leaves the rest."""
    found, problems = file_settings(
        "# ours\n[Global]\nROUTEREFRESHINTERVAL = 30\nlogprefix = 50%% of %s\nIpInIpMtu=1400\nLogFilePath =\n"
        "EtcdEndpoints = http://x\n[other]\nx = y\n"
    )
    assert found == {"route_refresh_interval": "30", "log_prefix": "50%% of %s", "ipip_mtu": "1400"}
    assert [problem.partition(": ")[2] for problem in problems] == [
        "[other] is not read, settings stand below [global]", "etcdendpoints: is no setting that can stand there",
    ]  # fmt: skip
    found, problems = file_settings("LogPrefix = x")
    assert not found
    assert problems[0].startswith("configuration file: File contains no section headers")
    assert file_settings("") == ({}, [])


def test_of_several_selected_ones_the_oldest_counts_and_names_break_the_tie() -> None:
    def selected(level: str, at: str) -> dict[str, Any]:
        return {"nodeSelector": "has(rack)", "logSeverityScreen": level, "at": at}

    old, new = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    for configs, level in (
        ((("a", selected("Info", new)), ("b", selected("Debug", old))), "debug"),
        ((("b", selected("Debug", old)), ("a", selected("Info", old))), "info"),
    ):
        assert effective(stored(*configs), "node1", LABELS).log_levels == {"screen": level}


def test_the_owner_of_routes_is_not_chosen_by_labels_as_bgp_would_not_follow() -> None:
    layers = stored(
        ("default", {"programClusterRoutes": "EnabledNoEncapOnly"}),
        ("rack-a", {"nodeSelector": "rack == 'a'", "programClusterRoutes": "Enabled", "logSeverityScreen": "Debug"}),
    )
    found = effective(layers, "node1", LABELS)
    assert (found.cluster_routes, found.log_levels) == (ClusterRoutes.NO_ENCAP_ONLY, {"screen": "debug"})
    assert found.problems == (
        "programClusterRoutes (rack-a): has no effect together with nodeSelector; it belongs to `default` or "
        "`node.node1`",
    )
    assert effective(layers, "node2", {}).problems == ()
    layers |= stored(("node.node1", {"programClusterRoutes": "Disabled"}))
    assert effective(layers, "node1", LABELS).cluster_routes is ClusterRoutes.DISABLED


def test_what_cannot_be_read_is_named_and_leaves_the_rest() -> None:
    layers = stored(
        ("default", {"logSeverityScreen": "Loud", "logSeveritySys": "Info", "routeRefreshInterval": "soon"}),
        ("other", {"nodeSelector": "rack ==", "logSeverityScreen": "Debug"}),
        ("node.node1", {"nftablesRefreshInterval": "0s"}),
    )
    layers[key("felixconfigurations", "broken")] = msgspec.Raw(b'{"spec": 7}')
    found = effective(layers, "node1", LABELS)
    assert (found.log_levels, found.nftables_refresh_s, found.route_refresh_s) == ({"syslog": "info"}, 0.0, None)
    assert len(found.problems) == 4
    assert {text.split(":")[0] for text in found.problems} == {
        "broken", "other", "logSeverityScreen (default)", "routeRefreshInterval (default)",
    }  # fmt: skip


def test_a_selected_one_without_selector_and_other_kinds_are_not_ours() -> None:
    layers = stored(("stray", {"logSeverityScreen": "Debug"}))
    layers[key("bgpconfigurations", "default")] = msgspec.Raw(b'{"spec": {"logSeverityScreen": "Debug"}}')
    assert effective(layers, "node1", LABELS) == LiveSettings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90s", 90.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("250ms", 0.25), ("0s", 0.0), ("0", 0.0),
        (None, None), ("", None), ("90", None), ("s", None), ("-1s", None), ("1s2", None), ("1 s", None),
    ],
)  # fmt: skip
def test_durations(text: str | None, value: float | None) -> None:
    assert seconds(text) == value


def test_the_environment_wins_over_every_resource() -> None:
    layers = stored(("default", {"logPrefix": "all"}), ("node.node1", {"logPrefix": "mine", "vxlanPort": 8472}))
    environment = environment_settings(
        {"FELIX_LOGPREFIX": "env", "FELIX_NODE": "x", "FELIX_VXLANVNI": "", "OTHER": "1"}
    )
    assert environment == {"log_prefix": "env"}
    found = effective(layers, "node1", LABELS, environment)
    assert (found.options.log_prefix, found.options.overlay.port) == ("env", 8472)
    assert found.sources == {"log_prefix": "environment", "vxlan_port": "node.node1"}


def test_a_bad_value_leaves_the_layer_below_it() -> None:
    layers = stored(("default", {"vxlanPort": 8472}), ("node.node1", {"vxlanPort": 99999}))
    found = effective(layers, "node1", LABELS, {"nftables_filter_deny_action": "REFUSE", "log_prefix": "ok"})
    assert found.options == RulesetOptions(overlay=OverlaySettings(port=8472), log_prefix="ok")
    assert found.problems == (
        "vxlanPort (node.node1): 99999 is not within 1 to 65535",
        "nftablesFilterDenyAction (environment): 'REFUSE' is not one of Drop, Reject",
    )


def test_fields_without_effect_are_named() -> None:
    spec = {"bpfEnabled": True, "xdpEnabled": True, "nonsense": 1, "iptablesBackend": "NFT", "goMaxProcs": 2}
    found = effective(stored(("default", spec)), "node1", {}, {"windows_manage_firewall_rules": "Enabled"})
    assert found.problems == (
        "nonsense (default): there is no such field",
        "bpfEnabled: has no effect in this version",
        "goMaxProcs: belongs to another dataplane",
        "iptablesBackend: belongs to another dataplane",
        "windowsManageFirewallRules: belongs to another dataplane",
        "xdpEnabled: has no effect in this version",
    )
    assert not OF_OTHER_DATAPLANES & SUPPORTED
    assert "iptables_nat_outgoing_interface_filter" in SUPPORTED


def test_how_the_host_is_watched_and_left_alone() -> None:
    """Through every kind of layer, a stronger one over a weaker."""
    assert effective({}, "node1", {}).interface_exclude == InterfaceExclude(frozenset({"kube-ipvs0"}))
    layers = stored(
        (
            "default",
            {
                "ipForwarding": "Disabled", "interfaceExclude": "kube-ipvs0,/^docker/",
                "interfaceRefreshInterval": "20s",
                "ipsetsRefreshInterval": "0s", "dataplaneWatchdogTimeout": "5m", "prometheusGoMetricsEnabled": False,
                "healthTimeoutOverrides": [{"name": "CalculationGraph", "timeout": "1m30s"}],
                "nftablesMode": "Enabled", "nftablesMangleAllowAction": "Return",
            },
        ),
        ("node.node1", {"prometheusProcessMetricsEnabled": False, "interfaceRefreshInterval": "0s"}),
    )  # fmt: skip
    found = effective(layers, "node1", {})
    assert found.problems == ()
    assert (found.ip_forwarding, found.runtime_metrics, found.process_metrics) == (False, False, False)
    assert found.interface_exclude == InterfaceExclude(frozenset({"kube-ipvs0"}), ("^docker",))
    assert (found.interface_refresh_s, found.ipsets_refresh_s) == (0.0, 0.0)
    assert found.health_timeouts == {"InternalDataplaneMainLoop": 300.0, "CalculationGraph": 90.0}

    file, _ = file_settings("[global]\nIpForwarding = enabled\nHealthTimeoutOverrides = Bus=5,CalculationGraph=0,\n")
    environment = environment_settings(
        {
            "FELIX_INTERFACEEXCLUDE": "none", "FELIX_DATAPLANEWATCHDOGTIMEOUT": "3",
            "FELIX_PROMETHEUSGOMETRICSENABLED": "true", "FELIX_IPSETSREFRESHINTERVAL": "30",
        }
    )  # fmt: skip
    found = effective(layers, "node1", {}, environment, file=file)
    assert found.problems == ()
    assert (found.ip_forwarding, found.runtime_metrics, found.process_metrics) == (True, True, False)
    assert found.interface_exclude == InterfaceExclude(frozenset())
    assert found.ipsets_refresh_s == 30.0
    timeouts = {"InternalDataplaneMainLoop": 20.0, "Bus": 5.0, "CalculationGraph": 0.0}
    assert found.health_timeouts == timeouts, "no watchdog is shorter than 20 s"
    environment |= {"health_timeout_overrides": "InternalDataplaneMainLoop=1s"}
    assert effective(layers, "node1", {}, environment).health_timeouts == {"InternalDataplaneMainLoop": 1.0}


def test_nftables_cannot_be_switched_off() -> None:
    found = effective(stored(("default", {"nftablesMode": "Disabled"})), "node1", {})
    assert found.problems == (
        "nftablesMode (default): this felix has no iptables dataplane, so nftables stays on",
    )  # fmt: skip
    assert "nftables_mode" not in found.sources


SSH6 = FailsafePort("tcp", 22, "fd00::/8")
FAILSAFES = (FailsafePort("tcp", 22), FailsafePort("udp", 68, "10.0.0.0/8"))


@pytest.mark.parametrize(
    ("spec", "environment", "options"),
    [
        ({"defaultEndpointToHostAction": "ACCEPT"}, {}, {"endpoint_to_host": "Accept"}),
        ({"nftablesFilterDenyAction": "REJECT"}, {}, {"deny_action": "Reject"}),
        ({"disableConntrackInvalidCheck": True}, {}, {"check_invalid": False}),
        ({"workloadSourceSpoofing": "Any"}, {}, {"allow_source_spoofing": True}),
        ({"allowVXLANPacketsFromWorkloads": True}, {}, {"allow_vxlan_from_workloads": True}),
        ({"allowIPIPPacketsFromWorkloads": True}, {}, {"allow_ipip_from_workloads": True}),
        ({"logActionRateLimit": "10/minute"}, {}, {"log_rate": (10, "minute")}),
        ({"logActionRateLimitBurst": 7}, {}, {"log_burst": 7}),
        ({"serviceLoopPrevention": "Disabled"}, {}, {"loop_prevention": "Disabled"}),
        ({"failsafeInboundHostPorts": []}, {}, {"failsafe_in": ()}),
        (
            {
                "failsafeInboundHostPorts": [
                    {"protocol": "TCP", "port": 22},
                    {"protocol": "udp", "port": 68, "net": "10.0.0.0/8"},
                ]
            },
            {},
            {"failsafe_in": FAILSAFES},
        ),
        ({}, {"failsafe_outbound_host_ports": "tcp:22, udp:10.0.0.0/8:68"}, {"failsafe_out": FAILSAFES}),
        ({}, {"failsafe_outbound_host_ports": "none"}, {"failsafe_out": ()}),
        ({}, {"failsafe_inbound_host_ports": "tcp:[fd00::/8]:22"}, {"failsafe_in": (SSH6,)}),
        ({"natPortRange": "2000:3000"}, {}, {"nat": NatOptions(ports=(2000, 3000))}),
        ({"natOutgoingAddress": "192.0.2.7"}, {}, {"nat": NatOptions(address={4: "192.0.2.7"})}),
        ({"natOutgoingExclusions": "IPPoolsAndHostIPs"}, {}, {"nat": NatOptions(exclude_hosts=True)}),
        ({"iptablesNATOutgoingInterfaceFilter": "eth+"}, {}, {"nat": NatOptions(out_interface="eth*")}),
        ({"vxlanEnabled": False, "vxlanVNI": 7, "vxlanPort": 8472}, {},
         {"overlay": OverlaySettings(vxlan=False, vni=7, port=8472)}),
        ({"vxlanMTU": 1400, "vxlanMTUV6": 1380, "ipipMTU": 1420}, {"ipip_enabled": "true"},
         {"overlay": OverlaySettings(vxlan_mtu_bytes=1400, vxlan6_mtu_bytes=1380, ipip_mtu_bytes=1420, ipip=True)}),
        ({"featureDetectOverride": "X=1,ChecksumOffloadBroken=true"}, {},
         {"overlay": OverlaySettings(checksum_broken=True)}),
        ({"externalNodesList": ["192.0.2.9", "198.51.100.0/24"]}, {},
         {"external_nodes": ("192.0.2.9/32", "198.51.100.0/24")}),
        ({}, {"external_nodes_list": "192.0.2.9, 198.51.100.0/24"},
         {"external_nodes": ("192.0.2.9/32", "198.51.100.0/24")}),
        ({"floatingIPs": "Enabled"}, {}, {"nat": NatOptions(floating_ips=True)}),
        ({"nftablesMarkMask": 0xFFFF0000}, {}, {}),
        ({"nftablesMarkMask": 0xF00}, {}, {"mark_mask": 0xF00}),
        ({"nftablesFilterAllowAction": "Return"}, {}, {}),
    ],
)  # fmt: skip
def test_fields_and_what_they_set(spec: dict[str, Any], environment: dict[str, str], options: dict[str, Any]) -> None:
    found = effective(stored(("default", spec)), "node1", {}, environment)
    assert found.problems == ()
    assert found.options == replace(RulesetOptions(), **options)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("failsafe_inbound_host_ports", "22"), ("failsafe_inbound_host_ports", "tcp:70000"),
        ("failsafe_inbound_host_ports", "xyz:22"), ("log_action_rate_limit", "10"),
        ("log_action_rate_limit", "0/second"),
        ("nat_port_range", "30:20"), ("nat_outgoing_address", "here"), ("nftables_mark_mask", "0x10000"),
        ("program_cluster_routes", "true"), ("external_nodes_list", "here"), ("vxlan_vni", "16777216"),
        ("device_route_source_address", "fd00::1"), ("feature_detect_override", "ChecksumOffloadBroken=maybe"),
        ("route_table_range", "0-5"), ("route_table_range", "9-5"), ("route_table_range", "1-251"),
        ("route_table_range", "1-5,7-9"), ("route_table_ranges", "253-255"), ("route_table_ranges", "1"),
        ("route_table_ranges", "1-65536"), ("route_table_ranges", "1-5,"), ("route_table_ranges", "1-4294967296"),
        ("device_route_protocol", "81"), ("device_route_protocol", "0"), ("device_route_protocol", "256"),
        ("ipv4_normal_route_priority", "0"), ("ipv6_normal_route_priority", "2147483647"),
        ("remove_external_routes", "sometimes"),
        ("ip_forwarding", "true"), ("interface_exclude", "/(/"), ("interface_exclude", "a b"),
        ("interface_exclude", "kube-ipvs0,"), ("interface_refresh_interval", "often"), ("nftables_mode", "on"),
        ("ipsets_refresh_interval", "-1"), ("health_timeout_overrides", "Bus"), ("health_timeout_overrides", "=5s"),
        ("health_timeout_overrides", "Bus=soon"),
        ("dataplane_watchdog_timeout", "long"),
        ("prometheus_go_metrics_enabled", "yes"), ("prometheus_process_metrics_enabled", "2"),
        ("nftables_mangle_allow_action", "Drop"),
        ("route_sync_disabled", "perhaps"), ("vxlan_port", "many"), ("log_severity_screen", "loud"),
    ],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(name: str, text: str) -> None:
    found = effective({}, "node1", {}, {name: text})
    assert len(found.problems) == 1
    assert camel(name) in found.problems[0]
    assert replace(found, problems=()) == LiveSettings()


def test_networks_of_services_come_from_the_bgp_configuration() -> None:
    value = {
        "spec": {
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}, {"cidr": "fd96::/112"}],
            "serviceExternalIPs": [{"cidr": "192.0.2.0/24"}],
            "serviceLoadBalancerIPs": [{"cidr": "192.0.2.0/24"}],
        }
    }
    raw = msgspec.Raw(json.dumps(value).encode())
    found = effective({key("bgpconfigurations", "default"): raw}, "node1", {})
    assert found.service_cidrs == ("10.96.0.0/12", "192.0.2.0/24", "fd96::/112")


def test_every_field_that_has_an_effect_is_in_the_reference() -> None:
    page = (Path(__file__).parents[4] / "docs" / "reference" / "felix-configuration.md").read_text()
    assert {name for name in SUPPORTED | OF_OTHER_DATAPLANES if f"`{camel(name)}`" not in page} == set()


def test_none_clears_what_a_weaker_layer_set() -> None:
    layers = stored(
        ("default", {"natPortRange": "1000:2000", "logActionRateLimit": "5/second", "logPrefix": "x"}),
        ("node.node1", {"natPortRange": "none"}),
    )
    found = effective(layers, "node1", {}, {"log_action_rate_limit": "None"})
    assert (found.options.nat.ports, found.options.log_rate, found.options.log_prefix) == (None, None, "x")
    assert found.sources["nat_port_range"] == "node.node1"
    assert found.problems == ()


def test_who_owns_routes_and_what_the_host_sends_from() -> None:
    spec = {"programClusterRoutes": "EnabledNoEncapOnly", "deviceRouteSourceAddress": "192.0.2.1"}
    found = effective(stored(("default", spec)), "node1", {}, {"device_route_source_address_ipv6": "2001:db8::1"})
    assert found.problems == ()
    assert found.cluster_routes is ClusterRoutes.NO_ENCAP_ONLY
    assert found.routes.sources == {4: "192.0.2.1", 6: "2001:db8::1"}
    assert effective({}, "node1", {}).cluster_routes is ClusterRoutes.IPIP_ONLY  # a routing daemon has the others


def test_how_routes_are_written() -> None:
    assert effective({}, "node1", {}).routes == RouteSettings(protocol=3, priorities={4: 1024, 6: 1024})
    layers = stored(
        ("default", {"deviceRouteProtocol": 90, "ipv4NormalRoutePriority": 7, "routeSyncDisabled": True}),
        ("rack-a", {"nodeSelector": "rack == 'a'", "deviceRouteProtocol": 91, "ipv4NormalRoutePriority": 8}),
        ("node.node1", {"ipv6NormalRoutePriority": 2147483646}),
    )
    environment = environment_settings({"FELIX_REMOVEEXTERNALROUTES": "false"})
    found = effective(layers, "node1", LABELS, environment, file={"device_route_protocol": "92"})
    assert found.routes == RouteSettings(
        sync=False, protocol=92, priorities={4: 7, 6: 2147483646}, remove_external=False
    )
    assert found.problems == (
        "ipv4NormalRoutePriority (rack-a): has no effect together with nodeSelector; it belongs to `default` or "
        "`node.node1`",
    )


@pytest.mark.parametrize(
    ("spec", "environment", "table"),
    [
        ({}, {}, 1),
        ({"routeTableRange": {"min": 7, "max": 9}}, {}, 7),
        ({"routeTableRanges": [{"min": 1000, "max": 1001}, {"min": 2, "max": 3}]}, {}, 1000),
        ({"routeTableRanges": [{"min": 253, "max": 255}, {"min": 5, "max": 5}]}, {}, 5),
        ({"routeTableRanges": [{"min": 254, "max": 300}]}, {}, 256),
        ({"routeTableRanges": [{"min": 10, "max": 20}]}, {"FELIX_ROUTETABLERANGE": "30-40"}, 30),
        ({"routeTableRange": {"min": 7, "max": 9}}, {"FELIX_ROUTETABLERANGES": "4294967295-4294967295, 1 - 2"},
         2**32 - 1),
    ],
)  # fmt: skip
def test_the_first_table_that_felix_may_use_is_wireguards(
    spec: dict[str, Any], environment: dict[str, str], table: int
) -> None:
    found = effective(stored(("default", spec)), "node1", {}, environment_settings(environment))
    assert (found.problems, found.wireguard.table) == ((), table)


@pytest.mark.parametrize(
    ("mask", "encryption", "bits"),
    [
        (0x30000, {}, (0x10000, 0x20000, 0, 0)),
        (0x70000, {}, (0x10000, 0x20000, 0x40000, 0)),
        (0x30000, {"wireguardEnabled": True}, (0x10000, 0x20000, 0, 0)),  # refused
        (0x70000, {"wireguardEnabled": True}, (0x10000, 0x20000, 0, 0x40000)),
        (0xF0000, {"wireguardEnabledV6": True}, (0x10000, 0x20000, 0x40000, 0x80000)),
        (
            0x80010600,
            {"wireguardEnabled": True, "wireguardHostEncryptionEnabled": True},
            (0x200, 0x400, 0x10000, 1 << 31),
        ),
        (0xFFFF0000, {"wireguardEnabled": True}, (0x10000, 0x20000, 0x40000, 0x200000)),
    ],
)
def test_each_use_of_the_mark_has_a_bit_of_its_own(
    mask: int, encryption: dict[str, Any], bits: tuple[int, ...]
) -> None:
    """Allowed early, Pass, IPVS, WireGuard."""
    options = effective(stored(("default", {"nftablesMarkMask": mask, **encryption})), "node1", {}).options
    assert (options.mark_accept, options.mark_pass, options.spare_bit, options.wireguard_bit) == bits
    assert [one.partition(":")[0] for one in ipvs.problems(options)] == ([] if bits[2] else ["nftablesMarkMask"])


def test_of_both_ways_to_say_which_tables_the_newer_counts() -> None:
    both = {"routeTableRange": {"min": 7, "max": 9}, "routeTableRanges": [{"min": 100, "max": 200}]}
    found = effective(stored(("default", both)), "node1", {})
    assert found.problems == ("routeTableRange (default): has no effect together with routeTableRanges",)
    assert found.wireguard.table == 100


def test_calicos_names_of_settings_in_the_environment() -> None:
    environment = {
        "FELIX_IPINIPENABLED": "true", "FELIX_IPINIPMTU": "1440", "FELIX_EXTERNALNODESCIDRLIST": "192.0.2.0/24",
        "FELIX_VXLANMTUV6": "1400", "FELIX_PROGRAMCLUSTERROUTES": "Enabled",
    }  # fmt: skip
    assert environment_settings(environment) == {
        "ipip_enabled": "true", "ipip_mtu": "1440", "external_nodes_list": "192.0.2.0/24", "vxlan_mtu_v6": "1400",
        "program_cluster_routes": "Enabled",
    }  # fmt: skip


def test_metrics_are_shown_where_the_configuration_says_and_nowhere_by_default() -> None:
    assert effective({}, "node1", {}).metrics == MetricsPlace()
    off = {"prometheusMetricsPort": 9999, "prometheusMetricsCertFile": "/c"}
    found = effective(stored(("default", off)), "node1", {})
    assert found.metrics.port == 0, "not enabled"
    environment = environment_settings({"FELIX_PROMETHEUSMETRICSKEYFILE": "/k", "FELIX_PROMETHEUSMETRICSHOST": "::1"})
    on = {
        "prometheusMetricsEnabled": True, "prometheusMetricsCertFile": "/c", "prometheusMetricsCAFile": "/a",
        "prometheusMetricsClientAuth": "RequireAndVerifyClientCert",
    }  # fmt: skip
    found = effective(stored(("default", on)), "node1", {}, environment)
    assert found.metrics == MetricsPlace("::1", 9091, "/a", "/c", "/k", "RequireAndVerifyClientCert")
    assert found.problems == ()


@pytest.mark.parametrize(
    ("said", "open_"),
    [
        ({}, False),
        ({"ENABLED": "true"}, False),
        ({"ENABLED": "true", "HOST": "192.0.2.1"}, False),
        ({"ENABLED": "true", "CERTFILE": "/c", "KEYFILE": "/k"}, False),  # the datastore may ask for readers' own
        ({"HOST": "127.0.0.1"}, False),
        ({"ENABLED": "true", "HOST": "127.0.0.1"}, True),
        ({"ENABLED": "true", "HOST": "::1"}, True),
        ({"ENABLED": "true", "HOST": "localhost"}, True),
        ({"ENABLED": "true", "CERTFILE": "/c", "KEYFILE": "/k", "CLIENTAUTH": "NoClientCert"}, True),
    ],
)
def test_metrics_wait_for_the_stored_configuration_unless_the_process_alone_says_who_reads(
    said: dict[str, str], open_: bool
) -> None:
    environment = environment_settings({f"FELIX_PROMETHEUSMETRICS{name}": value for name, value in said.items()})
    settings = effective({}, "node1", {}, environment)
    assert metrics_at_start(settings) == (settings.metrics if open_ else MetricsPlace())


@pytest.mark.parametrize(
    ("field", "slip"),
    [
        ("prometheusMetricsClientAuth", "RequireAndVerifyClientCertificate"),
        ("prometheusMetricsClientAuth", 5),
        ("prometheusMetricsCertFile", ["/c"]),
        ("prometheusMetricsKeyFile", {}),
        ("prometheusMetricsCAFile", True),
        ("prometheusMetricsHost", 0),
    ],
)
def test_a_slip_in_who_may_read_metrics_shows_them_to_nobody(field: str, slip: object) -> None:
    on = {"prometheusMetricsEnabled": True, "prometheusMetricsPort": 9999}
    found = effective(stored(("default", {**on, field: slip})), "node1", {})
    assert found.metrics.port == 9999, "a port that is named in the warning"
    assert field in found.metrics.problem()
    assert [field in problem for problem in found.problems] == [True]
    weaker = {**on, "prometheusMetricsClientAuth": "NoClientCert"}
    found = effective(stored(("default", weaker), ("node.node1", {field: slip})), "node1", {})
    assert field in found.metrics.problem(), "the weaker layer's would show them to more"
    repaired = {field: "NoClientCert" if "Auth" in field else "::1"}
    found = effective(stored(("default", {**on, field: slip}), ("node.node1", repaired)), "node1", {})
    assert field not in found.metrics.problem(), "a stronger layer says what holds"
