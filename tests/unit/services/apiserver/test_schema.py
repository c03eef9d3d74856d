"""The schemas say what the rules say, and every field has its text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from msgspec import inspect

from libs.model import codec, defaults, validation
from libs.model.descriptions import ABOUTS
from libs.model.kinds import KINDS
from libs.model.pools import IPPool
from libs.model.problems import At
from libs.model.validation import checks
from libs.model.validation.registry import check_resource
from services.apiserver.core import schema
from services.apiserver.core.request import SERVED
from services.apiserver.core.status import JsonObject
from tests.unit.services.apiserver import schemas
from tests.unit.services.apiserver.schemas import Path

NO_CHOICE = "NoSuchChoice"
NAMES = sorted(kind.kind for kind in SERVED.values())
# Limits that depend on other fields, or on whether it is a number at all; the schema has the widest.
DEPENDS = {
    "spec.blockSize",
    *(f"spec.{way}[0].ports[0].{name}" for way in ("ingress", "egress") for name in ("port", "endPort")),
}


UNSET = {("spec.listenPort", 0)}
"""Numbers that stand for nothing in Go's structs, so that the rules take them; nobody should write them."""


def whole_of(name: str) -> Any:
    """A resource with every field of the kind."""
    found = schemas.whole(inspect.type_info(KINDS[name].struct))
    if isinstance(found, IPPool):
        found.spec.cidr = "10.0.0.0/8"  # blocks are looked at only within a good network
    return found


def document(name: str) -> JsonObject:
    return codec.to_dict(whole_of(name))


def problems(value: JsonObject) -> set[tuple[str, str, str]]:
    try:
        found = validation.validate(validation.decode_user(value))
    except validation.ValidationError as error:
        found = error.problems
    return {(one.path, one.message, repr(one.value)) for one in found}


def wrong_values(of: JsonObject, value: Any) -> Iterator[Any]:
    """Values that the schema of a place refuses, each by one of its words."""
    if "enum" in of or "pattern" in of:
        yield 7 if isinstance(of.get("enum", [""])[0], int) else NO_CHOICE
    if "minimum" in of:
        yield of["minimum"] - 1
    if "maximum" in of:
        yield of["maximum"] + 1
    if "maxLength" in of:
        yield "x" * (of["maxLength"] + 1)
    if "maxItems" in of:
        yield value * (of["maxItems"] + 1)
    if of.get("uniqueItems"):
        yield value * 2
    if of.get("minItems"):
        yield []


@pytest.mark.parametrize("name", NAMES)
def test_what_a_schema_refuses_the_rules_refuse_at_the_same_place(name: str) -> None:
    whole = document(name)
    known = problems(whole)
    validator = jsonschema_rs.validator_for(schemas.standalone(KINDS[name]))
    tried = 0

    def check(path: Path, value: Any) -> None:
        changed = schemas.changed(whole, path, value)
        place = schemas.written(path)
        if any(unset == (place, value) for unset in UNSET):
            return
        assert not validator.is_valid(changed), f"{place}: the schema takes {value!r}"
        new = problems(changed) - known
        place = schemas.written(path[:-1] if value is ... else path)
        assert any(schemas.related(one, place) for one, _, _ in new), f"{place}: the rules take {value!r}"

    for path, of in schemas.places(KINDS[name]):
        for value in wrong_values(of, schemas.get(whole, path)):
            check(path, value)
            tried += 1
        for required in of.get("required", ()):
            check((*path, required), ...)
            tried += 1
    assert tried > 0 or name in ("ClusterInformation", "GlobalNetworkSet", "NetworkSet")


