"""OpenAPI v3 schemas of the kinds, from the structs of `libs.model` and what `libs.model.descriptions` says of them.

Components are named as Calico's own API server names them (its package's path turned round), and types of Kubernetes
as Kubernetes does, so that clients find the ones they know. What Calico has in two types for IPv4 and IPv6 is one
struct here and two components (`_BY_VERSION`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec import inspect

from libs.model import base, bgp, cluster, policy
from libs.model.base import Resource, V3Struct
from libs.model.descriptions import Note, about, note
from libs.model.kinds import Kind
from libs.model.scalars import DSCP, PROTOCOL_NUMBERS, ASNumber, Duration, Port, Protocol
from services.apiserver.core import listtypes, metaschema
from services.apiserver.core.metaschema import META, ref
from services.apiserver.core.request import SERVED, VERSION
from services.apiserver.core.status import GROUP, JsonObject

CALICO = "com.github.projectcalico.api.pkg.apis.projectcalico.v3."
_NETWORKING = "io.k8s.api.networking.v1."

_NAMES: dict[type[V3Struct], str] = {
    base.ObjectMeta: META + "ObjectMeta",
    base.OwnerReference: META + "OwnerReference",
    base.Condition: META + "Condition",
    policy.LabelSelector: META + "LabelSelector",
    policy.LabelSelectorRequirement: META + "LabelSelectorRequirement",
    policy.KubernetesPort: _NETWORKING + "NetworkPolicyPort",
    policy.KubernetesPeer: _NETWORKING + "NetworkPolicyPeer",
    policy.KubernetesIPBlock: _NETWORKING + "IPBlock",
    policy.KubernetesIngressRule: _NETWORKING + "NetworkPolicyIngressRule",
    policy.KubernetesEgressRule: _NETWORKING + "NetworkPolicyEgressRule",
    bgp.SecretKeySelector: "io.k8s.api.core.v1.SecretKeySelector",
    bgp.BGPFilterCommunities: CALICO + "BGPFilterCommunityMatch",
    bgp.CalicoNodeRouteStatus: CALICO + "CalicoNodeBGPRouteStatus",
    cluster.HostEndpointTemplate: CALICO + "Template",
}
_BY_VERSION: tuple[type[V3Struct], ...] = (bgp.BGPFilterRule, bgp.BGPFilterPrefixLength)
_PREFIX_BITS = {"V4": 32, "V6": 128}
_TIMES = frozenset({"creation_timestamp", "deletion_timestamp", "last_transition_time", "last_updated"})

_BYTE = "0*([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_NUMORSTRING = "com.github.projectcalico.api.pkg.lib.numorstring."
_SCALAR_NAMES: dict[type, str] = {
    Protocol: _NUMORSTRING + "Protocol",
    Port: _NUMORSTRING + "Port",
    ASNumber: _NUMORSTRING + "ASNumber",
    DSCP: _NUMORSTRING + "DSCP",
    Duration: META + "Duration",
}


def _scalar(text: str, *forms: JsonObject) -> JsonObject:
    return {"description": text, "anyOf": list(forms), "x-kubernetes-int-or-string": True}


def _number(high: int) -> JsonObject:
    return {"type": "integer", "minimum": 0, "maximum": high}


_SCALARS: dict[type, JsonObject] = {
    Protocol: _scalar(
        "An IP protocol by name or number.",
        _number(255),
        {"type": "string", "pattern": f"^({'|'.join(PROTOCOL_NUMBERS)}|{_BYTE})$"},
    ),
    Port: _scalar(
        'A port: its number, a range such as "8000:8100", or the name of an endpoint\'s port.',
        _number(65535),
        {"type": "string", "pattern": "^(0*[0-9]{1,5}:0*[0-9]{1,5}|[a-zA-Z0-9_.-]{1,128})$"},
    ),
    ASNumber: _scalar(
        'An AS number, 32 bits: a number, or dotted as in "1.10".',
        _number(2**32 - 1),
        {"type": "string", "pattern": r"^0*([0-9]{1,10}|[0-9]{1,5}\.0*[0-9]{1,5})$"},
    ),
    DSCP: _scalar(
        "A differentiated services code point by number or name (EF, AF11, CS1).", _number(63), {"type": "string"}
    ),
    Duration: {
        "description": "A duration in Go's form: 90s, 1m30s, 100ms.",
        "type": "string",
        "pattern": "^[-+]?(0|(([0-9]+\\.?[0-9]*|\\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h))+)$",
    },
}
_INT32 = 2**31 - 1


def group_version_kind(kind: str) -> JsonObject:
    return {"group": GROUP, "version": VERSION, "kind": kind}


def component_name(struct: type[V3Struct], version: str = "") -> str:
    """version: "V4" or "V6" below lists for one IP version; counts only where components differ by it."""
    return _NAMES.get(struct, CALICO + struct.__name__) + (version if struct in _BY_VERSION else "")


def schema_of(kind: Kind) -> JsonObject:
    """The schema of a kind's objects; refers to others by `#/components/schemas/…`."""
    return components()[component_name(kind.struct)]


def list_name(kind: Kind) -> str:
    return component_name(kind.struct) + "List"


@cache
def components() -> dict[str, JsonObject]:
    """All schemas of the API by name, sorted. To be read only: they are made once."""
    found = dict(metaschema.COMPONENTS)
    for kind in SERVED.values():
        _collect(found, inspect.type_info(kind.struct), "")
        found[list_name(kind)] = _list(kind)
    return dict(sorted(found.items()))


