"""A real kubectl looks around: it finds every kind, explains it, prints it and validates by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from libs import model
from libs.model.base import ObjectMeta, Resource
from libs.testkit.kube.kubectl import Kubectl
from libs.testkit.kube.programs import KubernetesMissing
from services.apiserver.core.request import SERVED
from tests.unit.services.apiserver.described import Described, described

CREATED = "2020-01-01T00:00:00Z"
GNP = model.GlobalNetworkPolicy(
    metadata=ObjectMeta(name="deny-all", creation_timestamp=CREATED, uid="u", resource_version="5"),
    spec=model.GlobalNetworkPolicySpec(tier="security", order=10.0, selector="all()", types=["Ingress"]),
)
NP = model.NetworkPolicy(
    metadata=ObjectMeta(name="web", namespace="shop", creation_timestamp=CREATED, resource_version="5"),
    spec=model.NetworkPolicySpec(tier="default", types=["Ingress"]),
)
POOL = model.IPPool(
    metadata=ObjectMeta(name="pods-v6", creation_timestamp=CREATED, resource_version="5"),
    spec=model.IPPoolSpec(cidr="fd00:10::/48", vxlan_mode="Always", nat_outgoing=True),
)
THERE: dict[str, list[Resource]] = {"globalnetworkpolicies": [GNP], "networkpolicies": [NP], "ippools": [POOL]}

Run = Callable[..., Coroutine[Any, Any, str]]


@pytest.fixture
async def server() -> AsyncIterator[Described]:
    async with described(THERE) as running:
        yield running


@pytest.fixture
def kubectl(server: Described, tmp_path: Path) -> Run:
    """Standard output of a run, or with `fails` standard error of one that must fail."""
    config = tmp_path / "config"
    config.write_text(
        json.dumps(
            {
                "clusters": [{"name": "test", "cluster": {"server": server.url}}],
                "contexts": [{"name": "test", "context": {"cluster": "test"}}],
                "current-context": "test",
            }
        )
    )
    try:
        program = Kubectl(config, tmp_path)
    except KubernetesMissing as error:
        pytest.skip(str(error))

    async def run(*args: str, stdin: str | None = None, fails: bool = False) -> str:
        # The server is in this process: it must go on meanwhile.
        return await asyncio.to_thread(program.fails if fails else program, *args, stdin=stdin)

    return run


async def test_api_resources_lists_every_kind_with_its_short_names(kubectl: Run) -> None:
    lines = (await kubectl("api-resources", "--no-headers", "-o", "wide")).splitlines()
    rows = {line.split()[0]: line.split() for line in lines}
    asked = {name: rows.pop(name)[1:] for name in list(rows) if name.startswith("selfsubject")}
    assert asked == {
        "selfsubjectreviews": ["authentication.k8s.io/v1", "false", "SelfSubjectReview", "create"],
        "selfsubjectaccessreviews": ["authorization.k8s.io/v1", "false", "SelfSubjectAccessReview", "create"],
        "selfsubjectrulesreviews": ["authorization.k8s.io/v1", "false", "SelfSubjectRulesReview", "create"],
    }
    assert rows.keys() == SERVED.keys()
    for plural, kind in SERVED.items():
        names, row = ",".join(kind.short_names), rows[plural]
        verbs = "create,delete,deletecollection,get,list,patch,update,watch"
        rest = ["projectcalico.org/v3", str(kind.namespaced).lower(), kind.kind, verbs]
        assert row[1:] == ([names, *rest] if names else rest)


async def test_discovery_takes_two_requests(kubectl: Run, server: Described) -> None:
    await kubectl("api-resources")
    first = [path for _, path, _ in server.requests if path.startswith("/api")]
    assert len(first) == 2, "/api and /apis: the aggregated form says it all"


@pytest.mark.parametrize("name", ["gnp", "cnp", "pool", "hep", "sgnp", "kcconfig", "affinity", "netsets", "tier"])
async def test_short_names_find_their_kind(kubectl: Run, name: str) -> None:
    kind = model.lookup(name)
    assert kind is not None
    assert f"KIND:       {kind.kind}\n" in await kubectl("explain", name)


async def test_explain_describes_every_field_of_a_policy(kubectl: Run) -> None:
    text = await kubectl("explain", "gnp.spec")
    for field in ("applyOnForward", "doNotTrack", "namespaceSelector", "order", "preDNAT", "selector", "tier", "types"):
        assert f"\n  {field}\t<" in text
    assert "<no description>" not in text
    assert "Applies the ingress rules of host endpoints before any DNAT" in " ".join(text.split())
    assert "action\t<string> -required-" in await kubectl("explain", "gnp.spec.ingress")


async def test_explain_shows_types_choices_and_what_is_required(kubectl: Run) -> None:
    assert "FIELD: cidr <string>" in await kubectl("explain", "ippool.spec.cidr")
    pool = await kubectl("explain", "ippool.spec")
    assert "cidr\t<string> -required-" in pool
    assert "enum: Never, Always, CrossSubnet" in pool
    rule = await kubectl("explain", "networkpolicy.spec.ingress")
    assert "protocol\t<Protocol>" in rule
    assert "enum: Allow, Deny, Log, Pass" in rule
    assert "ports\t<[]Port>" in await kubectl("explain", "networkpolicy.spec.ingress.source")


@pytest.mark.parametrize("plural", sorted(SERVED))
async def test_explain_goes_through_every_kind(kubectl: Run, plural: str) -> None:
    text = await kubectl("explain", plural, "--recursive")
    kind = SERVED[plural]
    assert f"KIND:       {kind.kind}\n" in text
    assert "managedFields\t<[]ManagedFieldsEntry>" in text
    assert "<no description>" not in text


async def test_explain_says_which_field_does_not_exist(kubectl: Run) -> None:
    assert 'field "selcetor" does not exist' in await kubectl("explain", "gnp.spec.selcetor", fails=True)


async def test_get_prints_the_columns(kubectl: Run) -> None:
    assert [line.split() for line in (await kubectl("get", "pool")).splitlines()] == [
        ["NAME", "CIDR", "VXLAN", "IPIP", "NAT", "ALLOCATABLE", "AGE"],
        ["pods-v6", "fd00:10::/48", "Always", "Never", "true", "6y153d"],
    ]
    lines = (await kubectl("get", "gnp", "-o", "wide")).splitlines()
    assert lines[0].split() == ["NAME", "TIER", "ORDER", "AGE", "SELECTOR", "TYPES"]
    name, tier, order, age, selector, types = lines[1].split()
    assert (name, tier, order, selector, types) == ("deny-all", "security", "10", "all()", "Ingress")
    assert age == "6y153d"
    everywhere = (await kubectl("get", "cnp", "-A")).splitlines()
    assert everywhere[0].split() == ["NAMESPACE", "NAME", "TIER", "ORDER", "AGE"]
    assert everywhere[1].split()[:3] == ["shop", "web", "default"]


async def test_get_prints_objects(kubectl: Run) -> None:
    found = json.loads(await kubectl("get", "gnp", "deny-all", "-o", "json"))
    assert (found["kind"], found["spec"]["order"]) == ("GlobalNetworkPolicy", 10)
    assert await kubectl("get", "pool", "-o", "name") == "ippool.projectcalico.org/pods-v6\n"
    assert await kubectl("get", "pool", "-o", "jsonpath={.items[*].spec.cidr}") == "fd00:10::/48"
    assert "not found" in await kubectl("get", "pool", "nothing", fails=True)


MANIFEST = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata:
  name: deny-all
spec:
  selector: all()
"""


