"""Which of the forms on offer an `Accept` header asks for (RFC 9110 section 12.5.1; parameters as Kubernetes uses them:
`application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_SHAPE = ("as", "g", "v")
"""Parameters that ask for another shape of the content, not just for another spelling."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """As in a header. params: without q; keys in lower case."""

    type: str
    subtype: str
    params: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ";".join([f"{self.type}/{self.subtype}", *(f"{key}={value}" for key, value in self.params.items())])

    def shape(self) -> dict[str, str]:
        return {key: self.params[key] for key in _SHAPE if key in self.params}

    def takes(self, offer: MediaType) -> bool:
        """Whether this clause of a header is content with the offer."""
        if self.type not in ("*", offer.type) or self.subtype not in ("*", offer.subtype):
            return False
        return self.shape() == offer.shape()


JSON = MediaType("application", "json")


def parse(header: str) -> list[MediaType]:
    """The wanted types, most wanted first; equally wanted ones in the header's order. What cannot be read is skipped,
    what has quality 0 is left out.
    """
    found: list[tuple[float, MediaType]] = []
    for clause in header.split(","):
        name, *pieces = (piece.strip() for piece in clause.split(";"))
        kind, slash, subtype = name.partition("/")
        if not slash or not kind or not subtype:
            continue
        params = {}
        for piece in pieces:
            key, _, value = piece.partition("=")
            params[key.strip().lower()] = value.strip().strip('"')
        quality = _quality(params.pop("q", "1"))
        if quality > 0:
            found.append((quality, MediaType(kind.lower(), subtype.lower(), params)))
    found.sort(key=lambda entry: -entry[0])
    return [media for _, media in found]


def choose(header: str, offers: Sequence[MediaType]) -> MediaType | None:
    """The offer that fits best, the first one when the header is empty; None when none fits."""
    if not header.strip():
        return offers[0]
    for wanted in parse(header):
        for offer in offers:
            if wanted.takes(offer):
                return offer
    return None


def takes_gzip(header: str) -> bool:
    """Whether an `Accept-Encoding` header takes gzip."""
    for clause in header.split(","):
        name, *pieces = (piece.strip().lower() for piece in clause.split(";"))
        if name in ("gzip", "*"):
            return all(_quality(piece[2:]) > 0 for piece in pieces if piece.startswith("q="))
    return False


def _quality(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
