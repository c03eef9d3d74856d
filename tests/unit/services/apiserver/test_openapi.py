"""The OpenAPI documents are valid by somebody else's rules, complete, and as Kubernetes' clients look at them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.specs.openapi import definitions

from services.apiserver.core import openapi, request, swagger
from services.apiserver.core.request import SERVED, WITH_STATUS
from services.apiserver.core.status import JsonObject

METHODS = ("get", "put", "post", "delete", "patch")


@pytest.fixture(scope="module")
def v3() -> JsonObject:
    return openapi.document("1.2.3")


@pytest.fixture(scope="module")
def v2(v3: JsonObject) -> JsonObject:
    return swagger.from_v3(v3)


def operations(document: JsonObject) -> Iterator[tuple[str, str, JsonObject]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def walk(value: Any) -> Iterator[JsonObject]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from walk(member)


def test_both_documents_are_valid(v3: JsonObject, v2: JsonObject) -> None:
    definitions.OPENAPI_30_VALIDATOR.validate(v3)
    # Kubernetes' v2 puts descriptions, defaults and extensions beside references, which the rules of v2 do not look at.
    definitions.SWAGGER_20_VALIDATOR.validate(v2)


def test_the_validators_see_faults(v3: JsonObject, v2: JsonObject) -> None:
    """Or the test before would say nothing."""
    assert not definitions.OPENAPI_30_VALIDATOR.is_valid(v3 | {"openapi": 3})
    assert not definitions.OPENAPI_30_VALIDATOR.is_valid(v3 | {"paths": {"/x": {"get": {}}}})
    assert not definitions.SWAGGER_20_VALIDATOR.is_valid(v2 | {"paths": {"/x": {"get": {"responses": {}}}}})


def test_schemathesis_reads_every_operation(v3: JsonObject, v2: JsonObject) -> None:
    for document in (v3, v2):
        loaded = list(schemathesis.openapi.from_dict(document).get_all_operations())
        assert len(loaded) == sum(1 for _ in operations(document))
        assert all(result.ok() for result in loaded)


def test_every_kind_has_all_its_operations(v3: JsonObject) -> None:
    for kind in SERVED.values():
        scope = "/apis/projectcalico.org/v3" + ("/namespaces/{namespace}" if kind.namespaced else "")
        paths = v3["paths"]
        assert {"get", "post", "delete"} <= paths[f"{scope}/{kind.plural}"].keys()
        assert {"get", "put", "patch", "delete"} <= paths[f"{scope}/{kind.plural}/{{name}}"].keys()
        status = paths.get(f"{scope}/{kind.plural}/{{name}}/status", {})
        assert ({"get", "put", "patch"} <= status.keys()) == (kind.kind in WITH_STATUS)
        assert "delete" not in status
        everywhere = paths[f"/apis/projectcalico.org/v3/{kind.plural}"]
        assert set(everywhere) & set(METHODS) == ({"get"} if kind.namespaced else {"get", "post", "delete"})


def test_paths_are_what_the_server_understands(v3: JsonObject) -> None:
    """Each operation's verb is the one that its request is authorised by."""
    verbs = {"post": "create", "put": "update"}
    for path, method, operation in operations(v3):
        if (action := operation.get("x-kubernetes-action")) is None:
            assert path == "/apis/projectcalico.org/v3/"
            continue
        filled = path.replace("{namespace}", "ns").replace("{name}", "n")
        info = request.parse(method.upper(), filled, {})
        assert info.target is not None
        assert info.verb == verbs.get(action, action)
        assert operation["x-kubernetes-group-version-kind"]["kind"] == info.target.kind.kind
        assert bool(info.target.namespace) == ("{namespace}" in path)


def test_operations_have_names_of_their_own_in_kubernetes_form(v3: JsonObject) -> None:
    names = Counter(operation["operationId"] for _, _, operation in operations(v3))
    assert not [name for name, count in names.items() if count > 1]
    assert {
        "listProjectcalicoOrgV3NetworkPolicyForAllNamespaces", "listProjectcalicoOrgV3NamespacedNetworkPolicy",
        "createProjectcalicoOrgV3GlobalNetworkPolicy", "deleteProjectcalicoOrgV3CollectionTier",
        "replaceProjectcalicoOrgV3IPPoolStatus", "patchProjectcalicoOrgV3NamespacedNetworkSet",
        "getProjectcalicoOrgV3APIResources",
    } <= names.keys()  # fmt: skip


def test_path_parameters_are_declared(v3: JsonObject, v2: JsonObject) -> None:
    for document in (v3, v2):
        for path, item in document["paths"].items():
            declared = {one["name"] for one in item.get("parameters", ()) if one["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))
            assert all(one["required"] for one in item.get("parameters", ()) if one["in"] == "path")


def test_writes_take_what_kubectl_looks_for(v3: JsonObject) -> None:
    """kubectl validates on the server where PATCH of the kind takes fieldValidation."""
    for path, method, operation in operations(v3):
        names = [one["name"] for one in operation.get("parameters", ())]
        assert len(names) == len(set(names)), (path, method)
        if method in ("post", "put", "patch"):
            assert {"dryRun", "fieldManager", "fieldValidation"} <= set(names)
        assert ("force" in names) == (method == "patch")
    patch = v3["paths"]["/apis/projectcalico.org/v3/tiers/{name}"]["patch"]["requestBody"]["content"]
    assert set(patch) == {
        "application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"
    }  # fmt: skip


def test_errors_are_status_objects(v3: JsonObject, v2: JsonObject) -> None:
    for _, _, operation in operations(v3):
        codes = operation["responses"].keys()
        assert {"200", "201"} & codes
        assert {"401", "403", "429"} <= codes
    for response in v3["components"]["responses"].values():
        assert response["content"]["application/json"]["schema"]["$ref"].endswith(".meta.v1.Status")
    for _, _, operation in operations(v2):
        assert operation["responses"]["401"]["schema"]["$ref"].endswith(".meta.v1.Status")


def test_every_reference_leads_somewhere(v3: JsonObject, v2: JsonObject) -> None:
    for document in (v3, v2):
        for value in walk(document):
            if isinstance(place := value.get("$ref"), str):
                found = document
                for step in place.removeprefix("#/").split("/"):
                    found = found[step]


def test_v2_has_nothing_of_v3(v2: JsonObject) -> None:
    for value in walk(v2):
        # Fields may have any name; these words are schemas' only where they hold lists.
        assert not any(isinstance(value.get(word), list) for word in ("anyOf", "oneOf", "allOf"))
    assert "#/components" not in str(v2)
    protocol = v2["definitions"]["com.github.projectcalico.api.pkg.lib.numorstring.Protocol"]
    assert (protocol["type"], protocol["format"]) == ("string", "int-or-string")
    body = v2["paths"]["/apis/projectcalico.org/v3/tiers"]["post"]
    assert [one["name"] for one in body["parameters"] if one["in"] == "body"] == ["body"]
    assert body["consumes"] == ["application/json", "application/yaml"]
    assert "application/json" in body["produces"]


def test_the_index_leads_to_the_document() -> None:
    assert openapi.index("ABC") == {
        "paths": {"apis/projectcalico.org/v3": {"serverRelativeURL": "/openapi/v3/apis/projectcalico.org/v3?hash=ABC"}}
    }
