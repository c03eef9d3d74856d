"""What the parts of the apiserver ask of each other.

front (authn, authz, limits, TLS, audit)  →  verbs (get, list, create …)  →  libs.resources  →  etcd
                                                ↓
                                              cache (one etcd watch for all kinds, a window of recent changes of each)
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
    whether it wanted the one before and wants the one after. before: as the object was, but stamped with `revision`,
    since that is how a watcher is shown what it no longer has.
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
    """Changes in order of revision, each once, a revision never torn. Raises ApiError 410 when the reader fell behind
    the window or etcd has another history now; ends when the reader shall come again (a tier came or went, shutdown).
    Waiting for the next may be cancelled without loss. `revision`: everything up to it has been told (bookmarks carry
    it).
    """

    @property
    def revision(self) -> int: ...
    def __aiter__(self) -> AsyncIterator[Sequence[Change]]: ...
    async def __anext__(self) -> Sequence[Change]: ...
    async def aclose(self) -> None: ...


class Cache(Protocol):
    @property
    def revision(self) -> int:
        """Up to which everything is in; 0 before the first listing."""
        ...

    async def latest(self) -> int:
        """The newest revision of etcd, by a linearizable read: what a consistent list demands `at_least`. Raises
        ApiError 503.
        """
        ...

    async def list(self, kind: Kind, *, at_least: int = 0) -> Snapshot:
        """From memory, at the cache's revision; waits until that is `at_least`. Raises ApiError 504 when it takes too
        long, 503 before the first listing.
        """
        ...

    def has(self, kind: Kind, key: str, revision: int) -> Stored | None:
        """The object at that key, if it is here as it was last changed at that revision."""
        ...

    async def watch(self, kind: Kind, *, since: int, decided_at: int | None = None) -> Watch:
        """All changes after `since`. Raises ApiError 410 when neither the window nor etcd has them any more.

        decided_at: `revision` as it was when the reader's tiers were looked up (default: now). A tier that comes or
        goes after it ends the watch of a policy kind.
        """
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

    async def check_absent(self, user: User, verb: str, target: Target) -> None:
        """Before a user is told that there is no such policy: of the tier that its name begins with (`<tier>.`), else
        that there is any tier in which the user may do that. Raises ApiError 403.
        """
        ...

    async def readable(self, user: User, verb: str, target: Target, wanted: Sequence[str] | None) -> frozenset[str]:
        """Of the tiers `wanted` by selectors (None: of all that there are) those that the user may list or watch.
        Raises ApiError 403 when tiers were asked for by name and none is left.
        """
        ...
