"""What each field of FelixConfiguration does: its value read, and put into the settings in the making.

Layers and their order are the business of `services.felix.core.live`. Pure: a value in, of the resource or text of the
environment or the file; ValueError says why it means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from libs.model.felixconfig import FelixConfigurationSpec, ProtoPort
from libs.model.metrics import CLIENT_AUTHS, MetricsPlace
from libs.netlink.routes import KERNEL_OR_BGP
from services.felix.core.failsafe import FailsafePort
from services.felix.core.interface_exclude import NOTHING, InterfaceExclude
from services.felix.core.interface_exclude import parse as parse_exclude
from services.felix.core.mtu import PATTERN
from services.felix.core.options import RulesetOptions
from services.felix.core.overlay import ClusterRoutes
from services.felix.core.route_settings import MAX_PRIORITY, RouteSettings
from services.felix.core.table_ranges import first_of_range, first_of_ranges
from services.felix.core.wireguard import WireguardSettings

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LEVELS = {
    "trace": "debug", "debug": "debug", "info": "info", "warning": "warning", "error": "error", "fatal": "critical",
    "none": "none",
}  # fmt: skip
_RATE = re.compile(r"([0-9]+)/(second|minute|hour|day)")
_FAILSAFE = re.compile(r"([A-Za-z]+):(?:\[?([0-9a-fA-F.:]+/[0-9]+)\]?:)?([0-9]+)")
DEFAULT_STATUS_PATH = "/var/run/calico"
MAIN_LOOP = "InternalDataplaneMainLoop"  # Calico's name of the reporter that DataplaneWatchdogTimeout is of
LEAST_WATCHDOG_S = 20.0  # as in Calico, whose loops report every 10 s


class Draft:
    """Settings in the making."""

    def __init__(self, options: RulesetOptions) -> None:
        self.options = options
        self.levels: dict[str, str] = {}
        self.nftables_refresh_s: float | None = None
        self.ipsets_refresh_s: float | None = None
        self.route_refresh_s: float | None = None
        self.interface_refresh_s: float | None = None
        self.ip_forwarding = True
        self.interface_exclude = InterfaceExclude()
        self.watchdog_s: float | None = None
        self.health_timeouts: dict[str, float] = {}
        self.mtu_pattern = PATTERN
        self.require_mtu_file = False
        self.status_path: str | None = DEFAULT_STATUS_PATH
        self.status_in_etcd = False
        self.status_delay_s = 1.0
        self.cluster_routes = ClusterRoutes.IPIP_ONLY
        self.routes = RouteSettings()
        self.wireguard = WireguardSettings()
        self.runtime_metrics = True
        self.process_metrics = True
        self.metrics_enabled = False
        self.metrics = MetricsPlace(port=9091)

    def route(self, **values: Any) -> None:
        self.routes = replace(self.routes, **values)

    def metric(self, **values: Any) -> None:
        self.metrics = replace(self.metrics, **values)

    def wg(self, **values: Any) -> None:
        self.wireguard = replace(self.wireguard, **values)

    def wg_family(self, version: int, **values: Any) -> None:
        family = replace(self.wireguard.family(version), **values)
        self.wg(v4=family) if version == 4 else self.wg(v6=family)

    def option(self, **values: Any) -> None:
        self.options = replace(self.options, **values)

    def nat(self, **values: Any) -> None:
        self.options = replace(self.options, nat=replace(self.options.nat, **values))

    def overlay(self, **values: Any) -> None:
        self.options = replace(self.options, overlay=replace(self.options.overlay, **values))


# --- values -----------------------------------------------------------------------------------------------------------


def _choice(value: Any, *choices: str) -> str:
    for choice in choices:
        if str(value).lower() == choice.lower():
            return choice
    raise ValueError(f"{value!r} is not one of {', '.join(choices)}")


def _bool(value: Any) -> bool:
    return value if isinstance(value, bool) else _choice(value, "true", "false") == "true"


def _interface(value: Any) -> str:
    """As the kernel takes it (net/core/dev.c, dev_valid_name)."""
    name = str(value)
    if not 1 <= len(name.encode()) <= 15 or name in (".", "..") or re.search(r"[\s/:]", name):
        raise ValueError(f"{name!r} is no name of an interface")
    return name


def _number(value: Any, low: int, high: int) -> int:
    try:
        number = int(str(value), 0)
    except ValueError:
        raise ValueError(f"{value!r} is no number") from None
    if not low <= number <= high:
        raise ValueError(f"{number} is not within {low} to {high}")
    return number


def _route_protocol(value: Any) -> int:
    number = _number(value, 1, 255)
    if number in KERNEL_OR_BGP:
        raise ValueError(f"{number} is the protocol of routes of the kernel or of BGP")
    return number


def _priority(value: Any) -> int:
    return _number(value, 1, MAX_PRIORITY)


def _duration(value: Any) -> float:
    text = str(value)
    found = float(text) if re.fullmatch(r"[0-9]+", text) else seconds(text)
    if found is None:
        raise ValueError(f"{text!r} is no duration")
    return found


def _timeouts(value: Any) -> dict[str, float]:
    """value: of the resource, or text `InternalDataplaneMainLoop=5m,CalculationGraph=1m30s`. Seconds by reporter."""
    if isinstance(value, list):
        pairs = [(one.name, str(one.timeout)) for one in value]
    else:
        parts = [text.partition("=") for text in str(value).split(",") if text.strip()]
        pairs = [(name.strip(), timeout.strip()) for name, _, timeout in parts]
    if wrong := [name for name, timeout in pairs if not name or not timeout]:
        raise ValueError(f"{wrong[0]!r} and its timeout must be as in CalculationGraph=1m")
    return {name: _duration(timeout) for name, timeout in pairs}


def _nftables_mode(value: Any) -> None:
    if _choice(value, "Auto", "Enabled", "Disabled") == "Disabled":
        raise ValueError("this felix has no iptables dataplane, so nftables stays on")


def _level(value: Any) -> str:
    level = _LEVELS.get(str(value).lower())
    if level is None:
        raise ValueError(f"{value!r} is no log level")
    return level


def _rate(value: Any) -> tuple[int, str]:
    match = _RATE.fullmatch(str(value).strip().lower())
    if match is None or not int(match[1]):
        raise ValueError(f"{value!r} is no rate such as 10/second, /minute, /hour or /day")
    return int(match[1]), match[2]


def _port_range(value: Any) -> tuple[int, int] | None:
    first, _, last = str(value).partition(":")
    low = _number(first, 0, 65535)
    high = _number(last, 1, 65535) if last else low
    if high < low:
        raise ValueError(f"{value!r} is upside down")
    return (low, high) if high else None


def _failsafes(value: Any) -> tuple[FailsafePort, ...]:
    """value: of the resource, or text `tcp:22,udp:10.0.0.0/8:68,tcp:[fd00::/8]:22`; none: no port at all."""
    if isinstance(value, list):
        return tuple(_failsafe_port(one) for one in value)
    if value.strip().lower() == "none":
        return ()
    out = []
    for text in value.split(","):
        match = _FAILSAFE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text.strip()!r} is no port such as tcp:22 or udp:10.0.0.0/8:68")
        out.append(FailsafePort(match[1].lower(), int(match[3]), match[2] or ""))
    return tuple(out)


def _failsafe_port(port: ProtoPort) -> FailsafePort:
    return FailsafePort(port.protocol.lower(), port.port, port.net)


def _address(value: Any) -> dict[int, str]:
    address = ip_address(str(value))
    return {address.version: str(address)}


def _networks(value: Any) -> tuple[str, ...]:
    """value: a list, or text with commas between."""
    texts = value if isinstance(value, list) else str(value).split(",")
    return tuple(str(ip_network(text.strip(), strict=False)) for text in texts if text.strip())


def _one_address(value: Any, version: int) -> dict[int, str]:
    found = _address(value)
    if version not in found:
        raise ValueError(f"{value!r} is no IPv{version} address")
    return found


def _checksum_broken(value: Any) -> bool | None:
    """value: features and what is to be believed of them, "ChecksumOffloadBroken=true,…". None: nothing of this one."""
    found = None
    for text in str(value).split(","):
        name, _, what = text.partition("=")
        if name.strip().lower() == "checksumoffloadbroken":
            found = _bool(what.strip())
    return found


def _pattern(value: Any) -> str:
    try:
        re.compile(str(value))
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from None
    return str(value)


def seconds(text: str | None) -> float | None:
    """A Go duration in seconds; None for None and for what is not one."""
    if not text or (text != "0" and not re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+", text)):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


# --- what each field does ---------------------------------------------------------------------------------------------

Use = Callable[[Draft, Any], object]
USES: dict[str, Use] = {
    "log_severity_screen": lambda d, v: d.levels.update(screen=_level(v)),
    "log_severity_file": lambda d, v: d.levels.update(file=_level(v)),
    "log_severity_sys": lambda d, v: d.levels.update(syslog=_level(v)),
    "nftables_refresh_interval": lambda d, v: setattr(d, "nftables_refresh_s", _duration(v)),
    "ipsets_refresh_interval": lambda d, v: setattr(d, "ipsets_refresh_s", _duration(v)),
    "interface_refresh_interval": lambda d, v: setattr(d, "interface_refresh_s", _duration(v)),
    "interface_exclude": lambda d, v: setattr(d, "interface_exclude", parse_exclude(str(v))),
    "ip_forwarding": lambda d, v: setattr(d, "ip_forwarding", _choice(v, "Enabled", "Disabled") == "Enabled"),
    "dataplane_watchdog_timeout": lambda d, v: setattr(d, "watchdog_s", max(LEAST_WATCHDOG_S, _duration(v))),
    "health_timeout_overrides": lambda d, v: setattr(d, "health_timeouts", _timeouts(v)),
    "nftables_mode": lambda d, v: _nftables_mode(v),
    "route_refresh_interval": lambda d, v: setattr(d, "route_refresh_s", _duration(v)),
    "route_sync_disabled": lambda d, v: d.route(sync=not _bool(v)),
    "remove_external_routes": lambda d, v: d.route(remove_external=_bool(v)),
    "device_route_protocol": lambda d, v: d.route(protocol=_route_protocol(v)),
    "ipv4_normal_route_priority": lambda d, v: d.route(priorities={**d.routes.priorities, 4: _priority(v)}),
    "ipv6_normal_route_priority": lambda d, v: d.route(priorities={**d.routes.priorities, 6: _priority(v)}),
    "mtu_iface_pattern": lambda d, v: setattr(d, "mtu_pattern", _pattern(v)),
    "require_mtu_file": lambda d, v: setattr(d, "require_mtu_file", _bool(v)),
    "endpoint_status_path_prefix": lambda d, v: setattr(d, "status_path", str(v)),
    "endpoint_reporting_enabled": lambda d, v: setattr(d, "status_in_etcd", _bool(v)),
    "endpoint_reporting_delay": lambda d, v: setattr(d, "status_delay_s", _duration(v)),
    "default_endpoint_to_host_action": lambda d, v: d.option(endpoint_to_host=_choice(v, "Drop", "Accept", "Return")),
    "nftables_filter_deny_action": lambda d, v: d.option(deny_action=_choice(v, "Drop", "Reject")),
    "nftables_mark_mask": lambda d, v: d.option(mark_mask=_number(v, 1, 0xFFFFFFFF)),
    # Both end our stage and nothing else: the tables hold no chains but ours.
    "nftables_filter_allow_action": lambda d, v: _choice(v, "Accept", "Return"),
    "nftables_mangle_allow_action": lambda d, v: _choice(v, "Accept", "Return"),
    "disable_conntrack_invalid_check": lambda d, v: d.option(check_invalid=not _bool(v)),
    "workload_source_spoofing": lambda d, v: d.option(allow_source_spoofing=_choice(v, "Disabled", "Any") == "Any"),
    "program_cluster_routes": lambda d, v: setattr(
        d, "cluster_routes", ClusterRoutes(_choice(v, *(str(one) for one in ClusterRoutes)))
    ),
    "device_route_source_address": lambda d, v: d.route(sources={**d.routes.sources, **_one_address(v, 4)}),
    "device_route_source_address_ipv6": lambda d, v: d.route(sources={**d.routes.sources, **_one_address(v, 6)}),
    "vxlan_enabled": lambda d, v: d.overlay(vxlan=_bool(v)),
    "vxlan_port": lambda d, v: d.overlay(port=_number(v, 1, 65535)),
    "vxlan_vni": lambda d, v: d.overlay(vni=_number(v, 1, 0xFFFFFF)),
    "vxlan_mtu": lambda d, v: d.overlay(vxlan_mtu_bytes=_number(v, 0, 65535)),
    "vxlan_mtu_v6": lambda d, v: d.overlay(vxlan6_mtu_bytes=_number(v, 0, 65535)),
    "ipip_enabled": lambda d, v: d.overlay(ipip=_bool(v)),
    "ipip_mtu": lambda d, v: d.overlay(ipip_mtu_bytes=_number(v, 0, 65535)),
    "feature_detect_override": lambda d, v: d.overlay(checksum_broken=_checksum_broken(v)),
    "external_nodes_list": lambda d, v: d.option(external_nodes=_networks(v)),
    "allow_vxlan_packets_from_workloads": lambda d, v: d.option(allow_vxlan_from_workloads=_bool(v)),
    "allow_ipip_packets_from_workloads": lambda d, v: d.option(allow_ipip_from_workloads=_bool(v)),
    "log_prefix": lambda d, v: d.option(log_prefix=str(v)),
    "log_action_rate_limit": lambda d, v: d.option(log_rate=_rate(v)),
    "log_action_rate_limit_burst": lambda d, v: d.option(log_burst=_number(v, 1, 9999)),
    "failsafe_inbound_host_ports": lambda d, v: d.option(failsafe_in=_failsafes(v)),
    "failsafe_outbound_host_ports": lambda d, v: d.option(failsafe_out=_failsafes(v)),
    "service_loop_prevention": lambda d, v: d.option(loop_prevention=_choice(v, "Drop", "Reject", "Disabled")),
    "nat_port_range": lambda d, v: d.nat(ports=_port_range(v)),
    "nat_outgoing_address": lambda d, v: d.nat(address=_address(v)),
    "nat_outgoing_exclusions": lambda d, v: d.nat(
        exclude_hosts=_choice(v, "IPPoolsOnly", "IPPoolsAndHostIPs") == "IPPoolsAndHostIPs"
    ),
    "iptables_nat_outgoing_interface_filter": lambda d, v: d.nat(out_interface=re.sub(r"\+\Z", "*", str(v))),
    "floating_ips": lambda d, v: d.nat(floating_ips=_choice(v, "Disabled", "Enabled") == "Enabled"),
    "wireguard_enabled": lambda d, v: d.wg_family(4, enabled=_bool(v)),
    "wireguard_enabled_v6": lambda d, v: d.wg_family(6, enabled=_bool(v)),
    "wireguard_listening_port": lambda d, v: d.wg_family(4, port=_number(v, 1, 65535)),
    "wireguard_listening_port_v6": lambda d, v: d.wg_family(6, port=_number(v, 1, 65535)),
    "wireguard_interface_name": lambda d, v: d.wg_family(4, interface=_interface(v)),
    "wireguard_interface_name_v6": lambda d, v: d.wg_family(6, interface=_interface(v)),
    "wireguard_mtu": lambda d, v: d.wg_family(4, mtu_bytes=_number(v, 0, 65535)),
    "wireguard_mtu_v6": lambda d, v: d.wg_family(6, mtu_bytes=_number(v, 0, 65535)),
    "wireguard_routing_rule_priority": lambda d, v: d.wg(priority=_number(v, 1, 32765)),
    "route_table_ranges": lambda d, v: d.wg(table=first_of_ranges(v)),
    "route_table_range": lambda d, v: d.wg(table=first_of_range(v)),
    "wireguard_keep_alive": lambda d, v: d.wg(keepalive_s=min(65535, round(_duration(v)))),
    "wireguard_threading_enabled": lambda d, v: d.wg(threading=_bool(v)),
    "wireguard_host_encryption_enabled": lambda d, v: d.wg(host_encryption=_bool(v)),
    "prometheus_wire_guard_metrics_enabled": lambda d, v: d.wg(metrics=_bool(v)),
    "prometheus_go_metrics_enabled": lambda d, v: setattr(d, "runtime_metrics", _bool(v)),
    "prometheus_process_metrics_enabled": lambda d, v: setattr(d, "process_metrics", _bool(v)),
    "prometheus_metrics_enabled": lambda d, v: setattr(d, "metrics_enabled", _bool(v)),
    "prometheus_metrics_host": lambda d, v: d.metric(host=str(v)),
    "prometheus_metrics_port": lambda d, v: d.metric(port=_number(v, 0, 65535)),
    "prometheus_metrics_ca_file": lambda d, v: d.metric(ca=str(v)),
    "prometheus_metrics_cert_file": lambda d, v: d.metric(cert=str(v)),
    "prometheus_metrics_key_file": lambda d, v: d.metric(key=str(v)),
    "prometheus_metrics_client_auth": lambda d, v: d.metric(client_auth=_choice(v, *CLIENT_AUTHS)),
    "wireguard_encrypt_or_drop": lambda d, v: d.wg(encrypt_or_drop=_bool(v)),
}  # fmt: skip
# Read from the environment when the process starts (services/felix/config.py), where they may stand as well.
ELSEWHERE = frozenset({"interface_prefix", "ipv6_support", "health_enabled", "health_host", "health_port"})
SUPPORTED = frozenset(USES)
# What bgp goes by as well, which knows of no layer but `default` and `node.<name>`.
WITH_BGP = ("program_cluster_routes", "ipv4_normal_route_priority", "ipv6_normal_route_priority")
# Of Calico's dataplanes for iptables and Windows, and of the runtime of the language that it is written in.
OF_OTHER_DATAPLANES = frozenset(
    name
    for name in FelixConfigurationSpec.__struct_fields__
    if name.startswith(("iptables_", "go_", "windows_")) and name not in USES
) | {"chain_insert_mode", "max_ipset_size", "dataplane_driver", "use_internal_dataplane_driver"}
# Where a slip leaves no layer below standing: what is weaker may show metrics to more readers than was meant.
WHO_READS = frozenset(
    f"prometheus_metrics_{name}" for name in ("host", "ca_file", "cert_file", "key_file", "client_auth")
)

# What `none` means where it clears a value of a weaker layer.
CLEAR: dict[str, Use] = {
    "endpoint_status_path_prefix": lambda d, v: setattr(d, "status_path", None),
    "interface_exclude": lambda d, v: setattr(d, "interface_exclude", NOTHING),
    "health_timeout_overrides": lambda d, v: setattr(d, "health_timeouts", {}),
    "log_prefix": lambda d, v: d.option(log_prefix=""),
    "log_action_rate_limit": lambda d, v: d.option(log_rate=None),
    "nat_port_range": lambda d, v: d.nat(ports=None),
    "nat_outgoing_address": lambda d, v: d.nat(address={}),
    "iptables_nat_outgoing_interface_filter": lambda d, v: d.nat(out_interface=""),
}
