"""Does this node encrypt traffic between hosts? What FelixConfiguration says, layer over layer (facts/felix.md 1.2):
the resource `default`, the oldest whose selector matches the node, `node.<name>`; the caller puts the environment over
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libs.model import FelixConfiguration
from libs.model.selector import SelectorError, parse


def host_encryption(configurations: Iterable[FelixConfiguration], node: str, labels: Mapping[str, str]) -> bool:
    named = {one.metadata.name: one for one in configurations}
    default, own = named.pop("default", None), named.pop(f"node.{node}", None)
    selected = [one for one in named.values() if _selects(one, labels)]
    oldest = min(selected, key=lambda one: (one.metadata.creation_timestamp, one.metadata.name), default=None)
    said = [one.spec.wireguard_host_encryption_enabled for one in (default, oldest, own) if one is not None]
    return next((bool(value) for value in reversed(said) if value is not None), False)


def _selects(one: FelixConfiguration, labels: Mapping[str, str]) -> bool:
    try:
        return bool(one.spec.node_selector) and parse(one.spec.node_selector).matches(labels)
    except SelectorError:
        return False
