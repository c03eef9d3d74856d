"""Schemas of Kubernetes' own types that the API uses besides those of the model (k8s.io/apimachinery,
pkg/apis/meta/v1/types.go): answers that are errors, options of deletions, patches, events of watches.
"""

from __future__ import annotations

from services.apiserver.core.status import JsonObject

META = "io.k8s.apimachinery.pkg.apis.meta.v1."


def ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(description: str, **more: object) -> JsonObject:
    return {"type": "string", "description": description, **more}


def _whole(description: str, form: str = "int64") -> JsonObject:
    return {"type": "integer", "format": form, "description": description}


def _object(
    description: str, properties: JsonObject, required: tuple[str, ...] = (), kinds: tuple[tuple[str, str], ...] = ()
) -> JsonObject:
    """kinds: version and kind in the core group that the type stands for on the wire."""
    found: JsonObject = {"description": description, "type": "object", "properties": properties}
    if required:
        found["required"] = list(required)
    if kinds:
        found["x-kubernetes-group-version-kind"] = [
            {"group": "", "version": version, "kind": kind} for version, kind in kinds
        ]
    return found


def _list_of(description: str, items: JsonObject) -> JsonObject:
    return {"type": "array", "description": description, "items": items, "x-kubernetes-list-type": "atomic"}


TYPE: JsonObject = {
    "apiVersion": _text("API group and version that the object is written in."),
    "kind": _text("Kind of the object."),
}

COMPONENTS: dict[str, JsonObject] = {
    META + "Time": _text("A point in time, RFC 3339.", format="date-time"),
    META + "FieldsV1": {
        "type": "object",
        "description": "A set of fields: keys f:name, k:{keys}, v:value, i:index and '.'.",
    },
    META + "ManagedFieldsEntry": _object(
        "Which fields one manager set, by one way of writing.",
        {
            "manager": _text("Who set them."),
            "operation": _text("How: Apply or Update."),
            "apiVersion": _text("API version that the fields are named in."),
            "time": {"description": "When that last changed.", "allOf": [ref(META + "Time")]},
            "fieldsType": _text("Always FieldsV1."),
            "fieldsV1": {"description": "The fields.", "allOf": [ref(META + "FieldsV1")]},
            "subresource": _text("Through which subresource; absent for the object itself."),
        },
    ),
    META + "ListMeta": _object(
        "What every list has.",
        {
            "selfLink": _text("Not used any more."),
            "resourceVersion": _text("Version of the data that the list was made from; a watch goes on from it."),
            "continue": _text("Passed as continue, this asks for the next chunk. Absent on the last one."),
            "remainingItemCount": _whole("How many objects come after this chunk; absent when that is not known."),
        },
    ),
    META + "StatusCause": _object(
        "One fault.",
        {
            "reason": _text("What is wrong, for programs."),
            "message": _text("What is wrong, for people."),
            "field": _text("Path of the field, such as spec.ingress[0].action."),
        },
    ),
    META + "StatusDetails": _object(
        "What an error is about.",
        {
            "name": _text("Name of the object."),
            "group": _text("API group of the object."),
            "kind": _text("Kind or resource."),
            "uid": _text("Identity of the object."),
            "causes": _list_of("The single faults.", {"default": {}, "allOf": [ref(META + "StatusCause")]}),
            "retryAfterSeconds": _whole("When to try again.", "int32"),
        },
    ),
    META + "Status": _object(
        "An answer that is no object: an error, or the success of a deletion.",
        TYPE
        | {
            "metadata": {"description": "Empty.", "allOf": [ref(META + "ListMeta")]},
            "status": _text("Success or Failure."),
            "message": _text("What happened, for people."),
            "reason": _text("What happened, for programs: NotFound, Conflict, Invalid …"),
            "details": {"description": "What it is about.", "allOf": [ref(META + "StatusDetails")]},
            "code": _whole("HTTP status code.", "int32"),
        },
        kinds=(("v1", "Status"),),
    ),
    META + "Preconditions": _object(
        "What must hold for a deletion to happen.",
        {
            "uid": _text("The object must have this identity."),
            "resourceVersion": _text("The object must have this version."),
        },
    ),
    META + "DeleteOptions": _object(
        "How to delete.",
        TYPE
        | {
            "gracePeriodSeconds": _whole("How long the object may take to end; it goes at once here."),
            "preconditions": {"description": "What must hold.", "allOf": [ref(META + "Preconditions")]},
            "orphanDependents": {"type": "boolean", "description": "Older form of propagationPolicy."},
            "propagationPolicy": _text("What becomes of objects that this one owns: Orphan, Background, Foreground."),
            "dryRun": _list_of("All: check everything, delete nothing.", {"type": "string"}),
        },
        kinds=(("v1", "DeleteOptions"),),
    ),
    META + "Patch": {
        "description": "Changes: a list of operations (RFC 6902), or the parts of the object that change (RFC 7386, or "
        "server-side apply), by content type.",
        "anyOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}],
    },
    META + "WatchEvent": _object(
        "One event of a watch.",
        {
            "type": _text("ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."),
            "object": {"type": "object", "description": "The object as it is, or last was; a Status for ERROR."},
        },
        required=("type", "object"),
        kinds=(("v1", "WatchEvent"),),
    ),
    META + "APIResource": _object(
        "One resource of the API.",
        {
            "name": _text("Plural, as in paths; with /status for the subresource."),
            "singularName": _text("Singular."),
            "namespaced": {"type": "boolean", "description": "Whether its objects belong to namespaces."},
            "group": _text("API group, where it is not the list's."),
            "version": _text("API version, where it is not the list's."),
            "kind": _text("Kind of its objects."),
            "verbs": _list_of("What can be done with it.", {"type": "string"}),
            "shortNames": _list_of("Other names for command lines.", {"type": "string"}),
            "categories": _list_of("Groups of resources that it is in, such as all.", {"type": "string"}),
            "storageVersionHash": _text("Changes when the stored form does."),
        },
        required=("name", "singularName", "namespaced", "kind", "verbs"),
    ),
    META + "APIResourceList": _object(
        "The resources of a group and version.",
        TYPE
        | {
            "groupVersion": _text("The group and version."),
            "resources": _list_of("The resources.", {"default": {}, "allOf": [ref(META + "APIResource")]}),
        },
        required=("groupVersion", "resources"),
        kinds=(("v1", "APIResourceList"),),
    ),
}
