"""What `get` asks the datastore for."""

from __future__ import annotations

from collections.abc import Sequence

from libs.resources import codec
from libs.resources.api import Resources
from libs.resources.errors import Identity, NotFound, ResourceError
from services.calicoctl.actions import NamespaceProblem, messages, placed
from services.calicoctl.columns import DEFAULT_AS_NUMBER, Resource, lookup, text
from services.calicoctl.documents import Broken, Document
from services.calicoctl.output import Answer


async def listed(client: Resources, kind: str, namespace: str, *, everywhere: bool) -> Answer:
    """All of a kind in one namespace, or in all. Raises NamespaceProblem."""
    where = placed(Identity(kind, ""), namespace, everywhere=everywhere)
    found = await client.list(kind, where.namespace)
    resources = [codec.to_json(item) for item in found.items]
    if kind == "Tier":
        resources.sort(key=_order)
    return Answer(kind, resources, found.revision)


def _order(tier: Resource) -> float:
    order = lookup(tier, "spec.order")
    return float(order) if isinstance(order, (int, float)) else float("inf")


async def named(
    client: Resources, documents: Sequence[Document | Broken], namespace: str, *, everywhere: bool = False
) -> tuple[list[Answer], list[str]]:
    """Each resource that a document names, and a message for each that cannot be had."""
    answers: list[Answer] = []
    problems: list[str] = []
    for document in documents:
        if isinstance(document, Broken):
            problems.append(str(document))
            continue
        try:
            if everywhere:
                raise NamespaceProblem("cannot use --all-namespace flag for getting a single resource")
            identity = placed(codec.named(document.value), namespace)
            found = await client.get(identity.kind, identity.name, identity.namespace)
        except (ResourceError, NamespaceProblem) as error:
            problems += messages(document, error)
        else:
            answers.append(Answer(identity.kind, [codec.to_json(found)]))
    return answers, problems


async def cluster_as_number(client: Resources) -> str:
    """AS number of nodes that have none of their own."""
    try:
        found = codec.to_json(await client.get("BGPConfiguration", "default"))
    except NotFound:
        return DEFAULT_AS_NUMBER
    number = lookup(found, "spec.asNumber")
    return DEFAULT_AS_NUMBER if number is None else text(number)
