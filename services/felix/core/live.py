"""FelixConfiguration as it applies to this node, layer over layer, and what of it takes effect while running.

Layers, later wins: default; the resource `default`; those whose nodeSelector matches this node's labels, of which the
oldest counts; `node.<name>`; the configuration file; the environment (facts/felix.md section 1.2). Empty text is "not
set". A value that means nothing is named and leaves the layer below standing (who may read metrics: nobody); a field
that is set and that we have no use for is named too. Pure: values in, values out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from libs import model
from libs.model import keys, selector
from libs.model.codec import convert
from libs.model.felixconfig import FelixConfigurationSpec, ProtoPort
from libs.model.metrics import CLIENT_AUTHS, MetricsPlace
from libs.model.selector import SelectorError
from libs.netlink.routes import KERNEL_OR_BGP
from services.felix.core.failsafe import FailsafePort
from services.felix.core.mtu import PATTERN
from services.felix.core.options import RulesetOptions
from services.felix.core.overlay import ClusterRoutes
from services.felix.core.route_settings import MAX_PRIORITY, RouteSettings
from services.felix.core.table_ranges import first_of_range, first_of_ranges
from services.felix.core.wireguard import WireguardSettings, mark_of

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LEVELS = {
    "trace": "debug", "debug": "debug", "info": "info", "warning": "warning", "error": "error", "fatal": "critical",
    "none": "none",
}  # fmt: skip
_RATE = re.compile(r"([0-9]+)/(second|minute|hour|day)")
_FAILSAFE = re.compile(r"([A-Za-z]+):(?:\[?([0-9a-fA-F.:]+/[0-9]+)\]?:)?([0-9]+)")
_ENCODED = {one.name: one.encode_name for one in msgspec.structs.fields(FelixConfigurationSpec)}
_DECODED = {encoded: name for name, encoded in _ENCODED.items()}
FILE, ENVIRONMENT = "configuration file", "environment"
DEFAULT_STATUS_PATH = "/var/run/calico"
ANY_NET = {4: "0.0.0.0/0", 6: "::/0"}
OURS = {"felix.calico-py/wireguardEncryptOrDrop": "wireguard_encrypt_or_drop"}
"""Annotation of a FelixConfiguration -> field; in the environment FELIX_WIREGUARDENCRYPTORDROP."""


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    creation_timestamp: str = ""
    annotations: dict[str, str] | None = None


class _Stored(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()
    spec: dict[str, Any] = {}


class _ServiceBlock(msgspec.Struct, frozen=True):
    cidr: str = ""


class _Services(msgspec.Struct, frozen=True):
    service_cluster_ips: tuple[_ServiceBlock, ...] = msgspec.field(default=(), name="serviceClusterIPs")
    service_external_ips: tuple[_ServiceBlock, ...] = msgspec.field(default=(), name="serviceExternalIPs")
    service_load_balancer_ips: tuple[_ServiceBlock, ...] = msgspec.field(default=(), name="serviceLoadBalancerIPs")


class _StoredServices(msgspec.Struct, frozen=True):
    spec: _Services = _Services()


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and the layer that it comes from: `default`, the name of a resource, the file or the environment.
    shown: as it was written, for people.
    """

    value: Any
    source: str
    shown: str = ""


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """In place of a value that must not be taken for one that is not set."""

    why: str


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """None, or an outlet that is missing: not set. 0: never. problems: what was ignored, and why. sources: of every
    field that is set and used, the layer it comes from.
    """

    log_levels: Mapping[str, str] = field(default_factory=dict)  # outlet -> level, as libs.runtime.logs names them
    nftables_refresh_s: float | None = None
    route_refresh_s: float | None = None
    mtu_pattern: str = PATTERN  # MTUIfacePattern
    require_mtu_file: bool = False
    status_path: str | None = DEFAULT_STATUS_PATH  # EndpointStatusPathPrefix; None: no files
    status_in_etcd: bool = False  # EndpointReportingEnabled
    status_delay_s: float = 1.0  # EndpointReportingDelay
    cluster_routes: ClusterRoutes = ClusterRoutes.IPIP_ONLY  # ProgramClusterRoutes
    routes: RouteSettings = field(default_factory=RouteSettings)
    wireguard: WireguardSettings = field(default_factory=WireguardSettings)
    metrics: MetricsPlace = field(default_factory=MetricsPlace)  # PrometheusMetrics…
    options: RulesetOptions = field(default_factory=RulesetOptions)
    service_cidrs: tuple[str, ...] = ()  # BGPConfiguration `default`: what services are announced from
    problems: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)
    """Of the same fields, what was written."""


