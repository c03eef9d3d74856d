"""What a server does to the metadata of objects that it creates or changes, on plain JSON: which fields are the
client's and which its own (k8s.io/apiserver, pkg/registry/rest/create.go and update.go).

    create    name, labels, annotations, finalizers, owner references and spec are the client's
    update    the same; the status stays as it is where the kind has a status subresource
    status    the status alone is the client's
"""

from __future__ import annotations

from random import Random

from libs.model.kinds import Kind
from libs.model.problems import At
from libs.model.validation import checks
from libs.resources.errors import Identity, PreconditionFailed
from services.apiserver.core.request import WITH_STATUS, Target
from services.apiserver.core.status import Cause, JsonObject, bad_request, forbidden, invalid, method_not_supported

_SERVERS_OWN = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_CHARS = 5
_BASE_CHARS = 58
KUBERNETES_POLICY = "knp.default."
"""Prefix of policies that are made of Kubernetes' own, in its datastore: not for users to write."""


def metadata_of(value: JsonObject) -> JsonObject:
    """Raises ApiError 400 when it is not an object."""
    found = value.get("metadata", {})
    if not isinstance(found, dict):
        raise bad_request(f"metadata: expected an object, not {type(found).__name__}")
    return found


def refuse_read_only(kind: Kind, verb: str, name: str) -> None:
    """Raises ApiError 405 for what its components alone write, 403 for what another API owns."""
    if kind.kind == "ClusterInformation":
        raise method_not_supported(kind.plural, verb)
    if kind.kind == "NetworkPolicy" and name.startswith(KUBERNETES_POLICY):
        message = "kubernetes network policies must be managed through the kubernetes API"
        raise forbidden(kind.plural, name, message)


def check_owners(metadata: JsonObject, target: Target) -> None:
    """Finalizers and owner references as `ValidateObjectMeta` demands them (k8s.io/apimachinery, pkg/api/validation):
    an owner that nobody can find would keep its garbage collector busy for ever. Values of a wrong type are told by
    who reads them. Raises ApiError 422.
    """
    causes = []
    finalizers, owners = metadata.get("finalizers"), metadata.get("ownerReferences")
    for number, name in enumerate(finalizers if isinstance(finalizers, list) else ()):
        at = At()
        if isinstance(name, str):
            checks.label_map(at, {name: ""})
        if at.problems:
            message = f'Invalid value: "{name[:64]}": must be a qualified name, as in example.com/cleanup'
            causes.append(Cause("FieldValueInvalid", message, f"metadata.finalizers[{number}]"))
    for number, owner in enumerate(owners if isinstance(owners, list) else ()):
        where = f"metadata.ownerReferences[{number}]"
        causes += [
            Cause("FieldValueInvalid", 'Invalid value: "": must not be empty', f"{where}.{name}")
            for name in ("apiVersion", "kind", "name", "uid")
            if isinstance(owner, dict) and not owner.get(name)
        ]
    if causes:
        raise invalid(target.kind.kind, target.name or str(metadata.get("name", "")), causes)


# --- create ----------------------------------------------------------------------------------------------------------


def for_create(value: JsonObject, target: Target, random: Random) -> JsonObject:
    """Raises ApiError 400 and 422."""
    metadata = dict(metadata_of(value))
    if metadata.get("resourceVersion"):
        raise bad_request("resourceVersion should not be set on objects to be created")
    for name in (*_SERVERS_OWN, "resourceVersion"):
        metadata.pop(name, None)
    _set_namespace(metadata, target)
    check_owners(metadata, target)
    if not metadata.get("name"):
        prefix = metadata.get("generateName")
        if not isinstance(prefix, str) or not prefix:
            message = "Required value: name or generateName is required"
            raise invalid(target.kind.kind, "", [Cause("FieldValueRequired", message, "metadata.name")])
        suffix = "".join(random.choice(_SUFFIX_LETTERS) for _ in range(_SUFFIX_CHARS))
        metadata["name"] = prefix[:_BASE_CHARS] + suffix
    made = {**value, "metadata": metadata}
    if target.kind.kind in WITH_STATUS:
        made.pop("status", None)
    return made


