"""FelixConfiguration as it applies to this node, layer over layer, and what of it takes effect while running.

Layers, later wins: `default`; those whose nodeSelector matches this node's labels, of which the oldest counts;
`node.<name>` (facts/felix.md section 1.2). What no layer sets stays as the environment says
(services/felix/config.py). Pure: values in, values out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from libs.model import keys, selector
from libs.model.selector import SelectorError

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LEVELS = {
    "trace": "debug", "debug": "debug", "info": "info", "warning": "warning", "error": "error", "fatal": "critical",
    "none": "none",
}  # fmt: skip
_OUTLETS = {"log_severity_screen": "screen", "log_severity_file": "file", "log_severity_sys": "syslog"}


class Spec(msgspec.Struct, frozen=True, rename="camel"):
    """The fields that are live. Others are the business of later features and are ignored here."""

    node_selector: str = ""
    log_severity_screen: str = ""
    log_severity_file: str = ""
    log_severity_sys: str = ""
    nftables_refresh_interval: str = ""
    route_refresh_interval: str = ""


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    creation_timestamp: str = ""


class _Stored(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()
    spec: Spec = Spec()


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """None, or an outlet that is missing: not set in the datastore. 0: never. problems: what was ignored, and why."""

    log_levels: Mapping[str, str] = field(default_factory=dict)  # outlet -> level, as libs.runtime.logs names them
    nftables_refresh_s: float | None = None
    route_refresh_s: float | None = None
    problems: tuple[str, ...] = ()


def effective(stored: Mapping[str, msgspec.Raw], node: str, labels: Mapping[str, str]) -> LiveSettings:
    """stored: etcd key -> value of FelixConfiguration and other configuration resources. labels: of our Node."""
    problems: list[str] = []
    default, selected, own = Spec(), Spec(), Spec()
    oldest: tuple[str, str] | None = None
    for key, raw in sorted(stored.items()):
        parsed = keys.parse_key(key)
        if not isinstance(parsed, keys.ResourceKey) or parsed.kind != "FelixConfiguration":
            continue
        name = parsed.name
        try:
            resource = msgspec.json.decode(raw, type=_Stored)
            matches = bool(resource.spec.node_selector) and selector.parse(resource.spec.node_selector).matches(labels)
        except (msgspec.DecodeError, SelectorError) as error:
            problems.append(f"{name}: {error}")
            continue
        if name == "default":
            default = resource.spec
        elif name == f"node.{node}":
            own = resource.spec
        elif matches and (oldest is None or (resource.metadata.creation_timestamp, name) < oldest):
            oldest, selected = (resource.metadata.creation_timestamp, name), resource.spec
    merged: dict[str, str] = {}
    for spec in (default, selected, own):
        merged |= {name: value for name, value in msgspec.structs.asdict(spec).items() if value}
    return _settings(merged, problems)


def _settings(merged: Mapping[str, str], problems: list[str]) -> LiveSettings:
    levels: dict[str, str] = {}
    for name, outlet in _OUTLETS.items():
        text = merged.get(name)
        if text is None:
            continue
        level = _LEVELS.get(text.lower())
        if level is None:
            problems.append(f"{name}: {text!r} is no log level")
        else:
            levels[outlet] = level
    intervals: dict[str, float | None] = {}
    for name in ("nftables_refresh_interval", "route_refresh_interval"):
        text = merged.get(name)
        intervals[name] = seconds(text)
        if text is not None and intervals[name] is None:
            problems.append(f"{name}: {text!r} is no duration")
    return LiveSettings(
        levels, intervals["nftables_refresh_interval"], intervals["route_refresh_interval"], tuple(problems)
    )


def seconds(text: str | None) -> float | None:
    """A Go duration in seconds; None for None and for what is not one."""
    if not text or (text != "0" and not re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+", text)):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))
