"""What is wrong is refused with its place; the rest of the file is handled and reported all the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from libs import model
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import Conflict, ValidationError
from libs.resources.patch import PatchType
from libs.store.memory import MemoryStore
from tests.unit.services.calicoctl.ctl import Ctl

HEAD = "apiVersion: projectcalico.org/v3\n"


def pool(name: str, cidr: str, extra: str = "") -> str:
    return f"{HEAD}kind: IPPool\nmetadata:\n  name: {name}\nspec:\n  cidr: {cidr}\n{extra}"


def policy(spec: str, name: str = "web") -> str:
    return f"{HEAD}kind: NetworkPolicy\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n{spec}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("kind: Tier\n  name: x\n", ["document 1, line 2, column 7", "not valid YAML"]),
        (f"{HEAD}kind: Tier\nkind: Node\n", ["line 3, column 1", "field 'kind' is given twice"]),
        (f"{HEAD}kind: Teir\nmetadata:\n  name: x\n", ["line 2", "kind: unknown kind of resource", "'Tier'"]),
        (f"{HEAD}metadata:\n  name: x\n", ["line 1", "kind: must name the kind"]),
        ("kind: Tier\nmetadata:\n  name: x\n", ["line 1", "apiVersion: must be projectcalico.org/v3"]),
        (f"{HEAD}kind: Tier\nspec: {{}}\n", ["metadata.name: must be given"]),
        (f"{HEAD}kind: Tier\nmetadata:\n  name: Upper\n", ["line 4, column 3", "Tier(Upper): metadata.name: must"]),
        (policy("  selecter: all()\n"), ["line 7, column 3", "spec.selecter: unknown field; did you mean 'selector'?"]),
        (policy("  order: first\n"), ["line 7, column 3", "spec.order: expected a number"]),
        (policy("  selector: 5\n"), ["spec.selector: expected text, not a number; put it in quotes"]),
        (policy("  selector: app = 'web'\n"), ["line 7", "spec.selector: "]),
        (policy("  ingress:\n  - action: Allow\n    source:\n      nets: [10.0.0.1/8]\n"), [
            "line 10", "spec.ingress[0].source.nets[0]: "]),
        (policy("  ingress:\n  - action: Allow\n  - action: Permit\n"), [
            "line 9, column 5", "spec.ingress[1].action: ", "Permit"]),
        (policy("  egress:\n  - action: Deny\n    destination:\n      ports: [80]\n"), ["spec.egress[0]"]),
        (policy("  ingress: {}\n"), ["spec.ingress: expected a list, not an object"]),
        (pool("p", "10.0.0.1/16"), ["line 6, column 3", "IPPool(p): spec.cidr: "]),
        (pool("p", "10.0.0.0/16", "  blockSize: 33\n"), ["line 7", "spec.blockSize: "]),
        (pool("p", "10.0.0.0/16", "  vxlanMode: always\n"), ["spec.vxlanMode: ", "always"]),
        (f"{HEAD}kind: IPAMBlock\nmetadata:\n  name: x\n", ["kind: "]),
        (f"{HEAD}kind: BGPPeer\nmetadata:\n  name: x\nspec:\n  peerIP: 10.0.0.1\n  asNumber: 1\n  filters: [none]\n", [
            "line 8", "spec.filters[0]: resource does not exist: BGPFilter(none)"]),
        (f"{HEAD}kind: Tier\nmetadata:\n  name: x\n  resourceVersion: five\n", ["x"]),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_place_field_and_expectation(ctl: Ctl, text: str, parts: list[str]) -> None:
    message = ctl.bad("create", "-f", "-", stdin=text)
    for part in parts:
        assert part in message, message
    assert "Traceback" not in message
    assert sorted(ctl.names("tiers")) == ["default", "kube-admin", "kube-baseline"]
    for kind in ("ippools", "bgppeers"):
        assert ctl.names(kind) == []
    assert ctl.names("networkpolicies", "-A") == []


def test_a_bad_selector_is_told_with_its_position(ctl: Ctl) -> None:
    message = ctl.bad("apply", "-f", "-", stdin=policy("  selector: app == 'web' &&\n"))
    assert "spec.selector" in message
    assert any(character.isdigit() for character in message.split("spec.selector", 1)[1]), message


def test_every_problem_of_a_document_is_told(ctl: Ctl) -> None:
    text = policy("  order: x\n  colour: red\n  selector: [1]\n")
    lines = ctl.bad("apply", "-f", "-", stdin=text).splitlines()
    assert len(lines) == 3
    assert [field in line for field, line in zip(("order", "colour", "selector"), lines, strict=True)] == [True] * 3


def test_the_rest_of_the_file_is_handled_and_counted(ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "mixed.yaml"
    file.write_text(
        "---\n".join(
            [
                pool("good1", "10.1.0.0/16"),
                "kind: [\n",
                pool("bad", "10.300.0.0/16"),
                pool("good2", "10.2.0.0/16"),
                pool("overlap", "10.2.3.0/24"),
            ]
        )
    )
    result = ctl("apply", "-f", str(file))
    assert result.exit_code == 1
    assert result.stdout == "Partial success: applied 2 out of 5 resources:\n"
    errors = result.stderr.splitlines()
    assert errors[0] == "Hit error(s):"
    assert errors[1].startswith(f"{file}: document 2, line 8")
    assert errors[2].startswith(f"{file}: document 3, line 15, column 3: IPPool(bad): spec.cidr: ")
    assert errors[3].startswith(
        f"{file}: document 5, line 29, column 3: IPPool(overlap): spec.cidr: overlaps with IP pool good2, 10.2.0.0/16"
    )
    assert len(errors) == 4
    assert ctl.names("ippools") == ["good1", "good2"]


def test_the_first_ones_are_called_the_first_ones(ctl: Ctl) -> None:
    text = "---\n".join([pool("a", "10.1.0.0/16"), pool("b", "10.2.0.0/16"), pool("c", "10.2.0.0/16")])
    result = ctl("create", "-f", "-", stdin=text)
    assert result.exit_code == 1
    assert result.stdout == "Partial success: created the first 2 out of 3 'IPPool' resources:\n"


def test_when_all_fail_nothing_is_called_a_success(ctl: Ctl) -> None:
    text = "---\n".join([pool("a", "10.1.0.1/16"), pool("b", "x")])
    result = ctl("apply", "-f", "-", stdin=text)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Failed to apply any 'IPPool' resources:\n-: document 1")


@pytest.mark.parametrize("verb", ["apply", "create", "replace", "validate", "delete"])
def test_every_verb_reports_a_broken_file_with_status_one(ctl: Ctl, verb: str) -> None:
    assert "not valid YAML" in ctl.bad(verb, "-f", "-", stdin="kind: {")


def test_overlapping_pools_are_refused_in_both_families(ctl: Ctl) -> None:
    ctl.apply(pool("four", "10.0.0.0/8") + "---\n" + pool("six", "fd00::/32"))
    for name, cidr in (("a", "10.5.0.0/16"), ("b", "fd00:0:1::/48"), ("c", "8.0.0.0/6")):
        assert "spec.cidr: overlaps with IP pool" in ctl.bad("create", "-f", "-", stdin=pool(name, cidr))
    ctl.apply(pool("other", "192.168.0.0/16") + "---\n" + pool("other6", "fd01::/48"))


def owner(kind: str, value: str, name: str = "default") -> str:
    spec = f"spec: {{programClusterRoutes: {value}}}" if value else "spec: {}"
    return f"apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}}}\n{spec}\n"


def test_g22_a_pair_of_route_owners_with_holes_or_overlaps_is_refused(ctl: Ctl) -> None:
    said = ctl.bad("create", "-f", "-", stdin=owner("BGPConfiguration", "Enabled"))
    assert (
        "spec.programClusterRoutes: programClusterRoutes of FelixConfiguration(default) is EnabledIPIPOnly, which is "
        "its default, and of BGPConfiguration(default) Enabled: the latter must be EnabledNoEncapOnly, or not be set"
    ) in said
    ctl.apply(owner("BGPConfiguration", "EnabledNoEncapOnly"))
    said = ctl.bad("apply", "-f", "-", stdin=owner("FelixConfiguration", "Enabled"))
    assert "must be Disabled, or not be set" in said
    # The way from one pair to another, right at each step.
    ctl.apply(owner("BGPConfiguration", ""))
    ctl.apply(owner("FelixConfiguration", "Enabled"))
    ctl.apply(owner("BGPConfiguration", "Disabled"))
    assert "FelixConfiguration(node.a) is Disabled" in ctl.bad(
        "create", "-f", "-", stdin=owner("FelixConfiguration", "Disabled", "node.a")
    )
    assert "must be EnabledNoEncapOnly" in ctl.bad("delete", "felixconfig", "default")
    ctl.apply(owner("FelixConfiguration", "Enabled").replace("spec: {", "spec: {logSeverityScreen: Debug, "))


def test_the_owner_of_routes_is_not_chosen_by_labels_as_bgp_would_not_follow(ctl: Ctl) -> None:
    chosen = owner("FelixConfiguration", "Enabled", "edge").replace("spec: {", "spec: {nodeSelector: has(edge), ")
    said = ctl.bad("create", "-f", "-", stdin=chosen)
    assert "spec.programClusterRoutes: must not be set together with nodeSelector" in said
    ctl.apply(owner("FelixConfiguration", "", "edge").replace("spec: {", "spec: {nodeSelector: has(edge)"))
    assert "together with nodeSelector" in ctl.bad("apply", "-f", "-", stdin=chosen)
    # One that was written past the rules keeps nothing else from being changed.
    spec = model.FelixConfigurationSpec(node_selector="all()", program_cluster_routes="Enabled")
    metadata = model.ObjectMeta(name="raw", uid="1", creation_timestamp="2026-01-01T00:00:00Z")
    written = model.FelixConfiguration(metadata=metadata, spec=spec)
    ctl.run(ctl.client().store.put(*codec.to_storage(written)))
    ctl.apply(owner("BGPConfiguration", "EnabledNoEncapOnly"))
    ctl.apply(chosen.replace("edge", "raw").replace("spec: {", "spec: {logSeverityScreen: Debug, "))


def test_cidr_and_block_size_of_a_pool_stay(ctl: Ctl) -> None:
    ctl.apply(pool("p", "10.0.0.0/16"))
    assert "spec.cidr: cannot change" in ctl.bad("apply", "-f", "-", stdin=pool("p", "10.1.0.0/16"))
    assert "spec.blockSize: cannot change" in ctl.bad(
        "apply", "-f", "-", stdin=pool("p", "10.0.0.0/16", "  blockSize: 28\n")
    )
    ctl.apply(pool("p", "10.0.0.0/16", "  natOutgoing: true\n"))


def test_a_pool_over_blocks_of_another_size_is_refused(ctl: Ctl) -> None:
    store = ctl.client().store
    ctl.run(store.put("/calico/ipam/v2/assignment/ipv4/block/10.0.5.0-28", b"{}"))
    assert "spec.blockSize: must be the size of the pool's existing blocks: 10.0.5.0/28" in ctl.bad(
        "create", "-f", "-", stdin=pool("p", "10.0.0.0/16")
    )
    ctl.apply(pool("p", "10.0.0.0/16", "  blockSize: 28\n"))


def test_two_pools_created_at_once_do_not_both_stay(ctl: Ctl) -> None:
    """Each looks before the other has written; the later one finds the earlier and gives way."""

    async def both() -> list[object]:
        stores = [MemoryStore(ctl.server), MemoryStore(ctl.server)]
        waiting = asyncio.Barrier(2)

        async def before(call: str, _key: str) -> None:
            if call == "txn":
                await waiting.wait()

        clients = []
        for store in stores:
            store.before = before
            clients.append(ResourceClient(store))
        pools = [
            model.IPPool(metadata=model.ObjectMeta(name=name), spec=model.IPPoolSpec(cidr=cidr))
            for name, cidr in (("a", "10.0.0.0/16"), ("b", "10.0.1.0/24"))
        ]
        return await asyncio.gather(
            *(client.create(item) for client, item in zip(clients, pools, strict=True)), return_exceptions=True
        )

    outcomes = ctl.run(both())
    assert sum(isinstance(outcome, ValidationError) for outcome in outcomes) == 1
    assert len(ctl.names("ippools")) == 1


def test_conflicting_updates_are_retried_without_and_refused_with_a_version(ctl: Ctl) -> None:
    ctl.apply(pool("p", "10.0.0.0/16"))

    async def race() -> None:
        slow, fast = MemoryStore(ctl.server), ResourceClient(MemoryStore(ctl.server))
        interfered = 0

        async def before(call: str, _key: str) -> None:
            nonlocal interfered
            if call == "update" and interfered < 2:
                interfered += 1
                await fast.patch("IPPool", "p", {"metadata": {"labels": {"n": str(interfered)}}}, PatchType.MERGE)

        client = ResourceClient(slow)
        wanted = codec.with_metadata(await client.get("IPPool", "p"), labels={"mine": "1"})
        slow.before = before
        with pytest.raises(Conflict):
            await client.update(wanted)
        done = await client.apply(codec.with_metadata(wanted, resource_version=""))
        assert done.resource.metadata.labels == {"mine": "1", "n": "2"}

    ctl.run(race())


def test_usage_errors_have_status_two(ctl: Ctl) -> None:
    for arguments in (
        ["apply"],
        ["get"],
        ["get", "tier", "-f", "x"],
        ["nonsense"],
        ["apply", "-f", "-", "--timeout", "x"],
    ):
        result = ctl(*arguments)
        assert result.exit_code == 2, arguments


def test_an_unreachable_datastore_is_told_without_credentials(ctl: Ctl) -> None:
    ctl.variables = {"ETCD_PASSWORD": "very-secret-word", "ETCD_USERNAME": "me", "ETCD_ENDPOINTS": "ftp://x"}
    message = ctl.bad("get", "tiers")
    assert message.startswith("Failed to create Calico API client: ETCD_ENDPOINTS")
    assert "very-secret-word" not in message


def test_another_datastore_is_refused(ctl: Ctl) -> None:
    ctl.variables = {"DATASTORE_TYPE": "consul"}
    assert "expected etcdv3 or kubernetes" in ctl.bad("get", "tiers")


def test_wait_without_a_bus_writes_nothing(ctl: Ctl) -> None:
    """The subscription comes before the write, so a bus that is away is noticed before anything is changed."""
    message = ctl.bad("apply", "--wait", "-f", "-", stdin=pool("p", "10.0.0.0/16"))
    assert message.startswith("Failed to execute command: bus: ")
    assert ctl.names("ippools") == []


def test_json_errors_are_placed(ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"kind": "Tier"})[:-1] + ",}")
    assert f"{file}: document 1, line 1, column " in ctl.bad("apply", "-f", str(file))
