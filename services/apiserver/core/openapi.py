"""The API as an OpenAPI v3 document: every path, its operations, parameters, bodies and answers.

Shape, names of operations and extensions are those of Kubernetes' own documents (k8s.io/apiserver,
pkg/endpoints/installer.go), which kubectl reads: `explain` finds a schema by `x-kubernetes-group-version-kind`, and
`apply --validate` asks whether PATCH takes `fieldValidation`.
"""

from __future__ import annotations

from collections.abc import Iterator

from libs.model.kinds import Kind
from services.apiserver.core import parameters, schema
from services.apiserver.core.metaschema import META, ref
from services.apiserver.core.parameters import Parameters
from services.apiserver.core.request import API_PREFIX, SERVED, WITH_STATUS
from services.apiserver.core.status import JsonObject

BODY_TYPES = ("application/json", "application/yaml")
PATCH_TYPES = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")
ANSWER_TYPES = ("application/json", "application/yaml")
STREAM_TYPE = "application/json;stream=watch"
TAG = "projectcalicoOrg_v3"
_OPERATION = "ProjectcalicoOrgV3"

# Errors that an operation may answer with, by HTTP status code.
_ERRORS = {
    400: "The request cannot be understood.",
    401: "Nobody knows who asks.",
    403: "The user may not do that.",
    404: "There is no such object or namespace.",
    405: "The path does not take this method.",
    406: "No form of the answer on offer is accepted.",
    409: "Somebody else was first, or the object exists.",
    410: "The version that was asked for is too old.",
    413: "The body is too large.",
    415: "The body's content type is not understood.",
    422: "The object, or a parameter, breaks rules; details name every field.",
    429: "Too many requests; try again after Retry-After seconds.",
    500: "The server failed.",
    503: "The datastore cannot be reached; try again.",
    504: "The server did not get to an answer in time.",
}
_ALWAYS = (400, 401, 403, 406, 429, 500, 503, 504)
_READS = (*_ALWAYS, 404, 410, 422)
_WRITES = (*_ALWAYS, 404, 405, 409, 410, 413, 415, 422)


def document(version: str) -> JsonObject:
    """OpenAPI 3.0 of the group and version. version: of this program."""
    paths: JsonObject = {API_PREFIX + "/": {"get": _discovery()}}
    for plural in sorted(SERVED):
        paths |= dict(_paths(SERVED[plural]))
    errors = {f"Error{code}": _error(text) for code, text in _ERRORS.items()}
    return {
        "openapi": "3.0.0",
        "info": {"title": "Calico", "version": version},
        "paths": paths,
        "components": {
            "schemas": schema.components(),
            "responses": errors,
            "securitySchemes": {
                "BearerToken": {
                    "type": "apiKey", "in": "header", "name": "authorization",
                    "description": "A bearer token; client certificates are taken as well.",
                }
            },
        },
        "security": [{"BearerToken": []}],
    }  # fmt: skip


def index(digest: str) -> JsonObject:
    """`/openapi/v3`: where the documents are. digest: of the document, so that it may be kept for ever."""
    name = API_PREFIX.lstrip("/")
    return {"paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}?hash={digest}"}}}


def _error(text: str) -> JsonObject:
    return {"description": text, "content": {"application/json": {"schema": ref(META + "Status")}}}


def _answer(text: str, name: str, *, stream: bool = False) -> JsonObject:
    content = {media: {"schema": ref(name)} for media in ANSWER_TYPES}
    if stream:
        content[STREAM_TYPE] = {"schema": ref(META + "WatchEvent")}
    return {"description": text, "content": content}


def _responses(answers: dict[int, JsonObject], errors: tuple[int, ...]) -> JsonObject:
    found = answers | {code: {"$ref": f"#/components/responses/Error{code}"} for code in errors}
    return {str(code): found[code] for code in sorted(found)}


def _discovery() -> JsonObject:
    return {
        "tags": [TAG],
        "description": "The resources of the API.",
        "operationId": f"get{_OPERATION}APIResources",
        "responses": _responses({200: _answer("OK", META + "APIResourceList")}, (401, 403, 406, 429)),
    }


