"""OpenAPI v2 (Swagger 2.0) from the v3 document: what kube-apiserver merges into its own for older clients.

v2 knows neither alternatives nor several forms of one body: a value that is a number or text becomes text of the format
`int-or-string`, as Kubernetes writes it there, and of others the first form stands for all.
"""

from __future__ import annotations

from typing import Any

from services.apiserver.core.status import JsonObject

_V3, _V2 = "#/components/schemas/", "#/definitions/"
_METHODS = ("get", "put", "post", "delete", "patch")
_ERROR_PREFIX = "#/components/responses/"


def from_v3(document: JsonObject) -> JsonObject:
    components = document["components"]
    return {
        "swagger": "2.0",
        "info": document["info"],
        "paths": {path: _path(item, components["responses"]) for path, item in document["paths"].items()},
        "definitions": {name: _schema(value) for name, value in components["schemas"].items()},
        "securityDefinitions": components["securitySchemes"],
        "security": document["security"],
    }


def _path(item: JsonObject, errors: JsonObject) -> JsonObject:
    found: JsonObject = {method: _operation(item[method], errors) for method in _METHODS if method in item}
    if "parameters" in item:
        found["parameters"] = [_parameter(one) for one in item["parameters"]]
    return found


def _operation(operation: JsonObject, errors: JsonObject) -> JsonObject:
    found = {
        key: value for key, value in operation.items() if key not in ("parameters", "requestBody", "responses")
    }  # fmt: skip
    parameters = [_parameter(one) for one in operation.get("parameters", ())]
    if (body := operation.get("requestBody")) is not None:
        found["consumes"] = list(body["content"])
        schema = next(iter(body["content"].values()))["schema"]
        parameters.append(
            {"name": "body", "in": "body", "schema": _schema(schema)}
            | ({"required": True} if body.get("required") else {})
        )
    if parameters:
        found["parameters"] = parameters
    produced: dict[str, None] = {}
    found["responses"] = {}
    for code, response in operation["responses"].items():
        if (place := response.get("$ref")) is not None:
            response = errors[place.removeprefix(_ERROR_PREFIX)]
        content = response["content"]
        produced |= dict.fromkeys(content)
        found["responses"][code] = {
            "description": response["description"],
            "schema": _schema(next(iter(content.values()))["schema"]),
        }
    return found | {"produces": list(produced)}


def _parameter(parameter: JsonObject) -> JsonObject:
    return {key: value for key, value in parameter.items() if key != "schema"} | dict(parameter["schema"])


def _schema(value: JsonObject) -> JsonObject:
    found: JsonObject = {}
    for key, member in value.items():
        match key:
            case "$ref":
                found["$ref"] = member.replace(_V3, _V2)
            case "allOf":
                found |= _schema(member[0])  # a reference beside a description, which v2 has side by side
            case "anyOf":
                found |= _alternatives(value)
            case "properties":
                found[key] = {name: _schema(one) for name, one in member.items()}
            case "items" | "additionalProperties":
                found[key] = _schema(member)
            case _:
                found[key] = member
    return found


def _alternatives(value: JsonObject) -> dict[str, Any]:
    if value.get("x-kubernetes-int-or-string"):
        return {"type": "string", "format": "int-or-string"}
    first: JsonObject = value["anyOf"][0]
    return _schema(first)
