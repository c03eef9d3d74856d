"""`calicoctl datastore migrate import`: what `export` wrote, into an empty datastore, which stays locked until the user
unlocks it.

Nothing is written before the whole file is read and the datastore is found to be empty. An import that was cut short
leaves resources behind, so it cannot be taken for a whole one: it is started again on an empty datastore.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from libs.ipam import keys
from libs.model.cluster import ClusterInformation
from libs.model.policy import BUILT_IN_TIERS
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import ValidationError
from libs.resources.rules import is_built_in
from libs.store.api import KeyExists, Store
from services.calicoctl import actions, lock
from services.calicoctl.actions import Outcome, Progress
from services.calicoctl.documents import Broken, Document
from services.calicoctl.export import EXPORTED, ONLY_FOR_ETCD, SEPARATOR
from services.calicoctl.files import parse

FIRST = ("Tier", "BGPFilter", "Node", "IPPool")
"""Kinds that others refer to. Calico's file has filters behind the peers that name them."""
AT_ONCE = 32

Json = dict[str, Any]


class ImportProblem(Exception):
    """The file or the datastore cannot be used; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Of the file. ipam: (key, value to store)."""

    documents: list[Document]
    cluster: ClusterInformation
    ipam: list[tuple[str, bytes]]


def read(text: str, source: str) -> Parts:
    """Raises ImportProblem with the place of the first fault."""
    parts = text.split(SEPARATOR)
    if len(parts) != 3:
        raise ImportProblem(
            f"{source}: expected three parts with a line `===` between them, found {len(parts)}; "
            "make it again with `calicoctl datastore migrate export`"
        )
    documents: list[Document] = []
    for found in parse(parts[0], source):
        if isinstance(found, Broken):
            raise ImportProblem(str(found))
        documents.append(found)
    documents.sort(key=_rank)
    return Parts(documents, _cluster(parts[1], source), _ipam(parts[2], source))


def _rank(document: Document) -> int:
    kind = document.value.get("kind")
    return FIRST.index(kind) if isinstance(kind, str) and kind in FIRST else len(FIRST)


def _cluster(text: str, source: str) -> ClusterInformation:
    try:
        found = codec.from_json(_object(text, source, "cluster information"))
    except ValidationError as error:
        raise ImportProblem(f"{source}: cluster information: {error}") from error
    if not isinstance(found, ClusterInformation):
        raise ImportProblem(f"{source}: the second part is no ClusterInformation")
    return found


def _object(text: str, source: str, what: str) -> Json:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ImportProblem(f"{source}: {what}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImportProblem(f"{source}: {what}: expected an object")
    return value


def _ipam(text: str, source: str) -> list[tuple[str, bytes]]:
    value = _object(text, source, "IPAM")
    pairs = [pair for name in ("block_affinities", "blocks", "handles") for pair in value.get(name) or []]
    if value.get("config"):
        pairs.append({**value["config"], "Key": keys.CONFIG})
    found = []
    for pair in pairs:
        key = pair.get("Key") if isinstance(pair, dict) else None
        if not isinstance(key, str) or not key.startswith(keys.PREFIX) or not isinstance(pair.get("Value"), dict):
            raise ImportProblem(f"{source}: IPAM: expected a Key below {keys.PREFIX} and a Value, found {pair!r:.120}")
        found.append((key, json.dumps(pair["Value"], separators=(",", ":")).encode()))
    return found


async def check_empty(client: ResourceClient) -> None:
    """Raises ImportProblem. Built-in tiers and profiles, and a locked ClusterInformation, do not count."""
    for kind in (*EXPORTED, *ONLY_FOR_ETCD):
        for item in (await client.list(kind)).items:
            if not is_built_in(item) and not (kind == "Tier" and item.metadata.name in BUILT_IN_TIERS):
                raise ImportProblem(
                    f"Datastore already has Calico resources: {codec.identity(item)}. Import into an empty one."
                )
    if (await client.store.list(keys.PREFIX, keys_only=True)).kvs:
        raise ImportProblem("Datastore already has IPAM resources. Import into an empty one.")
    for item in (await client.list("ClusterInformation")).items:
        if isinstance(item, ClusterInformation) and item.spec.datastore_ready is not False:
            raise ImportProblem(
                "datastore is not locked. Run the `calicoctl datastore migrate lock` command on it before the import"
            )


async def import_all(
    client: ResourceClient, parts: Parts, progress: Progress = actions.nobody
) -> tuple[Outcome, list[str]]:
    """(what became of the resources, IPAM keys that could not be written). Raises ImportProblem before any change."""
    await check_empty(client)
    await client.ensure_initialized()
    await lock.set_lock(client, locked=True)
    outcome = await actions.run(actions.verb("apply"), client, parts.documents, progress=progress)
    if outcome.failures:
        return outcome, []
    await _take_cluster(client, parts.cluster)
    failures: list[str] = []
    for start in range(0, len(parts.ipam), AT_ONCE):
        chunk = parts.ipam[start : start + AT_ONCE]
        failures += [text for text in await asyncio.gather(*(_put(client.store, *pair) for pair in chunk)) if text]
        progress(len(chunk))
    return outcome, failures


async def _put(store: Store, key: str, value: bytes) -> str:
    try:
        await store.create(key, value)
    except KeyExists:
        return f"{key}: was made by somebody else meanwhile"
    return ""


async def _take_cluster(client: ResourceClient, exported: ClusterInformation) -> None:
    """The cluster stays the one it was: its GUID, type and version; the lock is the datastore's own."""
    given = exported.spec
    await lock.change_cluster(
        client,
        lambda spec: msgspec.structs.replace(
            spec,
            cluster_guid=given.cluster_guid or spec.cluster_guid,
            calico_version=given.calico_version or spec.calico_version,
            cluster_type=given.cluster_type or spec.cluster_type,
        ),
    )


def steps(parts: Parts) -> int:
    """For progress."""
    return len(parts.documents) + len(parts.ipam)


def failures_text(failures: Sequence[str]) -> str:
    return "Hit error(s):\n" + "\n".join(failures)
