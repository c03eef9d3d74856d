"""Versions of the CNI specification that are spoken here."""

from __future__ import annotations

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
FALLBACK = "1.0.0"  # of an answer to a request whose version is not known
