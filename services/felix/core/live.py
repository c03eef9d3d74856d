"""FelixConfiguration as it applies to this node, layer over layer, and what of it takes effect while running.

Layers, later wins: `default`, those with a nodeSelector that matches (oldest only), `node.<name>` (facts/felix.md section 1.2). Values from
the environment are handled by services/felix/config.py and stand where a field is not set here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from libs.model import keys
from libs.runtime import logs

log = logging.getLogger(__name__)

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Spec(msgspec.Struct, frozen=True, rename="camel"):
    """The fields that are live. Others are the business of later features and are ignored here."""

    node_selector: str = ""
    log_severity_screen: str = ""
    nftables_refresh_interval: str = ""
    route_refresh_interval: str = ""


class _Stored(msgspec.Struct, frozen=True):
    spec: Spec = Spec()


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """None: not set in the datastore."""

    log_level: str | None = None
    nftables_refresh_s: float | None = None
    route_refresh_s: float | None = None

    def apply_log_level(self) -> None:
        if self.log_level is None:
            return
        try:
            logs.set_level(self.log_level)
        except ValueError as error:
            log.warning("logSeverityScreen ignored", extra={"error": str(error)})


def effective(stored: Mapping[str, msgspec.Raw], node: str) -> LiveSettings:
    """stored: etcd key -> value of FelixConfiguration and other configuration resources."""
    layers: list[tuple[int, str, Spec]] = []
    for key, raw in stored.items():
        parsed = keys.parse_key(key)
        if not isinstance(parsed, keys.ResourceKey) or parsed.kind != "FelixConfiguration":
            continue
        try:
            spec = msgspec.json.decode(raw, type=_Stored).spec
        except msgspec.DecodeError as error:
            log.warning("FelixConfiguration ignored", extra={"config": parsed.name, "error": str(error)})
            continue
        if parsed.name == "default":
            layers.append((0, parsed.name, spec))
        elif parsed.name == f"node.{node}":
            layers.append((2, parsed.name, spec))
    merged: dict[str, str] = {}
    for _, _, spec in sorted(layers, key=lambda layer: layer[:2]):
        merged |= {name: value for name, value in msgspec.structs.asdict(spec).items() if value}
    return LiveSettings(
        log_level=merged.get("log_severity_screen"),
        nftables_refresh_s=seconds(merged.get("nftables_refresh_interval")),
        route_refresh_s=seconds(merged.get("route_refresh_interval")),
    )


def seconds(text: str | None) -> float | None:
    """A Go duration in seconds; None for None and for what is not one."""
    if not text or not re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+", text):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))
