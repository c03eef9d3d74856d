"""Which release of the project this is."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "calico-py"


def version() -> str:
    try:
        return f"v{metadata.version(DISTRIBUTION)}"
    except metadata.PackageNotFoundError:  # run from a tree that was never installed
        return "unknown"
