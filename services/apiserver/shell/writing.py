"""Create, update, patch, apply and delete: what a request asks for, checked against the user's tiers and carried out by
`libs.resources.client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random

from libs.model.base import Resource
from libs.model.storage import rfc3339
from libs.resources.client import Approve, Edit, ResourceClient, Written
from libs.resources.errors import AlreadyExists, Identity, NotFound, ResourceError
from libs.resources.options import WriteOptions
from libs.store.api import StoreError
from services.apiserver.core import changes, documents, faults, objects
from services.apiserver.core.changes import Write
from services.apiserver.core.managed import ApplyConflict, ApplyRefused
from services.apiserver.core.negotiation import PatchKind
from services.apiserver.core.options import DeleteOptions, WriteQuery
from services.apiserver.core.ports import Authorizer, Stored, TierAccess
from services.apiserver.core.request import API_PREFIX, RequestInfo, Target, User, Verb
from services.apiserver.core.selectors import tier_of
from services.apiserver.core.status import ApiError, JsonObject, bad_request, conflict, forbidden

NAME_TRIES = 8
"""For a name that is generated, as kube-apiserver tries."""
EDIT_TRIES = 40
DELETES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Body:
    """raw: bytes of the request; yaml: how to read them."""

    raw: bytes
    yaml: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    written: Written
    warnings: list[str]


class Writing:
    """Raises ApiError."""

    def __init__(
        self,
        resources: ResourceClient,
        tiers: TierAccess,
        authorizer: Authorizer,
        *,
        now: Callable[[], datetime],
        random: Random,
    ) -> None:
        self._resources, self._tiers, self._authorizer = resources, tiers, authorizer
        self._now, self._random = now, random

    # --- create ------------------------------------------------------------------------------------------------------

    async def create(self, user: User, target: Target, body: Body, query: WriteQuery) -> Done:
        kind = target.kind
        value, warnings = documents.read(body.raw, yaml=body.yaml, kind=kind, validation=query.validation)
        generated = not objects.metadata_of(value).get("name")
        for left in reversed(range(NAME_TRIES if generated else 1)):
            resource = changes.created(value, self._write(target, query), self._random)
            try:
                return Done(await self._create(user, target, resource, query), warnings)
            except ApiError as error:
                if error.reason != "AlreadyExists" or not left:
                    raise
        raise AssertionError("the last try either returns or raises")

    async def _create(self, user: User, target: Target, resource: Resource, query: WriteQuery) -> Written:
        name = resource.metadata.name
        objects.refuse_read_only(target.kind, "create", name)
        await self._check_tier(user, Verb.CREATE, replace(target, name=name), resource)
        try:
            return await self._resources.create(resource, _options(query.dry_run))
        except (ResourceError, StoreError) as error:
            raise _told(error, target, name) from error

    # --- update ------------------------------------------------------------------------------------------------------

    async def update(self, user: User, target: Target, body: Body, query: WriteQuery) -> Done:
        kind = target.kind
        objects.refuse_read_only(kind, "update", target.name)
        value, warnings = documents.read(body.raw, yaml=body.yaml, kind=kind, validation=query.validation)
        objects.check_names(value, target)
        objects.demand_version(value, target)
        write = self._write(target, query)

        async def change(live: Resource) -> Resource:
            await self._check_tier(user, Verb.UPDATE, target, live)
            wanted = changes.updated(live, value, write)
            await self._check_move(user, Verb.UPDATE, target, live, wanted)
            return wanted

        return Done(await self._edit(user, Verb.UPDATE, target, change, query), warnings)

    async def patch(self, user: User, target: Target, body: Body, kind: PatchKind, query: WriteQuery) -> Done:
        objects.refuse_read_only(target.kind, "patch", target.name)
        if kind is PatchKind.APPLY:
            return await self._apply(user, target, body, query)
        try:
            decoded = documents.decode(body.raw, yaml=False)
        except ValueError as error:
            raise bad_request(f"error decoding patch: {error}") from error
        if decoded.faults and query.validation == "Strict":
            raise bad_request(f"strict decoding error: {', '.join(decoded.faults)}")
        write = self._write(target, query)
        faults_of_patch = list(decoded.faults) if query.validation == "Warn" else []
        warnings: list[str] = []

        async def change(live: Resource) -> Resource:
            await self._check_tier(user, Verb.PATCH, target, live)
            wanted, found = changes.patched(live, decoded.value, kind, write)
            warnings[:] = [*faults_of_patch, *found]
            await self._check_move(user, Verb.PATCH, target, live, wanted)
            return wanted

        return Done(await self._edit(user, Verb.PATCH, target, change, query), warnings)

    async def _apply(self, user: User, target: Target, body: Body, query: WriteQuery) -> Done:
        """Server-side apply: creates what is not there, for who may create."""
        wanted, warnings = documents.read(
            body.raw, yaml=True, kind=target.kind, validation=query.validation, nulls=True
        )
        objects.check_names(wanted, target)
        write = self._write(target, query)

        async def change(live: Resource) -> Resource:
            await self._check_tier(user, Verb.PATCH, target, live)
            changed = _applied(live, wanted, write)
            await self._check_move(user, Verb.PATCH, target, live, changed)
            return changed

        for left in reversed(range(NAME_TRIES)):
            try:
                return Done(await self._edit(user, Verb.PATCH, target, change, query), warnings)
            except ApiError as error:
                if not isinstance(error.__cause__, NotFound) or target.subresource:
                    raise
            try:
                return Done(await self._apply_new(user, target, wanted, write), warnings)
            except ApiError as error:
                if not isinstance(error.__cause__, AlreadyExists) or not left:
                    raise
        raise AssertionError("the last try either returns or raises")

    async def _apply_new(self, user: User, target: Target, wanted: JsonObject, write: Write) -> Written:
        uid = objects.metadata_of(wanted).get("uid")
        if uid:
            message = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise conflict(target.kind.plural, target.name, message)
        path = f"{API_PREFIX}/{f'namespaces/{target.namespace}/' if target.namespace else ''}{target.kind.plural}"
        info = RequestInfo(Verb.CREATE, path, target)
        decision = await self._authorizer.decide(user, info)
        if not decision.allowed:
            message = f'User "{user.name}" cannot create resource "{target.kind.plural}": {decision.reason}'
            raise forbidden(target.kind.plural, target.name, message.removesuffix(": "))
        return await self._create(user, target, _applied(None, wanted, write), write.query)

    async def _edit(self, user: User, verb: str, target: Target, change: Edit, query: WriteQuery) -> Written:
        identity = Identity(target.kind.kind, target.name, target.namespace)
        options = _options(query.dry_run)
        try:
            return await self._resources.edit(identity, change, options)
        except NotFound as error:
            await self._check_absent(user, verb, target)
            raise _told(error, target, target.name) from error
        except (ResourceError, StoreError) as error:
            raise _told(error, target, target.name) from error

    # --- delete ------------------------------------------------------------------------------------------------------

    async def delete(self, user: User, target: Target, options: DeleteOptions) -> Written:
        objects.refuse_read_only(target.kind, "delete", target.name)

        async def approve(live: Resource) -> None:
            await self._check_tier(user, Verb.DELETE, target, live)

        try:
            return await self._delete(target, options, approve if target.kind.policy else None)
        except ApiError as error:
            if isinstance(error.__cause__, NotFound):
                await self._check_absent(user, Verb.DELETE, target)
            raise

    async def delete_all(self, user: User, target: Target, items: list[Stored], options: DeleteOptions) -> None:
        """Each of `items`, unless it has gone or is another one now. Nothing goes when the user may not delete in one
        of their tiers.
        """
        objects.refuse_read_only(target.kind, "deletecollection", "")
        if target.kind.policy:
            for tier in sorted({tier_of(item.resource) for item in items}):
                await self._tiers.check(user, Verb.DELETE_COLLECTION, target, tier)
        room = asyncio.Semaphore(DELETES_AT_ONCE)

        async def one(item: Stored) -> None:
            metadata = item.resource.metadata
            each = replace(target, name=metadata.name, namespace=metadata.namespace)
            tier = tier_of(item.resource)

            async def approve(live: Resource) -> None:
                if target.kind.policy and tier_of(live) != tier:  # it moved meanwhile
                    await self._tiers.check(user, Verb.DELETE_COLLECTION, target, tier_of(live))

            async with room:
                objects.refuse_read_only(target.kind, "delete", each.name)
                try:
                    await self._delete(each, options, approve)
                except ApiError as error:
                    if not isinstance(error.__cause__, NotFound):
                        raise

        results = await asyncio.gather(*map(one, items), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _delete(self, target: Target, options: DeleteOptions, approve: Approve | None) -> Written:
        try:
            return await self._resources.delete(
                target.kind.kind,
                target.name,
                target.namespace,
                approve=approve,
                preconditions=options.preconditions,
                options=_options(options.dry_run),
            )
        except (ResourceError, StoreError) as error:
            raise _told(error, target, target.name) from error

    # --- parts -------------------------------------------------------------------------------------------------------

    def _write(self, target: Target, query: WriteQuery) -> Write:
        return Write(target, query, rfc3339(self._now()))

    async def _check_tier(self, user: User, verb: str, target: Target, resource: Resource) -> None:
        if target.kind.policy:
            await self._tiers.check(user, verb, target, tier_of(resource))

    async def _check_absent(self, user: User, verb: str, target: Target) -> None:
        if target.kind.policy:
            await self._tiers.check_absent(user, verb, target)

    async def _check_move(self, user: User, verb: str, target: Target, live: Resource, wanted: Resource) -> None:
        """A policy that changes its tier needs both."""
        if target.kind.policy and tier_of(wanted) != tier_of(live):
            await self._tiers.check(user, verb, target, tier_of(wanted))


def _options(dry_run: bool) -> WriteOptions:
    return WriteOptions(dry_run=dry_run, generation=True, finalizers=True, tries=EDIT_TRIES)


def _applied(live: Resource | None, wanted: JsonObject, write: Write) -> Resource:
    try:
        return changes.applied(live, wanted, write)
    except (ApplyConflict, ApplyRefused) as error:
        raise error.api_error() from error


def _told(error: ResourceError | StoreError, target: Target, name: str) -> ApiError:
    if isinstance(error, ResourceError):
        return faults.of_resource(error, target.kind, name)
    return faults.of_store(error)
