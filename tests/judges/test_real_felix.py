"""A running Felix of a real Calico decides about every packet as the plain reference says, which is what ours is held
against (docs/design/policy-proof.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libs.testkit.calico.felix import FelixMissing
from libs.testkit.netns import can_make_namespaces
from tests.judges.felix_judge import FelixJudge, honest, known, running_felix
from tests.judges.path import allows
from tests.judges.reference import Reference
from tests.judges.trial import SAYINGS, draw_case

pytestmark = pytest.mark.kernel

DEEP = settings().max_examples > 100  # the profile for long runs
SHOTS = 250


@pytest.fixture(scope="module")
def felix() -> Iterator[FelixJudge]:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    try:
        with running_felix() as made:
            yield made
    except FelixMissing as error:
        pytest.skip(str(error))


@settings(max_examples=1000 if DEEP else 25, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.integers(0, 2**32 - 1))
def test_calicos_own_felix_agrees_on_any_cluster(felix: FelixJudge, seed: int) -> None:
    cluster, drawn = draw_case(seed, SHOTS)
    shots = [shot for shot in drawn if honest(shot)]
    resources = known(cluster.resources, Random(seed))
    felix.hold(resources)
    reference = Reference(resources)
    quarrels = [
        f"seed {seed}: {shot}: reference {SAYINGS[should]}, Felix {SAYINGS[got]}"
        for shot, got in zip(shots, felix.judge(shots), strict=True)
        if got is not (should := allows(reference, shot))
    ]
    assert quarrels == []
