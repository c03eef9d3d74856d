"""What a real calicoctl and a real calico-ipam left in an etcd, as recorded."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
SAMPLE = SHARED / "facts" / "etcd-sample.txt"
SCENARIOS = SHARED / "golden" / "calc-scenarios.jsonl.xz"


def recorded_text() -> dict[str, str]:
    """Key -> value, byte for byte. Skips the test where the recording is not."""
    if not SAMPLE.exists():
        pytest.skip("recorded samples are not here")
    lines = SAMPLE.read_text().splitlines()
    return {key: value for key, value in pairwise(lines) if key.startswith("/calico/") and value.startswith("{")}


def recorded() -> dict[str, dict[str, Any]]:
    return {key: json.loads(value) for key, value in recorded_text().items()}
