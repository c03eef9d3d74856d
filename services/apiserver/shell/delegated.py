"""Behind a kube-apiserver: it decides who somebody is (TokenReview), what that one may do (SubjectAccessReview) and
which proxy may speak for others (the ConfigMap extension-apiserver-authentication).

Answers are kept for a short while, a question is asked once however many wait for it, and no answer is a no.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from libs.kube.api import KubeError
from libs.runtime.backoff import Backoff
from services.apiserver.core.attributes import Attributes, attributes_of
from services.apiserver.core.bounded import Recent
from services.apiserver.core.identity import HeaderNames, fingerprint
from services.apiserver.core.ports import Decision
from services.apiserver.core.request import RequestInfo, User
from services.apiserver.core.reviews import Granted
from services.apiserver.core.status import ApiError, JsonObject, unauthorized, unavailable
from services.apiserver.shell.certificates import Bundle

log = logging.getLogger(__name__)

ACCESS_PATH = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
TOKEN_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
CONFIG_PATH = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
REMEMBERED = 8192
TRIES = 3
TOTAL_S = 12.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Api(Protocol):
    """What of `KubeApi` is used here."""

    async def get(self, path: str) -> JsonObject: ...
    async def create(self, path: str, body: JsonObject) -> JsonObject: ...


class Asked(Generic[K, V]):
    """A cache with one question in flight for each key. keep_s: for how long an answer is good."""

    def __init__(self, keep_s: Callable[[V], float], clock: Callable[[], float]) -> None:
        self._keep_s, self._clock = keep_s, clock
        self._recent: Recent[K, V] = Recent(REMEMBERED)
        self._flights: dict[K, asyncio.Future[V]] = {}
        self.hits = 0

    async def get(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        while True:
            found = self._recent.get(key, self._clock())
            if found is not None:
                self.hits += 1
                return found
            flight = self._flights.get(key)
            if flight is None:
                return await self._fly(key, ask)
            try:
                return await asyncio.shield(flight)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not flight.cancelled() or (task is not None and task.cancelling()):
                    raise
                # Whoever asked for us went away: ask ourselves.

    async def _fly(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        flight: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            value = await ask()
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # seen, also when nobody else waits
            raise
        except BaseException:
            flight.cancel()
            raise
        else:
            flight.set_result(value)
            self._recent.put(key, value, self._clock() + self._keep_s(value))
            return value
        finally:
            del self._flights[key]


async def _insist(api: Api, path: str, body: JsonObject, random: Random, count: Callable[[str], None]) -> JsonObject:
    """Asks again what may succeed then. Raises KubeError of the last try."""
    backoff = Backoff(random, first_s=0.2, cap_s=2.0)
    for attempt in range(1, TRIES + 1):
        try:
            answer = await api.create(path, body)
        except KubeError as error:
            count(str(error.code) if error.code else "<error>")
            if not error.transient or attempt == TRIES:
                raise
            await asyncio.sleep(backoff.next_s())
        else:
            count("201")
            return answer
    raise AssertionError("unreachable")


class AccessReviews:
    """A Judge and an Authorizer that asks a kube-apiserver."""

    def __init__(
        self,
        api: Api,
        *,
        allowed_s: float = 10.0,
        denied_s: float = 10.0,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._api, self._random, self._count = api, random, count
        self._asked: Asked[Hashable, Decision] = Asked(lambda found: allowed_s if found.allowed else denied_s, clock)

    async def authorize(self, user: User, attributes: Attributes) -> Decision:
        extra = tuple(sorted(user.extra.items()))
        key = (user.name, user.uid, user.groups, extra, attributes)
        return await self._asked.get(key, lambda: self._ask(user, attributes))

    def granted(self, user: User, namespace: str) -> Granted:
        return Granted((), "a kube-apiserver that is asked for each request does not list what it would allow")

    async def decide(self, user: User, info: RequestInfo) -> Decision:
        return await self.authorize(user, attributes_of(info))

    async def _ask(self, user: User, attributes: Attributes) -> Decision:
        try:
            async with asyncio.timeout(TOTAL_S):
                answer = await _insist(
                    self._api, ACCESS_PATH, access_review(user, attributes), self._random, self._count
                )
        except (KubeError, TimeoutError) as error:
            log.error(
                "access review failed, the request is refused", extra={"error": str(error) or "no answer in time"}
            )
            raise unavailable("the authorization of this request could not be checked") from error
        status = _mapping(answer, "status")
        reason = str(status.get("reason") or "")
        if status.get("evaluationError"):
            log.warning("access review in part only", extra={"error": str(status["evaluationError"])})
        return Decision(status.get("allowed") is True and status.get("denied") is not True, reason)


def access_review(user: User, attributes: Attributes) -> JsonObject:
    spec: JsonObject = {"user": user.name}
    if user.groups:
        spec["groups"] = list(user.groups)
    if user.uid:
        spec["uid"] = user.uid
    if user.extra:
        spec["extra"] = {key: list(values) for key, values in user.extra.items()}
    if attributes.resource:
        named = {
            "verb": attributes.verb, "group": attributes.group, "version": attributes.version,
            "resource": attributes.resource, "subresource": attributes.subresource,
            "namespace": attributes.namespace, "name": attributes.name,
        }  # fmt: skip
        spec["resourceAttributes"] = {key: str(value) for key, value in named.items() if value}
    else:
        spec["nonResourceAttributes"] = {"path": attributes.path, "verb": str(attributes.verb)}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


class TokenReviews:
    """Users by tokens that a kube-apiserver knows. key: of `fingerprint`; tokens themselves are not kept."""

    def __init__(
        self,
        api: Api,
        key: bytes,
        *,
        keep_s: float = 10.0,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._api, self._key, self._random, self._count = api, key, random, count
        self._asked: Asked[bytes, User | ApiError] = Asked(lambda _: keep_s, clock)

    async def user(self, token: str) -> User | None:
        """None for a token that is no good. Raises ApiError 401 when it could not be checked."""
        found = await self._asked.get(fingerprint(self._key, token), lambda: self._ask(token))
        return found if isinstance(found, User) else None

    async def _ask(self, token: str) -> User | ApiError:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        try:
            async with asyncio.timeout(TOTAL_S):
                answer = await _insist(self._api, TOKEN_PATH, body, self._random, self._count)
        except (KubeError, TimeoutError) as error:
            log.error("token review failed, the request is refused", extra={"error": str(error) or "no answer in time"})
            raise unauthorized() from error
        status = _mapping(answer, "status")
        found = _mapping(status, "user")
        if status.get("authenticated") is not True or not found.get("username"):
            return unauthorized()
        extra = {str(key).lower(): _texts(values) for key, values in _mapping(found, "extra").items()}
        return User(str(found["username"]), _texts(found.get("groups")), str(found.get("uid") or ""), extra)


def _mapping(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(map(str, values)) if isinstance(values, list) else ()


class ClusterTrust:
    """What the cluster's ConfigMap says about the proxy and about client certificates, kept up to date.

    take(client authorities, proxy's authorities, headers): called when something changed.
    """

    def __init__(self, api: Api, take: Callable[[Bundle | None, Bundle | None, HeaderNames], None]) -> None:
        self._api, self._take = api, take
        self._seen: Mapping[str, Any] | None = None

    async def refresh(self) -> None:
        """Raises KubeError, ValueError."""
        data = _mapping(await self._api.get(CONFIG_PATH), "data")
        if data == self._seen:
            return
        self._take(*read_trust(data))
        self._seen = dict(data)
        log.info("the cluster's authentication settings taken", extra={"keys": sorted(data)})

    async def follow(self, every_s: float, random: Random, report: Callable[[str], None]) -> None:
        """report: "" after a success, else what is wrong."""
        backoff = Backoff(random, first_s=min(0.5, every_s), cap_s=every_s)
        while True:
            try:
                await self.refresh()
            except (KubeError, ValueError, OSError) as error:
                report(f"extension-apiserver-authentication: {error}")
                log.warning("the cluster's authentication settings not read", extra={"error": str(error)})
                await asyncio.sleep(backoff.next_s())
            else:
                report("")
                backoff.reset()
                await asyncio.sleep(every_s)


def read_trust(data: Mapping[str, Any]) -> tuple[Bundle | None, Bundle | None, HeaderNames]:
    """Keys as kube-apiserver writes them: PEM bundles, and lists of names as JSON. Raises ValueError."""

    def bundle(key: str) -> Bundle | None:
        text = str(data.get(key) or "")
        return Bundle(text.encode()) if text.strip() else None

    def names(key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        text = data.get(key)
        if not text:
            return tuple(default)
        found = json.loads(text)
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise ValueError(f"{key} is no list of names")
        return tuple(found)

    headers = HeaderNames(
        usernames=names("requestheader-username-headers"),
        groups=names("requestheader-group-headers"),
        extra_prefixes=names("requestheader-extra-headers-prefix"),
        uids=names("requestheader-uid-headers", ("X-Remote-Uid",)),
        allowed=names("requestheader-allowed-names"),
    )
    return bundle("client-ca-file"), bundle("requestheader-client-ca-file"), headers
