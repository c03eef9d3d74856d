"""`--dry-run=server`: what a command would change, as a unified diff of the YAML that users know.

The datastore's own fields are left out: they change with every write.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from libs.model.base import Resource
from libs.model.yamltext import dump_yaml
from libs.resources import codec
from libs.resources.api import Resources
from libs.resources.client import Written
from libs.resources.errors import Identity, NotFound
from services.calicoctl.actions import Verb

_OF_THE_DATASTORE = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink")
COLOURS = {"-": "red", "+": "green", "@": "cyan"}


@dataclass(slots=True)
class Tried:
    """Before and after of every resource that the verb would have written; None where it is not there."""

    changes: list[tuple[Identity, Resource | None, Resource | None]] = field(default_factory=list)

    def watching(self, verb: Verb) -> Verb:
        """The same verb, which notes here what it does."""

        async def act(client: Resources, resource: Resource) -> Written:
            identity = codec.identity(resource)
            try:
                before = await client.get(identity.kind, identity.name, identity.namespace)
            except NotFound:
                before = None
            written = await verb.act(client, resource)
            self.changes.append((identity, before, None if verb.name == "delete" else written.resource))
            return written

        return replace(verb, act=act)

    def diff(self) -> Iterator[str]:
        for identity, before, after in self.changes:
            yield from difflib.unified_diff(
                _lines(before), _lines(after), _label("a", identity, before), _label("b", identity, after), lineterm=""
            )


def _label(side: str, identity: Identity, resource: Resource | None) -> str:
    if resource is None:
        return "/dev/null"
    return "/".join(part for part in (side, identity.kind.lower(), identity.namespace, identity.name) if part)


def _lines(resource: Resource | None) -> list[str]:
    if resource is None:
        return []
    value = codec.to_json(resource)
    kept = {name: field for name, field in value["metadata"].items() if name not in _OF_THE_DATASTORE}
    return dump_yaml({**value, "metadata": kept}).splitlines()
