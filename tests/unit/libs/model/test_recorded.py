"""Verdicts recorded from Calico's own validator: an object is acceptable here exactly where it is there."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from pathlib import Path

import pytest

from libs.model.validation import UnknownType, validate_typed

RECORDED = Path(__file__).resolve().parents[4].parent / "shared" / "golden" / "validator.jsonl.xz"


@pytest.mark.skipif(not RECORDED.exists(), reason="recorded samples are not here")
def test_every_recorded_verdict_is_ours_too() -> None:
    verdicts: Counter[bool] = Counter()
    with lzma.open(RECORDED, "rt") as lines:
        for line in lines:
            case = json.loads(line)
            valid, error = validate_typed(case["type"], case["input"])
            assert valid is case["valid"], (case["name"], case["type"], case.get("error"), error)
            assert bool(error) is not valid
            verdicts[valid] += 1
    assert min(verdicts[True], verdicts[False]) > 100


def test_types_that_are_not_checked_alone_are_said_to_be_unknown() -> None:
    with pytest.raises(UnknownType):
        validate_typed("v3.Nothing", {})
