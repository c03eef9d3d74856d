"""What the fields of the v3 API mean, and what may stand in them: the texts of `kubectl explain` and of the OpenAPI
documents. The rules themselves are in `libs.model.validation`; a test holds the two against each other.
"""

from __future__ import annotations

from libs.model.base import V3Struct
from libs.model.descriptions.addresses import ADDRESSES
from libs.model.descriptions.bgp import BGP
from libs.model.descriptions.cluster import CLUSTER
from libs.model.descriptions.felix import FELIX
from libs.model.descriptions.notes import About, Abouts, Note
from libs.model.descriptions.policy import POLICY

ABOUTS: Abouts = POLICY | ADDRESSES | BGP | CLUSTER | FELIX

_NOTHING = Note("")


def about(struct: type[V3Struct]) -> str:
    """What the struct is, "" when nobody wrote it down."""
    found = ABOUTS.get(struct)
    return "" if found is None else found.text


def note(struct: type[V3Struct], field: str) -> Note:
    """Of a field by its Python name; an empty one when nobody wrote it down."""
    found = ABOUTS.get(struct)
    return _NOTHING if found is None else found.fields.get(field, _NOTHING)


__all__ = ["ABOUTS", "About", "Note", "about", "note"]