def _set_namespace(metadata: JsonObject, target: Target) -> None:
    if not target.kind.namespaced:
        metadata.pop("namespace", None)
        return
    given = metadata.get("namespace")
    if given and given != target.namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    metadata["namespace"] = target.namespace


# --- update ----------------------------------------------------------------------------------------------------------


def check_names(value: JsonObject, target: Target) -> None:
    """Raises ApiError 400 when the object is not the one that the path names."""
    metadata = metadata_of(value)
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not name:
        raise bad_request(
            f"the name of the object ({target.name} based on URL) was undeterminable: name must be provided"
        )
    if name != target.name:
        raise bad_request(f"the name of the object ({name}) does not match the name on the URL ({target.name})")
    if target.kind.namespaced and namespace and namespace != target.namespace:
        raise bad_request(
            f"the namespace of the object ({namespace}) does not match the namespace on the request "
            f"({target.namespace})"
        )


def demand_version(value: JsonObject, target: Target) -> None:
    """An update must say which version it replaces (Calico's strategies do not allow unconditional ones). Raises
    ApiError 422.
    """
    given = metadata_of(value).get("resourceVersion")
    if not given or given == "0":
        message = "Invalid value: 0x0: must be specified for an update"
    elif not (isinstance(given, str) and given.isascii() and given.isdigit()):
        message = f'Invalid value: "{given}": strconv.ParseUint: parsing "{given}": invalid syntax'
    else:
        return
    raise invalid(target.kind.kind, target.name, [Cause("FieldValueInvalid", message, "metadata.resourceVersion")])


def for_update(value: JsonObject, live: JsonObject, target: Target) -> JsonObject:
    """What the client wants, with what is the server's own taken from `live`. Raises ApiError 422,
    PreconditionFailed when it was meant for an earlier object of the same name.
    """
    given, present = metadata_of(value), live["metadata"]
    uid = given.get("uid")
    if uid and uid != present.get("uid"):
        identity = Identity(target.kind.kind, target.name, target.namespace)
        raise PreconditionFailed(identity, "UID", str(uid), present.get("uid", ""))
    created = given.get("creationTimestamp")
    if created and created != present.get("creationTimestamp"):
        message = f'Invalid value: "{created}": field is immutable'
        cause = Cause("FieldValueInvalid", message, "metadata.creationTimestamp")
        raise invalid(target.kind.kind, target.name, [cause])
    if target.subresource == "status":
        kept = {name: given[name] for name in ("resourceVersion", "managedFields") if name in given}
        metadata = {**present, **kept}
        merged = {**live, "metadata": metadata}
        merged.pop("status", None)
        return merged | ({"status": value["status"]} if "status" in value else {})
    metadata = dict(given)
    for name in _SERVERS_OWN:
        metadata.pop(name, None)
        if name in present:
            metadata[name] = present[name]
    metadata["name"] = target.name
    metadata.pop("namespace", None)
    if target.kind.namespaced:
        metadata["namespace"] = target.namespace
    check_owners(metadata, target)
    if present.get("deletionTimestamp"):
        _no_new_finalizers(metadata, present, target)
    merged = {**value, "metadata": metadata}
    if target.kind.kind in WITH_STATUS:
        merged.pop("status", None)
        merged |= {"status": live["status"]} if "status" in live else {}
    return merged


def _no_new_finalizers(metadata: JsonObject, present: JsonObject, target: Target) -> None:
    wanted = metadata.get("finalizers")
    new = [name for name in wanted if name not in present.get("finalizers", [])] if isinstance(wanted, list) else []
    if new:
        shown = ", ".join(f'"{name}"' for name in new)
        message = (
            "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers "
            f"[]string{{{shown}}}"
        )
        cause = Cause("FieldValueForbidden", message, "metadata.finalizers")
        raise invalid(target.kind.kind, target.name, [cause])