def _list(kind: Kind) -> JsonObject:
    name = component_name(kind.struct)
    return {
        "description": f"A list of {kind.kind} objects.",
        "type": "object",
        "required": ["items"],
        "properties": metaschema.TYPE
        | {
            "metadata": {
                "description": "Of the list: its version, and where it goes on.",
                "allOf": [ref(META + "ListMeta")],
            },
            "items": {"description": "The objects.", "type": "array", "items": {"default": {}, "allOf": [ref(name)]}},
        },
        "x-kubernetes-group-version-kind": [group_version_kind(kind.kind + "List")],
    }


def _collect(found: dict[str, JsonObject], of: inspect.Type, version: str) -> JsonObject:
    """The schema for a value of a type. Structs go into `found` under their names and are referred to."""
    match of:
        case inspect.StructType():
            struct: type[V3Struct] = of.cls  # type: ignore[assignment]  # the model has no others
            name = component_name(struct, version)
            if name not in found:
                found[name] = {}  # stops recursion
                found[name] = _struct(found, struct, of.fields, version)
            return ref(name)
        case inspect.ListType():
            return {"type": "array", "items": _collect(found, of.item_type, version)}
        case inspect.DictType(value_type=inspect.AnyType()):
            return ref(META + "ManagedFieldsEntry")  # the only map of anything
        case inspect.DictType():
            return {"type": "object", "additionalProperties": _collect(found, of.value_type, version)}
        case inspect.CustomType():
            name = _SCALAR_NAMES[of.cls]
            found.setdefault(name, _SCALARS[of.cls])
            return ref(name)
        case inspect.UnionType():
            options = [option for option in of.types if not isinstance(option, inspect.NoneType)]
            schemas = [_collect(found, option, version) for option in options]
            if len(schemas) == 1:
                return schemas[0]
            found.setdefault(_INT_OR_STRING, _scalar("A number or a name.", *schemas))
            return ref(_INT_OR_STRING)
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType():
            return {"type": "integer", "format": "int64"}
        case inspect.FloatType():
            return {"type": "number", "format": "double"}
        case inspect.StrType():
            return {"type": "string"}
    raise TypeError(f"no schema for {of}")


def _struct(
    found: dict[str, JsonObject], struct: type[V3Struct], fields: tuple[inspect.Field, ...], version: str
) -> JsonObject:
    kind = struct.kind if issubclass(struct, Resource) else ""
    properties: JsonObject = dict(metaschema.TYPE) if kind else {}
    required = []
    for field in fields:
        said = _RESOURCE_FIELDS[field.name] if kind else note(struct, field.name)
        if struct is bgp.BGPFilterPrefixLength:
            said = Note(said.text, low=said.low, high=_PREFIX_BITS[version])
        below = field.encode_name[-2:] if struct is bgp.BGPFilterSpec else version
        value = ref(META + "Time") if field.name in _TIMES else _collect(found, field.type, below)
        merging = listtypes.openapi_extensions(struct, field.encode_name)
        properties[field.encode_name] = _with_note(value, said, zero=_writes_zero(field)) | merging
        if said.required:
            required.append(field.encode_name)
    schema: JsonObject = {"description": about(struct), "type": "object", "properties": properties}
    if required:
        schema["required"] = required
    if kind:
        schema["x-kubernetes-group-version-kind"] = [group_version_kind(kind)]
    return schema


_RESOURCE_FIELDS = {
    "metadata": Note("What every object has: its name, labels and so on."),
    "spec": Note("What is wanted."),
    "status": Note("What was observed; written by Calico itself, through the status subresource."),
}


def _writes_zero(field: inspect.Field) -> bool:
    """Whether the field is written even when it holds nothing, so that "" must be among its choices."""
    return callable(field.default_factory) and field.default_factory() == ""


def _with_note(schema: JsonObject, said: Note, *, zero: bool) -> JsonObject:
    """The schema with what the note says of it; limits of entries go to the entries."""
    found: JsonObject = {"description": said.text} if said.text else {}
    found |= {"allOf": [schema]} if "$ref" in schema else dict(schema)
    each: JsonObject = dict(found["items"]) if found.get("type") == "array" else found
    if said.choices and said.any_case:
        each["pattern"] = f"^({'|'.join(_any_case(str(choice)) for choice in said.choices)}){'?' if zero else ''}$"
        found["description"] += f" One of {', '.join(str(choice) for choice in said.choices)}, in any case."
    elif said.choices:
        if each is not found and not all(str(choice) in said.text for choice in said.choices):
            # kubectl shows the enum of a field, but not that of a list's entries.
            found["description"] += f" Entries are of {', '.join(str(choice) for choice in said.choices)}."
        each["enum"] = [*said.choices, *([""] if zero and not said.required else [])]
    if said.low is not None:
        each["minimum"] = said.low
    if said.high is not None:
        each["maximum"] = said.high
        if said.high <= _INT32 and (said.low or 0) >= -_INT32:
            each["format"] = "int32"
    if said.longest is not None:
        each["maxLength"] = said.longest
    if each is not found:
        found["items"] = each
    limits: dict[str, Any] = {"minItems": said.fewest, "maxItems": said.most, "uniqueItems": said.unique or None}
    found |= {name: limit for name, limit in limits.items() if limit is not None}
    if said.default is not None:
        found["default"] = said.default
    return found


def _any_case(word: str) -> str:
    """A regular expression for the word in any case; JSON schema's have no flag for it."""
    return "".join(f"[{char.upper()}{char.lower()}]" if char.isalpha() else char for char in word)