# Where the environment's name is not that of the resource's field.
OTHER_NAMES = {
    "ipip_enabled": "IPINIPENABLED",
    "ipip_mtu": "IPINIPMTU",
    "external_nodes_list": "EXTERNALNODESCIDRLIST",
    "wireguard_keep_alive": "WIREGUARDPERSISTENTKEEPALIVE",
}


def environment_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """FELIX_LOGPREFIX and the like, by the field's name in the resource: {"log_prefix": …}."""
    out = {}
    for name in (*FelixConfigurationSpec.__struct_fields__, *OURS.values()):
        text = environment.get("FELIX_" + OTHER_NAMES.get(name, name.replace("_", "").upper()), "")
        if text:
            out[name] = text
    return out


def effective(
    stored: Mapping[str, msgspec.Raw],
    node: str,
    labels: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    start: RulesetOptions | None = None,
    file: Mapping[str, str] | None = None,
) -> LiveSettings:
    """stored: etcd key -> value of FelixConfiguration and other configuration resources. labels: of our Node.
    environment: as `environment_settings` gives it; file: as `configfile.file_settings` does. start: options under
    everything else.
    """
    problems: list[str] = []
    default: dict[str, Setting] = {}
    selected: dict[str, Setting] = {}
    own: dict[str, Setting] = {}
    oldest: tuple[str, str] | None = None
    for key, raw in sorted(stored.items()):
        parsed = keys.parse_key(key)
        if not isinstance(parsed, keys.ResourceKey) or parsed.kind != "FelixConfiguration":
            continue
        name = parsed.name
        try:
            resource = msgspec.json.decode(raw, type=_Stored)
            text = resource.spec.pop("nodeSelector", "")
            ours = _our_layer(name, resource.metadata.annotations or {})
            matches = bool(text) and selector.parse(text).matches(labels)
        except (msgspec.DecodeError, SelectorError) as error:
            problems.append(f"{name}: {error}")
            continue
        created = resource.metadata.creation_timestamp
        if name == "default":
            default = _layer(name, resource.spec, problems) | ours
        elif name == f"node.{node}":
            own = _layer(name, resource.spec, problems) | ours
        elif matches and (oldest is None or (created, name) < oldest):
            oldest, selected = (created, name), _layer(name, resource.spec, problems) | ours
    problems += [
        f"{camel(name)} ({ignored.source}): has no effect together with nodeSelector; it belongs to `default` or"
        f" `node.{node}`"
        for name in _WITH_BGP
        if (ignored := selected.pop(name, None)) is not None
    ]
    of_process = [
        {name: Setting(text, source, text) for name, text in (texts or {}).items()}
        for source, texts in ((FILE, file), (ENVIRONMENT, environment))
    ]
    settings = _merge([default, selected, own, *of_process], start or RulesetOptions(), problems)
    return replace(settings, service_cidrs=_service_cidrs(stored, problems), problems=tuple(problems))


