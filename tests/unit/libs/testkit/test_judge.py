"""What the judge says beside what the recorded comparison covers."""

from __future__ import annotations

import json
from typing import Any

from libs import model
from libs.testkit.judge import Judge

KEY = model.resource_key("BGPConfiguration", "default")


def flush(judge: Judge) -> list[dict[str, Any]]:
    return [one["msg"] for one in judge.answer({"op": "flush"}) if one.get("kind") == "global_bgp_config_update"]


def test_bgp_configuration_is_told_when_it_comes_changes_and_goes() -> None:
    judge = Judge()
    list(judge.answer({"op": "reset", "hostname": "n1"}))
    list(judge.answer({"op": "insync"}))
    assert flush(judge) == []
    document = {
        "kind": "BGPConfiguration",
        "metadata": {"name": "default"},
        "spec": {"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}], "localWorkloadPeeringIPV4": "169.254.1.1"},
    }
    list(judge.answer({"op": "put", "key": KEY, "value": json.dumps(document)}))
    assert flush(judge) == [{"service_cluster_cidrs": ["10.96.0.0/12"], "local_workload_peering_ip_v4": "169.254.1.1"}]
    assert flush(judge) == []
    list(judge.answer({"op": "del", "key": KEY}))
    assert flush(judge) == [{}]
