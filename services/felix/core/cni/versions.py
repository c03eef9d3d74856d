"""Versions of the CNI specification that are spoken here."""

from __future__ import annotations

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
UNSAID = "0.2.0"  # of a configuration without `cniVersion`
FALLBACK = "1.0.0"  # of an answer to a request whose version is not known
SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}


def at_least(version: str, other: str) -> bool:
    """Both are of VERSIONS."""
    return VERSIONS.index(version) >= VERSIONS.index(other)