def _layer(source: str, spec: dict[str, Any], problems: list[str]) -> dict[str, Setting]:
    """Field by field, so that one that cannot be read leaves the others."""
    out = {}
    for encoded, value in spec.items():
        name = _DECODED.get(encoded)
        if name is None:
            problems.append(f"{encoded} ({source}): there is no such field")
            continue
        try:
            read = getattr(convert(FelixConfigurationSpec, {encoded: value}), name)
        except model.DecodeError as error:
            if name in _WHO_READS:
                out[name] = Setting(_Unreadable(str(error)), source)
            else:
                problems.append(f"{encoded} ({source}): {error}")
            continue
        if read is not None and read != "":
            out[name] = Setting(read, source, value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return out


def _our_layer(source: str, annotations: Mapping[str, str]) -> dict[str, Setting]:
    """Settings that Calico does not have: annotations, so that what is stored stays what Calico can read."""
    return {
        name: Setting(annotations[key], source, annotations[key]) for key, name in OURS.items() if annotations.get(key)
    }


def _merge(layers: list[dict[str, Setting]], options: RulesetOptions, problems: list[str]) -> LiveSettings:
    """Layer over layer, field by field, so that a bad value leaves the one below it."""
    draft = _Draft(options)
    used: dict[str, Setting] = {}
    unused: set[str] = set()
    unclear: dict[str, str] = {}
    for layer in layers:
        if (older := layer.get("route_table_range")) is not None and "route_table_ranges" in layer:
            problems.append(f"routeTableRange ({older.source}): has no effect together with routeTableRanges")
            layer = {name: setting for name, setting in layer.items() if setting is not older}
        for name, setting in layer.items():
            use = _USES.get(name)
            if use is None:
                if name not in _ELSEWHERE:
                    unused.add(name)
                continue
            if str(setting.value).lower() == "none" and name in _CLEAR:
                use = _CLEAR[name]
            try:
                if isinstance(setting.value, _Unreadable):
                    raise ValueError(setting.value.why)
                use(draft, setting.value)
            except ValueError as error:
                problem = f"{camel(name)} ({setting.source}): {error}"
                problems.append(problem)
                if name in _WHO_READS:
                    unclear[name] = problem
            else:
                used[name] = setting
                unclear.pop(name, None)
    problems += [f"{camel(name)}: has no effect in this version" for name in sorted(unused)]
    if draft.options.mark_mask.bit_count() < 3 and (draft.wireguard.v4.enabled or draft.wireguard.v6.enabled):
        problems.append("wireguardEnabled: nftablesMarkMask has no third bit, which WireGuard needs: it is off")
        draft.wireguard = WireguardSettings()
    draft.metric(wrong="; ".join(unclear.values()))
    draft.options = _with_wireguard(draft.options, draft.wireguard)
    return LiveSettings(
        log_levels=draft.levels,
        nftables_refresh_s=draft.nftables_refresh_s,
        route_refresh_s=draft.route_refresh_s,
        mtu_pattern=draft.mtu_pattern,
        require_mtu_file=draft.require_mtu_file,
        status_path=draft.status_path,
        status_in_etcd=draft.status_in_etcd,
        status_delay_s=draft.status_delay_s,
        cluster_routes=draft.cluster_routes,
        routes=draft.routes,
        wireguard=draft.wireguard,
        metrics=draft.metrics if draft.metrics_enabled else MetricsPlace(),
        options=draft.options,
        sources={name: setting.source for name, setting in used.items()},
        shown={name: setting.shown for name, setting in used.items()},
    )


def _with_wireguard(options: RulesetOptions, wireguard: WireguardSettings) -> RulesetOptions:
    """What the ruleset has to know. The ports are open at host endpoints whatever their policy: a host that closes them
    loses its pods, and WireGuard does not answer strangers.
    """
    ports = {version: port for version in (4, 6) for port in wireguard.ports(version)}
    if not ports:
        return options
    host = wireguard.host_encryption  # then nodes' own addresses are the peers' as well, and answers find their way
    opened = tuple(FailsafePort("udp", port, ANY_NET[version]) for version, port in ports.items())
    return replace(
        options,
        wireguard_ports=ports,
        wireguard_devices={} if host else {version: wireguard.family(version).interface for version in ports},
        wireguard_mark=mark_of(options.mark_mask) if host else 0,
        failsafe_in=options.failsafe_in + opened,
        failsafe_out=options.failsafe_out + opened,
    )


def metrics_at_start(settings: LiveSettings) -> MetricsPlace:
    """Before the datastore's configuration is known. settings: of file and environment, which are stronger. Nowhere,
    unless they alone say who may read: on loopback, or with a certificate and what readers must show.
    """
    place, said = settings.metrics, settings.sources
    host = place.host.strip("[]")
    with contextlib.suppress(ValueError):
        if host == "localhost" or (host and ip_address(host).is_loopback):
            return place
    return place if place.cert and "prometheus_metrics_client_auth" in said else MetricsPlace()


class _Draft:
    """Settings in the making."""

    def __init__(self, options: RulesetOptions) -> None:
        self.options = options
        self.levels: dict[str, str] = {}
        self.nftables_refresh_s: float | None = None
        self.route_refresh_s: float | None = None
        self.mtu_pattern = PATTERN
        self.require_mtu_file = False
        self.status_path: str | None = DEFAULT_STATUS_PATH
        self.status_in_etcd = False
        self.status_delay_s = 1.0
        self.cluster_routes = ClusterRoutes.IPIP_ONLY
        self.routes = RouteSettings()
        self.wireguard = WireguardSettings()
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


def camel(name: str) -> str:
    """The field as users write it."""
    return _ENCODED.get(name) or next(key for key, field_name in OURS.items() if field_name == name)


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


def _service_cidrs(stored: Mapping[str, msgspec.Raw], problems: list[str]) -> tuple[str, ...]:
    raw = stored.get(keys.resource_key("BGPConfiguration", "default"))
    if raw is None:
        return ()
    try:
        spec = msgspec.json.decode(raw, type=_StoredServices).spec
    except msgspec.DecodeError as error:
        problems.append(f"BGPConfiguration default: {error}")
        return ()
    found = set()
    for block in (*spec.service_cluster_ips, *spec.service_external_ips, *spec.service_load_balancer_ips):
        try:
            found.add(str(ip_network(block.cidr, strict=False)))
        except ValueError as error:
            problems.append(f"BGPConfiguration default: {error}")
    return tuple(sorted(found))


# --- what each field does ---------------------------------------------------------------------------------------------

Use = Callable[[_Draft, Any], object]
_USES: dict[str, Use] = {
    "log_severity_screen": lambda d, v: d.levels.update(screen=_level(v)),
    "log_severity_file": lambda d, v: d.levels.update(file=_level(v)),
    "log_severity_sys": lambda d, v: d.levels.update(syslog=_level(v)),
    "nftables_refresh_interval": lambda d, v: setattr(d, "nftables_refresh_s", _duration(v)),
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
_ELSEWHERE = frozenset({"interface_prefix", "ipv6_support", "health_enabled", "health_host", "health_port"})
SUPPORTED = frozenset(_USES)
# What bgp goes by as well, which knows of no layer but `default` and `node.<name>`.
_WITH_BGP = ("program_cluster_routes", "ipv4_normal_route_priority", "ipv6_normal_route_priority")
# Where a slip leaves no layer below standing: what is weaker may show metrics to more readers than was meant.
_WHO_READS = frozenset(
    f"prometheus_metrics_{name}" for name in ("host", "ca_file", "cert_file", "key_file", "client_auth")
)

# What `none` means where it clears a value of a weaker layer.
_CLEAR: dict[str, Use] = {
    "endpoint_status_path_prefix": lambda d, v: setattr(d, "status_path", None),
    "log_prefix": lambda d, v: d.option(log_prefix=""),
    "log_action_rate_limit": lambda d, v: d.option(log_rate=None),
    "nat_port_range": lambda d, v: d.nat(ports=None),
    "nat_outgoing_address": lambda d, v: d.nat(address={}),
    "iptables_nat_outgoing_interface_filter": lambda d, v: d.nat(out_interface=""),
}
