"""Limits of a pod from its annotations (facts/kubernetes-conversion.md, `qosControls`). Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from libs.model.endpoints import QoSControls
from libs.model.scalars import DSCP
from libs.model.validation.endpoints import DSCP_ANNOTATION, QOS_LIMITS

PREFIX = "qos.projectcalico.org/"
KUBERNETES = {"ingress": "kubernetes.io/ingress-bandwidth", "egress": "kubernetes.io/egress-bandwidth"}
DEFAULT_BURST = 1 << 32  # bits (facts/datamodel.md, qosControls)
DEFAULT_PACKET_BURST = 5
_QUANTITY = re.compile(
    r"([+-]?)([0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def quantity(text: str) -> int:
    """A Kubernetes quantity (`10M`, `4Gi`, `1e6`, `1.5k`), rounded up. Raises ValueError."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    sign, number, suffix = match[1], Fraction(match[2]), match[3] or ""
    if suffix in _BINARY:
        number *= 2 ** _BINARY[suffix]
    elif suffix:
        number *= Fraction(10) ** (_DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:]))
    return math.ceil(-number if sign == "-" else number)


def qos_controls(annotations: Mapping[str, str]) -> tuple[QoSControls | None, list[str]]:
    """None when there is nothing to limit or mark; and what of the annotations could not be used as it stands.

    A value out of bounds is set to the nearest bound; a burst without its rate, a peak rate that is not above the
    bandwidth, and a minburst without a peak rate are left out.
    """
    problems: list[str] = []
    found = QoSControls()
    for way in ("ingress", "egress"):
        values = {name: _value(annotations, PREFIX + way + name, name, problems) for name in QOS_LIMITS}
        if PREFIX + way + "Bandwidth" not in annotations:
            values["Bandwidth"] = _value(annotations, KUBERNETES[way], "Bandwidth", problems)
        _settle(way, values, problems)
        for name, value in values.items():
            setattr(found, f"{way}_{_FIELDS[name]}", value)
    text = annotations.get(DSCP_ANNOTATION)
    if text is not None:
        if DSCP(text).number is None:
            problems.append(f"{DSCP_ANNOTATION}: {text!r} is no code point")
        else:
            found.dscp = DSCP(text)
    return (None if found == QoSControls() else found), problems


_FIELDS = {
    "Bandwidth": "bandwidth",
    "Burst": "burst",
    "Peakrate": "peakrate",
    "Minburst": "minburst",
    "PacketRate": "packet_rate",
    "PacketBurst": "packet_burst",
    "MaxConnections": "max_connections",
}


def _value(annotations: Mapping[str, str], key: str, name: str, problems: list[str]) -> int:
    if key not in annotations:
        return 0
    try:
        value = quantity(annotations[key])
    except ValueError as error:
        problems.append(f"{key}: {error}")
        return 0
    low, high = QOS_LIMITS[name]
    if not low <= value <= high:
        problems.append(f"{key}: {value} is not between {low} and {high}")
    return min(max(value, low), high)


def _settle(way: str, values: dict[str, int], problems: list[str]) -> None:
    """What depends on another value, and the defaults."""
    for name, needs in (("Burst", "Bandwidth"), ("Peakrate", "Bandwidth"), ("PacketBurst", "PacketRate")):
        if values[name] and not values[needs]:
            problems.append(f"{PREFIX}{way}{name} needs {way}{needs}")
            values[name] = 0
    if values["Peakrate"] and values["Peakrate"] <= values["Bandwidth"]:
        problems.append(f"{PREFIX}{way}Peakrate is not above {way}Bandwidth")
        values["Peakrate"] = 0
    if values["Minburst"] and not values["Peakrate"]:
        problems.append(f"{PREFIX}{way}Minburst needs {way}Peakrate")
        values["Minburst"] = 0
    if values["Bandwidth"]:
        values["Burst"] = values["Burst"] or DEFAULT_BURST
    if values["PacketRate"]:
        values["PacketBurst"] = values["PacketBurst"] or DEFAULT_PACKET_BURST