def _paths(kind: Kind) -> Iterator[tuple[str, JsonObject]]:
    builder = _Operations(kind)
    scope = f"{API_PREFIX}/namespaces/{{namespace}}" if kind.namespaced else API_PREFIX
    within = parameters.NAMESPACE if kind.namespaced else ()
    of_object = (*parameters.NAME, *within, *parameters.PRETTY)
    if kind.namespaced:
        everywhere = builder.list(f"list{_OPERATION}{kind.kind}ForAllNamespaces", "in all namespaces")
        yield f"{API_PREFIX}/{kind.plural}", {"get": everywhere, "parameters": list(parameters.PRETTY)}
    yield f"{scope}/{kind.plural}", builder.collection() | {"parameters": [*within, *parameters.PRETTY]}
    yield f"{scope}/{kind.plural}/{{name}}", builder.one() | {"parameters": list(of_object)}
    if kind.kind in WITH_STATUS:
        yield f"{scope}/{kind.plural}/{{name}}/status", builder.status() | {"parameters": list(of_object)}


class _Operations:
    """The operations of one kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.object = schema.component_name(kind.struct)
        self.scope = "Namespaced" if kind.namespaced else ""

    def _name(self, verb: str, suffix: str = "") -> str:
        return f"{verb}{_OPERATION}{self.scope}{self.kind.kind}{suffix}"

    def _operation(
        self,
        name: str,
        action: str,
        text: str,
        params: Parameters,
        responses: JsonObject,
        body: JsonObject | None = None,
    ) -> JsonObject:
        found: JsonObject = {
            "tags": [TAG], "description": text, "operationId": name, "parameters": list(params), "responses": responses,
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": schema.group_version_kind(self.kind.kind),
        }  # fmt: skip
        return found | ({} if body is None else {"requestBody": body})

    def list(self, name: str, where: str = "") -> JsonObject:
        text = f"List or watch {self.kind.kind} objects {where}".strip() + "."
        answer = _answer("OK", schema.list_name(self.kind), stream=True)
        return self._operation(name, "list", text, parameters.LIST, _responses({200: answer}, _READS))

    def collection(self) -> JsonObject:
        kind = self.kind.kind
        created = {201: _answer("Created", self.object)}
        deleted = {200: _answer("OK: those that were deleted.", schema.list_name(self.kind))}
        return {
            "get": self.list(self._name("list")),
            "post": self._operation(
                self._name("create"), "post", f"Create a {kind}.", parameters.WRITE,
                _responses(created, _WRITES), _body(self.object, BODY_TYPES),
            ),
            "delete": self._operation(
                f"delete{_OPERATION}Collection{self.scope}{kind}", "deletecollection",
                f"Delete all {kind} objects that are selected.",
                (*parameters.SELECT, *parameters.DELETE), _responses(deleted, _WRITES),
                _body(META + "DeleteOptions", BODY_TYPES, required=False),
            ),
        }  # fmt: skip

    def one(self) -> JsonObject:
        kind = self.kind.kind
        either = {"anyOf": [ref(META + "Status"), ref(self.object)]}
        gone = {
            200: {
                "description": "OK: it is gone; or, as an object, it goes when its finalizers are done.",
                "content": {media: {"schema": either} for media in ANSWER_TYPES},
            }
        }
        return self._object("", f"a {kind}") | {
            "delete": self._operation(
                self._name("delete"), "delete", f"Delete a {kind}.", parameters.DELETE,
                _responses(gone, _WRITES), _body(META + "DeleteOptions", BODY_TYPES, required=False),
            ),
        }  # fmt: skip

    def status(self) -> JsonObject:
        return self._object("Status", f"the status of a {self.kind.kind}")

    def _object(self, suffix: str, what: str) -> JsonObject:
        done = {200: _answer("OK", self.object), 201: _answer("Created", self.object)}
        return {
            "get": self._operation(
                self._name("read", suffix), "get", f"Read {what}.", (),
                _responses({200: _answer("OK", self.object)}, _READS),
            ),
            "put": self._operation(
                self._name("replace", suffix), "put", f"Replace {what}.", parameters.WRITE,
                _responses(done, _WRITES), _body(self.object, BODY_TYPES),
            ),
            "patch": self._operation(
                self._name("patch", suffix), "patch", f"Change parts of {what}.",
                (*parameters.WRITE, *parameters.FORCE), _responses(done, _WRITES),
                _body(META + "Patch", PATCH_TYPES),
            ),
        }  # fmt: skip


def _body(name: str, media: tuple[str, ...], *, required: bool = True) -> JsonObject:
    found: JsonObject = {"content": {one: {"schema": ref(name)} for one in media}}
    return found | ({"required": True} if required else {})
