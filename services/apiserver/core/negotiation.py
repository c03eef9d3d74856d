"""Which form an answer has by the Accept header, and which form a body has by its Content-Type.

    application/json, application/yaml                               the object or list itself
    application/json;as=Table;v=v1;g=meta.k8s.io                     rows and columns (kubectl get)
    application/json;as=PartialObjectMetadata[List];v=v1;g=…         metadata alone (the garbage collector)

Protobuf is not spoken (facts/cni-typha-node-bgp-ctl.md section 6.2); who offers JSON beside it gets that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.apiserver.core.accept import parse
from services.apiserver.core.status import bad_request, not_acceptable, unsupported_media_type

JSON, YAML = "application/json", "application/yaml"
_ANY = frozenset({"*/*", "application/*"})


class Form(StrEnum):
    WHOLE = ""
    TABLE = "Table"
    METADATA = "PartialObjectMetadata"


class Include(StrEnum):
    """What a table's rows carry beside their cells."""

    NONE = "None"
    METADATA = "Metadata"
    OBJECT = "Object"


class PatchKind(StrEnum):
    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Output:
    """version: of meta.k8s.io, for forms other than WHOLE."""

    form: Form = Form.WHOLE
    yaml: bool = False
    version: str = "v1"


def output(accept: str, *, listing: bool = False, watching: bool = False) -> Output:
    """The first acceptable clause, those of higher q first. Raises ApiError 406."""
    for clause in parse(accept or JSON):
        media, parameters = f"{clause.type}/{clause.subtype}", clause.params
        if media not in (JSON, YAML) and media not in _ANY:
            continue
        wanted = parameters.get("as", "")
        if not wanted:
            return Output(yaml=media == YAML and not watching)
        version = parameters.get("v", "v1")
        if parameters.get("g", "meta.k8s.io") != "meta.k8s.io" or version not in ("v1", "v1beta1"):
            continue
        if wanted == "Table":
            return Output(Form.TABLE, media == YAML and not watching, version)
        fitting = {"PartialObjectMetadataList"} if listing else {"PartialObjectMetadata"}
        if wanted in (fitting | {"PartialObjectMetadata", "PartialObjectMetadataList"} if watching else fitting):
            return Output(Form.METADATA, media == YAML and not watching, version)
    raise not_acceptable(f"only the following media types are accepted: {JSON}, {YAML}")


def include_object(text: str) -> Include:
    """Raises ApiError 400."""
    if text and text not in tuple(Include):
        raise bad_request(f'unrecognized includeObject value: "{text}"')
    return Include(text or Include.METADATA)


def body_is_yaml(content_type: str) -> bool:
    """JSON when nothing is said. Raises ApiError 415."""
    media = content_type.split(";", 1)[0].strip().lower()
    if media in ("", JSON):
        return False
    if media == YAML:
        return True
    raise unsupported_media_type(
        f"the body of the request was in an unknown format - accepted media types include: {JSON}, {YAML}"
    )


def patch_kind(content_type: str) -> PatchKind:
    """Raises ApiError 415."""
    media = content_type.split(";", 1)[0].strip().lower()
    if media in tuple(PatchKind):
        return PatchKind(media)
    known = ", ".join(sorted(PatchKind))
    raise unsupported_media_type(
        f"the body of the request was in an unknown format - accepted media types include: {known}"
    )
