"""What the parts of the apiserver ask of each other.

front (authn, authz, limits, TLS, audit)  →  verbs (get, list, create …)  →  libs.resources  →  etcd
                                                ↓
                                              cache (one etcd watch for each kind, a window of recent changes)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.model.base import Resource
from libs.model.kinds import Kind
from services.apiserver.core.request import RequestInfo, Target, User

Keep = Callable[[Resource], bool]
"""Whether a reader wants the object: its selectors, its namespace and the tiers it may read, all in one."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it stands at `revision` (its own last change). json: as clients get it, encoded once for all."""

    key: str
    resource: Resource
    json: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One object changed at `revision`. Created: before None; deleted: after None. What a watcher is told depends on
    whether it wanted the one before and wants the one after.
    """

    revision: int
    before: Stored | None
    after: Stored | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of a kind at `revision`, sorted by key."""

    items: Sequence[Stored]
    revision: int


class Watch(Protocol):
    """Changes in order of revision, each once. Raises ApiError: 410 when the reader fell behind the window, 503 when
    etcd went another history. `revision`: everything up to it has been told (bookmarks carry it).
    """

    @property
    def revision(self) -> int: ...
    def __aiter__(self) -> AsyncIterator[Sequence[Change]]: ...
    async def aclose(self) -> None: ...


class Cache(Protocol):
    async def list(self, kind: Kind, *, at_least: int = 0) -> Snapshot:
        """From memory, at the cache's revision; waits until that is `at_least`. Raises ApiError 504 when it takes too
        long, 503 before the first listing.
        """
        ...

    async def watch(self, kind: Kind, *, since: int) -> Watch:
        """All changes after `since`. Raises ApiError 410 when they are no longer in the window."""
        ...


class Authorizer(Protocol):
    """Kubernetes' question: may this user do that? Never raises for a refusal; ApiError 500 or 503 when nobody could
    answer (which is a refusal as well).
    """

    async def decide(self, user: User, info: RequestInfo) -> Decision: ...


@dataclass(frozen=True, slots=True)
class Decision:
    """reason: of the authoriser, for the message; may be empty."""

    allowed: bool
    reason: str = ""


class TierAccess(Protocol):
    """Calico's tier RBAC (facts/cni-typha-node-bgp-ctl.md section 6.3), over an Authorizer."""

    async def check(self, user: User, verb: str, target: Target, tier: str) -> None:
        """Raises ApiError 403 that names the tier. target.name "": the verb on all of the tier's (`<tier>.*`)."""
        ...

    async def readable(self, user: User, verb: str, target: Target, wanted: Sequence[str] | None) -> frozenset[str]:
        """Of the tiers `wanted` by selectors (None: of all that there are) those that the user may list or watch.
        Raises ApiError 403 when tiers were asked for by name and none is left.
        """
        ...