async def test_create_finds_that_the_server_validates(kubectl: Run, server: Described) -> None:
    """From the document alone: PATCH of the kind takes fieldValidation."""
    await kubectl("create", "--validate=strict", "-f", "-", stdin=MANIFEST)
    method, path, _ = server.requests[-1]
    assert method == "POST"
    assert "fieldValidation=Strict" in path


async def test_apply_on_the_client_merges_since_no_strategy_is_offered(kubectl: Run, server: Described) -> None:
    assert "configured" in await kubectl("apply", "--validate=strict", "-f", "-", stdin=MANIFEST)
    method, path, _ = server.requests[-1]
    assert (method, "fieldValidation=Strict" in path) == ("PATCH", True)
    assert "last-applied-configuration" in str(json.loads(server.bodies[-1]))


async def test_apply_on_the_server_needs_no_schema(kubectl: Run, server: Described) -> None:
    assert "serverside-applied" in await kubectl("apply", "--server-side", "-f", "-", stdin=MANIFEST)
    assert "fieldManager=kubectl" in server.requests[-1][1]


async def test_version_is_read(kubectl: Run) -> None:
    found = json.loads(await kubectl("version", "-o", "json"))
    assert found["serverVersion"]["gitVersion"].endswith("+calico-py.1.2.3")