@pytest.mark.parametrize("name", NAMES)
def test_limits_that_the_rules_look_at_are_in_the_schema(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks are watched while they look at an object that has every field."""
    seen: list[tuple[str, str, tuple[Any, ...], bool]] = []

    def watch(function: str) -> None:
        def called(at: At, *args: Any, **options: Any) -> None:
            seen.append((function, at.path, args[1:], options.get("any_case", False)))

        monkeypatch.setattr(checks, function, called)

    for function in ("one_of", "optional_one_of", "within", "at_most", "unique", "selector"):
        watch(function)
    check_resource(At(), whole_of(name))
    places = {schemas.written(path): of for path, of in schemas.places(KINDS[name])}
    for function, path, args, any_case in seen:
        if path not in places:
            assert path.startswith("metadata") or path.endswith("[key]"), path
            continue
        of = places[path]
        match function:
            case "one_of" | "optional_one_of":
                choices = [choice for choice in args[0] if choice]
                if any_case:
                    take = jsonschema_rs.validator_for(of).is_valid
                    assert all(take(word) for choice in choices for word in (choice, choice.upper(), choice.lower()))
                    assert not take(NO_CHOICE)
                    assert all(choice in of["description"] for choice in choices), path
                else:
                    assert [choice for choice in of["enum"] if choice] == choices, path
            case "within":
                low, high = args
                if path in DEPENDS:
                    assert of.get("minimum", low) <= low, path
                    assert of.get("maximum", high) >= high, path
                else:
                    assert (of["minimum"], of["maximum"]) == (low, high), path
            case "at_most":
                assert of["maxItems"] == args[0], path
            case "unique":
                assert of["uniqueItems"] is True, path
            case "selector":
                assert of["maxLength"] == checks.MAX_SELECTOR_CHARS, path
    assert seen or name in ("ClusterInformation", "GlobalNetworkSet", "NetworkSet", "BlockAffinity")


@pytest.mark.parametrize("name", NAMES)
def test_defaults_in_the_schema_are_those_that_are_stored(name: str) -> None:
    """An object that says nothing gets them, where what they stand in is there."""
    kind = KINDS[name]
    for path, of in schemas.places(kind):
        if "default" not in of or 0 in path:
            continue
        value: JsonObject = {"kind": name, "apiVersion": "projectcalico.org/v3", "metadata": {"name": "x"}}
        at = value
        for step in path[:-1]:
            at = at.setdefault(str(step), {})
        stored = codec.to_dict(defaults.apply_defaults(validation.decode_user(value)))
        assert schemas.get(stored, path) == of["default"], schemas.written(path)


def test_defaults_that_are_always_the_same_are_in_the_schema() -> None:
    """What an empty object of a kind gets; the four that depend on the rest of the object are said in words."""
    depends = {"spec.types", "spec.order", "spec.blockSize", "spec.allowedUses", "spec.vxlanMode", "spec.ipipMode"}
    found = 0
    for kind in SERVED.values():
        empty = kind.struct()
        before, after = codec.to_dict(empty)["spec"], codec.to_dict(defaults.apply_defaults(empty))["spec"]
        places = {schemas.written(path): of for path, of in schemas.places(kind)}
        for name in after.keys() - before.keys():
            path = f"spec.{name}"
            if path in depends or name in ("bpfConnectTimeLoadBalancing", "bpfHostNetworkedNATWithoutCTLB"):
                continue
            assert places[path]["default"] == after[name], (kind.kind, path)
            found += 1
    assert found >= 15


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_a_text(name: str) -> None:
    kind = KINDS[name]
    assert schema.schema_of(kind)["description"]
    for path, of in schemas.walk(schema.schema_of(kind)):
        if 0 not in path[-1:]:
            text = of.get("description", "")
            assert len(text.split()) >= 2 or text == "Singular.", (name, schemas.written(path), text)
            assert text.rstrip().endswith((".", "…")), (name, schemas.written(path))


def test_texts_are_of_fields_that_exist() -> None:
    for struct, about in ABOUTS.items():
        assert set(about.fields) <= {field.name for field in msgspec.structs.fields(struct)}, struct


def test_names_are_those_that_calico_publishes() -> None:
    names = set(schema.components())
    calico = "com.github.projectcalico.api.pkg.apis.projectcalico.v3."
    meta = "io.k8s.apimachinery.pkg.apis.meta.v1."
    assert {
        *(calico + one for one in ("NetworkPolicy", "NetworkPolicyList", "NetworkPolicySpec", "Rule", "EntityRule")),
        *(calico + one for one in ("BGPFilterRuleV4", "BGPFilterRuleV6", "BGPFilterPrefixLengthV4", "Template")),
        *(calico + one for one in ("BGPFilterCommunityMatch", "CalicoNodeBGPRouteStatus", "TierStatus")),
        *(
            meta + one
            for one in ("ObjectMeta", "ListMeta", "Status", "DeleteOptions", "Patch", "LabelSelector", "Time")
        ),
        "com.github.projectcalico.api.pkg.lib.numorstring.Protocol",
        "io.k8s.api.networking.v1.NetworkPolicyPeer",
        "io.k8s.api.core.v1.SecretKeySelector",
    } <= names
    assert not any("libs." in name or "Kubernetes" in name.replace("StagedKubernetes", "") for name in names)
    assert not any(kind in name for name in names for kind in ("WorkloadEndpointSpec", "IPAMBlock", "IPAMHandle"))


def test_every_reference_leads_somewhere() -> None:
    names = {f"#/components/schemas/{name}" for name in schema.components()}

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            value = list(value.values())
        if isinstance(value, list):
            for member in value:
                yield from references(member)

    found = set(references(schema.components()))
    assert found <= names
    lists = {f"#/components/schemas/{schema.list_name(kind)}" for kind in SERVED.values()}
    tops = {f"#/components/schemas/{schema.component_name(kind.struct)}" for kind in SERVED.values()}
    answers = {
        name for name in names if name.endswith((".Status", ".DeleteOptions", ".Patch", ".WatchEvent", "ResourceList"))
    }
    assert names - found - lists - tops == answers, "nothing is there that nobody needs"


def test_lists_say_how_they_merge() -> None:
    meta = schema.components()["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["properties"]
    assert meta["finalizers"]["x-kubernetes-list-type"] == "set"
    assert meta["ownerReferences"]["x-kubernetes-list-map-keys"] == ["uid"]
    pool = dict(schemas.walk(schema.schema_of(KINDS["IPPool"])))
    assert pool["status", "conditions"]["x-kubernetes-list-type"] == "map"
    assert pool["status", "conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    policy = dict(schemas.places(KINDS["NetworkPolicy"]))
    assert policy["spec", "ingress"]["x-kubernetes-list-type"] == "atomic"
    assert policy["spec", "types"]["x-kubernetes-list-type"] == "set"
    lists = [of for kind in SERVED.values() for _, of in schemas.places(kind) if of.get("type") == "array"]
    assert all(of["x-kubernetes-list-type"] in ("atomic", "set", "map") for of in lists)


def test_kinds_are_marked() -> None:
    wanted = {"group": "projectcalico.org", "version": "v3", "kind": "Tier"}
    assert schema.schema_of(KINDS["Tier"])["x-kubernetes-group-version-kind"] == [wanted]
    listed = schema.components()[schema.list_name(KINDS["Tier"])]
    assert listed["x-kubernetes-group-version-kind"] == [wanted | {"kind": "TierList"}]
    assert listed["required"] == ["items"]


def test_prefix_lengths_are_limited_by_the_version_of_their_rules() -> None:
    places = dict(schemas.places(KINDS["BGPFilter"]))
    assert places["spec", "exportV4", 0, "prefixLength", "max"]["maximum"] == 32
    assert places["spec", "importV6", 0, "prefixLength", "max"]["maximum"] == 128


@pytest.mark.parametrize(
    ("name", "spec", "fault"),
    [
        ("NetworkPolicy", {"ingress": [{"action": "Allow", "protocol": "tcp"}]}, "spec.ingress[0].protocol"),
        ("NetworkPolicy", {"ingress": [{"action": "Allow", "protocol": 256}]}, "spec.ingress[0].protocol"),
        ("Profile", {"egress": [{"source": {"ports": [65536]}, "action": "Log"}]}, "spec.egress[0].source.ports[0]"),
        ("Profile", {"egress": [{"source": {"ports": [True]}, "action": "Log"}]}, "spec.egress[0].source.ports[0]"),
        ("NetworkPolicy", {"order": "1"}, "spec.order"),
        ("IPPool", {}, "spec"),
        ("IPPool", {"cidr": "fd00::/48", "natOutgoing": "yes"}, "spec.natOutgoing"),
        ("BGPPeer", {"asNumber": "1.x"}, "spec.asNumber"),
        ("BGPPeer", {"keepaliveTime": "soon"}, "spec.keepaliveTime"),
        ("FelixConfiguration", {"logSeverityScreen": "loud"}, "spec.logSeverityScreen"),
        ("FelixConfiguration", {"bpfLogLevel": "debug!"}, "spec.bpfLogLevel"),
    ],
)  # fmt: skip
def test_bad_objects_are_refused_at_the_field(name: str, spec: JsonObject, fault: str) -> None:
    validator = jsonschema_rs.validator_for(schemas.standalone(KINDS[name]))
    errors = list(validator.iter_errors({"spec": spec}))
    assert {schemas.written(tuple(error.instance_path)) for error in errors} == {fault}


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("NetworkPolicy", {"ingress": [{"action": "Allow", "protocol": 6, "source": {"ports": [1, "1:2", "http"]}}]}),
        ("NetworkPolicy", {"order": 1.5, "ingress": [{"action": "Log", "source": {"nets": ["fd00::/8"]}}]}),
        ("BGPPeer", {"asNumber": "1.10", "keepaliveTime": "1h2m3.5s", "peerIP": "[2001:db8::1]:179"}),
        ("FelixConfiguration", {"logSeverityScreen": "INFO", "bpfLogLevel": "", "istioDSCPMark": "AF11"}),
        ("BGPConfiguration", {"logSeverityScreen": "debug"}),
    ],
)
def test_good_objects_are_taken(name: str, spec: JsonObject) -> None:
    jsonschema_rs.validator_for(schemas.standalone(KINDS[name])).validate({"spec": spec})
