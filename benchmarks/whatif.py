"""How long what-if takes: 1,000 endpoints on 50 nodes, 100 policies; one of them changes, one for all comes."""

from __future__ import annotations

import time
from random import Random

from benchmarks.common import Row, machine, parser, report
from libs import model
from libs.model import keys
from libs.policy.calculator import Calculator
from libs.policy.whatif import Peer, State, compare


def endpoint(number: int, apps: int) -> model.Resource:
    node = f"n{number % 50}"
    return model.WorkloadEndpoint(
        metadata=model.ObjectMeta(
            name=f"{node}-k8s-p{number}-eth0",
            namespace=f"ns{number % 10}",
            labels={"app": f"a{number % apps}", "tier": "fe" if number % 3 else "be"},
        ),
        spec=model.WorkloadEndpointSpec(
            orchestrator="k8s",
            node=node,
            pod=f"p{number}",
            endpoint="eth0",
            ip_networks=[f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32", f"fd00::{number:x}/128"],
            profiles=["open"],
            interface_name=f"cali{number}",
        ),
    )


def policy(number: int, apps: int, random: Random, action: str = "Allow") -> model.Resource:
    port = model.Port(8000 + number)
    return model.GlobalNetworkPolicy(
        metadata=model.ObjectMeta(name=f"p{number}"),
        spec=model.GlobalNetworkPolicySpec(
            tier="default",
            order=float(number),
            selector=f"app == 'a{number % apps}'",
            types=["Ingress"],
            ingress=[
                model.Rule(
                    action=action,
                    protocol=model.Protocol("TCP"),
                    source=model.EntityRule(selector=f"app == 'a{random.randrange(apps)}'"),
                    destination=model.EntityRule(ports=[port]),
                ),
                model.Rule(action="Allow", source=model.EntityRule(selector="tier == 'be'")),
            ],
        ),
    )


def calculated(resources: list[model.Resource]) -> Calculator:
    calculator = Calculator()
    for one in resources:
        calculator.update(keys.resource_key(one.kind, one.metadata.name, one.metadata.namespace), one)
    calculator.flush()
    return calculator


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--endpoints", type=int, default=1000)
    options.add_argument("--policies", type=int, default=100)
    options.add_argument("--apps", type=int, default=100)
    given = options.parse_args()
    if given.quick:
        given.endpoints, given.policies, given.apps = 100, 20, 20
    described, rows = machine(), list[Row]()
    random = Random(1)
    endpoints = [endpoint(number, given.apps) for number in range(given.endpoints)]
    open_profile = model.Profile(
        metadata=model.ObjectMeta(name="open"),
        spec=model.ProfileSpec(ingress=[model.Rule(action="Allow")], egress=[model.Rule(action="Allow")]),
    )
    policies = [policy(number, given.apps, random) for number in range(given.policies)]
    base = [*endpoints, open_profile, *policies]
    started = time.perf_counter()
    before = calculated(base)
    what = f"calculation of {given.endpoints} endpoints, {given.policies} policies"
    rows.append({"what": what, "wall_s": round(time.perf_counter() - started, 2)})
    one = [*endpoints, open_profile, policy(0, given.apps, random, "Deny"), *policies[1:]]
    everybody = model.GlobalNetworkPolicy(
        metadata=model.ObjectMeta(name="all"),
        spec=model.GlobalNetworkPolicySpec(
            tier="default", order=-1.0, selector="all()", types=["Ingress", "Egress"],
            ingress=[model.Rule(action="Deny", source=model.EntityRule(selector="app == 'a1'")),
                     model.Rule(action="Pass")],
            egress=[model.Rule(action="Allow")],
        ),
    )  # fmt: skip
    peers = [Peer(str(key), key, node, one.nets4, one.nets6) for node, key, one in before.workloads()]
    for name, changed in (("one policy of 100 changes", one), ("one for all endpoints comes", [*base, everybody])):
        after = calculated(changed)
        started, cpu = time.perf_counter(), time.process_time()
        found = compare(State(before), State(after), peers)
        took = time.perf_counter() - started
        used = time.process_time() - cpu
        services = sum(map(len, found.asked.values()))
        rows.append(
            {
                "what": name, "wall_s": round(took, 2), "cpu_s": round(used, 2), "pairs": found.compared,
                "services": services // 2, "judged": found.judged, "change": found.pairs, "groups": len(found.changes),
            }
        )  # fmt: skip
    report("whatif", rows, given.json, described)


if __name__ == "__main__":
    main()
