"""What a command does with each document of its input, and what it says about all of them together.

Documents are handled in order, each by itself: one that is refused changes nothing and does not stop those after it.
The summary follows Calico's wording; the exit status is 1 as soon as one document failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from libs.model.base import Resource
from libs.model.policy import Tier
from libs.model.pools import IPPool
from libs.resources import codec
from libs.resources.api import Resources
from libs.resources.client import MAX_TRIES, Written
from libs.resources.errors import (
    AlreadyExists,
    Conflict,
    Identity,
    NotFound,
    NotSupported,
    ResourceError,
    ValidationError,
)
from services.calicoctl.documents import ARGUMENTS, Broken, Document

Input: TypeAlias = Document | Broken

Act: TypeAlias = Callable[[Resources, Resource], Coroutine[Any, Any, Written]]

Step: TypeAlias = Callable[[Document], Coroutine[Any, Any, Written | None]]
Progress: TypeAlias = Callable[[int], None]
"""Told how many more documents are done."""

AT_ONCE = 32
INDEPENDENT = frozenset(
    {
        "GlobalNetworkPolicy", "GlobalNetworkSet", "HostEndpoint", "NetworkPolicy", "NetworkSet", "Profile",
        "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy", "StagedNetworkPolicy", "WorkloadEndpoint",
    }
)  # fmt: skip
"""Kinds whose writes look at no others of the same kind (libs/resources/rules.py)."""


def nobody(_done: int) -> None:
    """Progress that is not shown."""


KUBERNETES_POLICY_PREFIX = "knp.default."


@dataclass(frozen=True, slots=True)
class Verb:
    """name: apply; past: applied. reads: a document only names what is meant, its spec is not looked at.

    skip: this error counts as done. initialises: the datastore is made ready before, if need be.
    """

    name: str
    past: str
    act: Act
    reads: bool = False
    skip: type[ResourceError] | None = None
    initialises: bool = True


async def _apply(client: Resources, resource: Resource) -> Written:
    return await client.apply(resource)


async def _create(client: Resources, resource: Resource) -> Written:
    return await client.create(resource)


async def _replace(client: Resources, resource: Resource) -> Written:
    return await client.replace(resource)


async def _delete(client: Resources, resource: Resource) -> Written:
    identity = codec.identity(resource)
    version = resource.metadata.resource_version
    return await client.delete(identity.kind, identity.name, identity.namespace, version)


def verb(name: str, *, skip_exists: bool = False, skip_not_exists: bool = False) -> Verb:
    match name:
        case "apply":
            return Verb("apply", "applied", _apply)
        case "create":
            return Verb("create", "created", _create, skip=AlreadyExists if skip_exists else None)
        case "replace":
            return Verb("replace", "replaced", _replace)
        case "delete":
            return Verb(
                "delete", "deleted", _delete, reads=True, skip=NotFound if skip_not_exists else None, initialises=False
            )
    raise ValueError(name)


@dataclass(slots=True)
class Outcome:
    """total: documents of the input; done: of how many the verb held; first: whether those were the first ones.

    failures: a message for each of the others, saying file, document, place, field and what was expected.
    notes: of what holds and is worth knowing.
    """

    total: int = 0
    done: int = 0
    first: bool = True
    kinds: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def failed(self, message: str) -> None:
        self.failures.append(message)

    def held(self, written: Written | None) -> None:
        if self.failures:
            self.first = False
        self.done += 1
        if written is not None:
            self.revisions.append(written.revision)
            held = written.resource
            if isinstance(held, IPPool) and held.metadata.deletion_timestamp:
                name = held.metadata.name
                self.notes.append(f"IP pool {name} is terminating: it goes when its last address is released")
            if isinstance(held, Tier) and held.metadata.deletion_timestamp and not written.deleted:
                name = held.metadata.name
                self.notes.append(f"tier {name} is terminating: it goes when its last policy is deleted")

    @property
    def what(self) -> str:
        """`'Tier' ` when all documents are of one kind, else nothing."""
        (only, *others) = self.kinds or {""}
        return f"'{only}' " if only and not others else ""


class NamespaceProblem(Exception):
    """Namespace given where none belongs, or two different ones."""


def placed(identity: Identity, given: str, *, everywhere: bool = False) -> Identity:
    """The identity in the namespace that is meant: its own, the one of -n, or `default`. Raises NamespaceProblem."""
    if not codec.is_namespaced(identity.kind):
        if identity.namespace:
            raise NamespaceProblem(
                f"metadata.namespace: must not be given, {identity.kind} is not a namespaced resource"
            )
        if given or everywhere:
            raise NamespaceProblem(f"{identity.kind} is not namespaced")
        return identity
    if everywhere and given:
        raise NamespaceProblem("cannot use both --namespace and --all-namespaces flags at the same time")
    if everywhere:
        return Identity(identity.kind, identity.name)
    if identity.namespace and given and identity.namespace != given:
        raise NamespaceProblem(
            f"metadata.namespace: resource namespace does not match client namespace, {identity.namespace} != {given}"
        )
    return Identity(identity.kind, identity.name, identity.namespace or given or "default")


def refuse_unmanaged(operation: str, identity: Identity) -> None:
    """What people must not write by hand. Raises NotSupported."""
    if identity.kind == "ClusterInformation":
        raise NotSupported(operation, identity, "resource is readonly")
    if identity.kind == "NetworkPolicy" and identity.name.startswith(KUBERNETES_POLICY_PREFIX):
        reason = "kubernetes network policies must be managed through the kubernetes API"
        raise NotSupported(operation, identity, reason)


def decode(document: Document, namespace: str, *, reads: bool) -> Resource:
    """The typed resource of a document, in its namespace. Raises ValidationError, NamespaceProblem."""
    value = document.value
    if reads:
        identity = placed(codec.named(value), namespace)
        version = value.get("metadata")
        given = version.get("resourceVersion") if isinstance(version, dict) else None
        return codec.with_metadata(codec.placeholder(identity), resource_version=str(given or ""))
    resource = codec.from_json(value)
    return codec.with_metadata(resource, namespace=placed(codec.identity(resource), namespace).namespace)


def messages(document: Document, error: Exception) -> list[str]:
    """One line for each problem: file, document, line, resource, field, what was expected."""
    if isinstance(error, ValidationError):
        owner = f"{error.identity}: " if error.identity else ""
        return [f"{_place(document, problem.path)}{owner}{problem}" for problem in error.problems]
    return [f"{_place(document)}{error}"]


def _place(document: Document, path: str = "") -> str:
    return "" if document.source == ARGUMENTS else f"{document.where(path)}: "


async def run(
    verb: Verb, client: Resources, documents: Sequence[Input], namespace: str = "", progress: Progress = nobody
) -> Outcome:
    """Raises what the datastore raises when it is away; everything else becomes a line of the outcome."""

    async def step(document: Document) -> Written | None:
        resource = decode(document, namespace, reads=verb.reads)
        refuse_unmanaged(verb.name, codec.identity(resource))
        try:
            return await verb.act(client, resource)
        except ResourceError as error:
            if verb.skip is not None and isinstance(error, verb.skip):
                return None
            raise

    return await _each(documents, step, progress)


async def validate(documents: Sequence[Input], namespace: str = "", *, reads: bool = False) -> Outcome:
    """As far as a resource can be judged by itself: without the datastore. reads: as with `Verb`."""

    async def step(document: Document) -> None:
        resource = decode(document, namespace, reads=reads)
        if reads:
            return
        if problems := codec.problems(codec.with_defaults(resource)):
            raise ValidationError(codec.identity(resource), problems)

    return await _each(documents, step)


async def _each(documents: Sequence[Input], step: Step, progress: Progress = nobody) -> Outcome:
    """Results stand in the order of the documents, however many were under way at once."""
    outcome = Outcome(total=len(documents))
    for batch in batches(documents):
        results = await asyncio.gather(*(_one(document, step) for document in batch))
        for document, result in zip(batch, results, strict=True):
            if isinstance(document, Broken):
                outcome.kinds.add("")
                outcome.failed(str(document))
                continue
            outcome.kinds.add(str(document.value.get("kind", "")))
            if isinstance(result, Exception):
                outcome.failed("\n".join(messages(document, result)))
            else:
                outcome.held(result)
        progress(len(batch))
    return outcome


async def _one(document: Input, step: Step) -> Written | Exception | None:
    if isinstance(document, Broken):
        return None
    try:
        return await step(document)
    except (ResourceError, NamespaceProblem) as error:
        return error


def batches(documents: Sequence[Input]) -> Iterator[list[Input]]:
    """Documents that may be worked on at the same time: neighbours of one kind that look at no others of their own
    kind, each of another name. All else is done one by one, so that a tier is there before the policy after it.
    """
    batch: list[Input] = []
    kind, names = "", set[tuple[str, str, str]]()
    for document in documents:
        name = _name(document)
        if batch and (name is None or name[0] != kind or name in names or len(batch) == AT_ONCE):
            yield batch
            batch, names = [], set()
        if name is None:
            yield [document]
            continue
        kind = name[0]
        batch.append(document)
        names.add(name)
    if batch:
        yield batch


def _name(document: Input) -> tuple[str, str, str] | None:
    """(kind, namespace, name) of one that may have neighbours."""
    if isinstance(document, Broken) or document.value.get("kind") not in INDEPENDENT:
        return None
    metadata = document.value.get("metadata")
    if not isinstance(metadata, dict):
        return None
    return str(document.value["kind"]), str(metadata.get("namespace") or ""), str(metadata.get("name"))


def summary(verb: str, past: str, outcome: Outcome) -> tuple[str, str]:
    """(for standard output, for standard error); the second is empty when all went well."""
    what = outcome.what
    if not outcome.total:
        return "No resources specified", ""
    if not outcome.failures:
        return f"Successfully {past} {outcome.done} {what}resource(s)", ""
    errors = "\n".join(outcome.failures)
    if outcome.done and verb == "delete":
        good = f"Successfully {past} {outcome.done} {what}resource(s)"
        return good, "\n".join(f"Failed to delete {what}resource: {failure}" for failure in outcome.failures)
    if outcome.done:
        counted = f"the first {outcome.done}" if outcome.first else str(outcome.done)
        return f"Partial success: {past} {counted} out of {outcome.total} {what}resources:", f"Hit error(s):\n{errors}"
    if outcome.total == 1:
        return "", f"Failed to {verb} {what}resource: {errors}"
    return "", f"Failed to {verb} any {what}resources:\n{errors}"


class LabelProblem(Exception):
    """The label is there already, or is not there to remove."""


async def label(
    client: Resources, identity: Identity, shown_kind: str, key: str, value: str | None, *, overwrite: bool
) -> str:
    """Set a label, or remove it when value is None; returns the message of success. Again when somebody was faster."""
    target = f"{shown_kind} {identity.name}"
    for _ in range(MAX_TRIES):
        resource = await client.get(identity.kind, identity.name, identity.namespace)
        labels = dict(resource.metadata.labels)
        there = labels.get(key)
        if value is None:
            if there is None:
                raise LabelProblem(f"cannot remove label of {target}, key {key} does not exist")
            del labels[key]
            message = f"Successfully removed label {key} from {target}"
        else:
            if there is not None and there != value and not overwrite:
                raise LabelProblem(
                    f"failed to update label of {target}, key {key} is already present. "
                    "please use '--overwrite' to set a new value."
                )
            labels[key] = value
            message = f"Successfully {'set' if there is None else 'updated'} label {key} on {target}"
        try:
            await client.update(codec.with_metadata(resource, labels=labels))
        except Conflict:
            continue
        return message
    raise Conflict(identity)
