"""FelixConfiguration as it applies to this node, layer over layer, and what of it takes effect while running.

Layers, later wins: default; the resource `default`; those whose nodeSelector matches this node's labels, of which the
oldest counts; `node.<name>`; the configuration file; the environment (facts/felix.md section 1.2). Empty text is "not
set". A value that means nothing is named and leaves the layer below standing (who may read metrics: nobody); a field
that is set and that we have no use for is named too. Pure: values in, values out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from libs import model
from libs.model import keys, selector
from libs.model.codec import convert
from libs.model.felixconfig import FelixConfigurationSpec
from libs.model.metrics import MetricsPlace
from libs.model.selector import SelectorError
from services.felix.core.failsafe import FailsafePort
from services.felix.core.fields import (
    CLEAR,
    DEFAULT_STATUS_PATH,
    ELSEWHERE,
    MAIN_LOOP,
    OF_OTHER_DATAPLANES,
    USES,
    WHO_READS,
    WITH_BGP,
    Draft,
)  # fmt: skip
from services.felix.core.interface_exclude import InterfaceExclude
from services.felix.core.mtu import PATTERN
from services.felix.core.options import RulesetOptions
from services.felix.core.overlay import ClusterRoutes
from services.felix.core.route_settings import RouteSettings
from services.felix.core.wireguard import WireguardSettings, mark_of

_ENCODED = {one.name: one.encode_name for one in msgspec.structs.fields(FelixConfigurationSpec)}
_DECODED = {encoded: name for name, encoded in _ENCODED.items()}
FILE, ENVIRONMENT = "configuration file", "environment"
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
    ipsets_refresh_s: float | None = None
    route_refresh_s: float | None = None
    interface_refresh_s: float | None = None
    ip_forwarding: bool = True
    interface_exclude: InterfaceExclude = field(default_factory=InterfaceExclude)
    health_timeouts: Mapping[str, float] = field(default_factory=dict)  # reporter -> seconds of silence; 0: any
    runtime_metrics: bool = True  # PrometheusGoMetricsEnabled
    process_metrics: bool = True  # PrometheusProcessMetricsEnabled
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
        for name in WITH_BGP
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
            if name in WHO_READS:
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
    draft = Draft(options)
    used: dict[str, Setting] = {}
    unused: set[str] = set()
    unclear: dict[str, str] = {}
    for layer in layers:
        if (older := layer.get("route_table_range")) is not None and "route_table_ranges" in layer:
            problems.append(f"routeTableRange ({older.source}): has no effect together with routeTableRanges")
            layer = {name: setting for name, setting in layer.items() if setting is not older}
        for name, setting in layer.items():
            use = USES.get(name)
            if use is None:
                if name not in ELSEWHERE:
                    unused.add(name)
                continue
            if str(setting.value).lower() == "none" and name in CLEAR:
                use = CLEAR[name]
            try:
                if isinstance(setting.value, _Unreadable):
                    raise ValueError(setting.value.why)
                use(draft, setting.value)
            except ValueError as error:
                problem = f"{camel(name)} ({setting.source}): {error}"
                problems.append(problem)
                if name in WHO_READS:
                    unclear[name] = problem
            else:
                used[name] = setting
                unclear.pop(name, None)
    problems += [f"{camel(name)}: {_why_unused(name)}" for name in sorted(unused)]
    if draft.options.mark_mask.bit_count() < 3 and (draft.wireguard.v4.enabled or draft.wireguard.v6.enabled):
        problems.append("wireguardEnabled: nftablesMarkMask has no third bit, which WireGuard needs: it is off")
        draft.wireguard = WireguardSettings()
    draft.metric(wrong="; ".join(unclear.values()))
    draft.options = _with_wireguard(draft.options, draft.wireguard)
    return LiveSettings(
        log_levels=draft.levels,
        nftables_refresh_s=draft.nftables_refresh_s,
        ipsets_refresh_s=draft.ipsets_refresh_s,
        route_refresh_s=draft.route_refresh_s,
        interface_refresh_s=draft.interface_refresh_s,
        ip_forwarding=draft.ip_forwarding,
        interface_exclude=draft.interface_exclude,
        health_timeouts=({} if draft.watchdog_s is None else {MAIN_LOOP: draft.watchdog_s}) | draft.health_timeouts,
        runtime_metrics=draft.runtime_metrics,
        process_metrics=draft.process_metrics,
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


def _why_unused(name: str) -> str:
    return "belongs to another dataplane" if name in OF_OTHER_DATAPLANES else "has no effect in this version"


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
        wireguard_bit=mark_of(options.mark_mask),
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


def camel(name: str) -> str:
    """The field as users write it."""
    return _ENCODED.get(name) or next(key for key, field_name in OURS.items() if field_name == name)


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
