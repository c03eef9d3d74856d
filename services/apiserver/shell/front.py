"""The way of a request: who asks, may that be, is there room, its body; then the handler, and what is told of it.

Order as in a kube-apiserver (k8s.io/apiserver, pkg/server/config.go, DefaultBuildHandlerChain). Handlers find
`request["user"]`, `request["info"]` and the body already read, and raise ApiError; whatever they raise becomes a
`Status`.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
import uuid
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import yaml
from aiohttp import web

from libs.model.scalars import parse_duration
from libs.store.api import StoreError
from services.apiserver.core import audit
from services.apiserver.core import request as requests
from services.apiserver.core.attributes import attributes_of, refusal
from services.apiserver.core.bounded import Buckets
from services.apiserver.core.identity import impersonated, printable
from services.apiserver.core.rbac import MASTERS
from services.apiserver.core.request import RequestInfo, Verb
from services.apiserver.core.status import (
    ApiError,
    JsonObject,
    bad_request,
    internal,
    method_not_allowed,
    not_found_path,
    too_large,
    too_many_requests,
    unavailable,
)  # fmt: skip
from services.apiserver.metrics import Metrics
from services.apiserver.shell.audit import Sink
from services.apiserver.shell.authn import Authenticator, Who
from services.apiserver.shell.authz import Authorization
from services.apiserver.shell.limits import BUSY, MUTATING, SERVER, InFlight
from services.apiserver.shell.probes import PATHS

log = logging.getLogger(__name__)
requests_log = logging.getLogger("services.apiserver.requests")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RECORD = web.RequestKey("record", audit.Record)
RESPONSE = web.RequestKey("response", web.StreamResponse)
"""The answer, once its head is out."""
CLIENT_GONE = 499
"""In the log and in metrics, as nginx writes it."""
GZIP_FROM_BYTES = 128 * 1024
_STANDARD = {"Cache-Control": "no-cache, private", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Bounds:
    max_body_bytes: int = 3 * 1024 * 1024
    body_timeout_s: float = 30.0
    request_timeout_s: float = 60.0


class Front:
    """Middleware of the application. stopping: from the first signal on. `end_watches` lets them end in order."""

    def __init__(
        self,
        authenticator: Authenticator,
        authorization: Authorization,
        *,
        bounds: Bounds,
        inflight: InFlight,
        rates: Buckets[str] | None,
        sink: Sink | None,
        metrics: Metrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator, self._authorization = authenticator, authorization
        self._bounds, self._inflight, self._rates, self._sink = bounds, inflight, rates, sink
        self._metrics, self._now, self._clock = metrics, now, clock
        self.stopping = False
        self._watches: dict[asyncio.Task[object], web.Request] = {}
        self.running = 0
        metrics.watch_inflight(lambda: inflight.now[False], lambda: inflight.now[True])

    def end_watches(self) -> None:
        """Each ends its answer as if its time had come; new ones are refused."""
        self.stopping = True
        for task in self._watches:
            task.cancel()

    @property
    def watches(self) -> int:
        return len(self._watches)

    # --- one request ------------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware; see `middleware`."""
        started = self._clock()
        record = audit.Record(
            audit.audit_id(request.headers.get("Audit-Id", ""), str(uuid.uuid4())),
            self._now(),
            audit.safe_uri(request.path_qs),
            source_ips=(request.remote,) if request.remote else (),
            user_agent=request.headers.get("User-Agent", ""),
        )
        request[RECORD] = record
        self.running += 1
        failure: ApiError | None = None
        code = 0
        try:
            try:
                response = await self._guarded(request, handler, record)
            except ApiError as error:
                failure, response = error, await self._failed(request, error)
            except ConnectionError:
                # The client's connection: nobody reads the answer, and aiohttp must not take it for a failure of ours.
                response = request.get(RESPONSE) or web.Response(status=CLIENT_GONE)
            code = response.status
            if not response.prepared:
                self._dress(response, record)
                await _compress(request, response)
            return response
        finally:
            self.running -= 1
            self._tell(request, record, code, failure, self._clock() - started)

    async def _guarded(self, request: web.Request, handler: Handler, record: audit.Record) -> web.StreamResponse:
        """All but ApiError has become one, but for the cancellation that is not ours."""
        try:
            return await self._pass(request, handler, record)
        except ApiError:
            raise
        except web.HTTPException as error:
            raise _from_http(error, self._bounds.max_body_bytes) from None
        except ConnectionError:
            raise
        except StoreError as error:
            log.error("datastore failed", extra={"audit_id": record.audit_id, "error": str(error)})
            raise unavailable("the datastore cannot be reached") from error
        except Exception as error:
            log.exception("request failed", extra={"audit_id": record.audit_id, "path": request.path})
            raise internal(f"the server's log tells more, under audit id {record.audit_id}") from error

    async def _pass(self, request: web.Request, handler: Handler, record: audit.Record) -> web.StreamResponse:
        info, wrong = _parsed(request)
        record.info = request["info"] = info
        watch = info.verb == Verb.WATCH
        if watch and self.stopping:
            raise unavailable("the server is shutting down")
        if watch or info.path.startswith(PATHS):  # probes must not fail because others ask too much
            return await self._admitted(request, handler, record, info, wrong)
        with self._inflight.one(info.verb):
            try:
                async with asyncio.timeout(self._deadline_s(request)) as deadline:
                    return await self._admitted(request, handler, record, info, wrong)
            except TimeoutError:
                if not deadline.expired():
                    raise
                text = "Timeout: request did not complete within the allotted timeout"
                raise ApiError(504, "Timeout", text) from None

    async def _admitted(
        self, request: web.Request, handler: Handler, record: audit.Record, info: RequestInfo, wrong: ApiError | None
    ) -> web.StreamResponse:
        who = await self._who(request, record)
        if self._rates is not None and MASTERS not in who.user.groups:
            wait_s = self._rates.take(who.user.name, self._clock())
            if wait_s:
                raise too_many_requests(BUSY, max(1, round(wait_s)))
        if wrong is not None:
            raise wrong
        attributes = attributes_of(info, request.query)
        decision = await self._authorization.authorize(who.user, attributes)
        record.annotations["authorization.k8s.io/decision"] = "allow" if decision.allowed else "forbid"
        record.annotations["authorization.k8s.io/reason"] = decision.reason
        if not decision.allowed:
            raise refusal(who.user.name, attributes, decision.reason)
        if info.verb in MUTATING or info.verb == "post":
            await self._read_body(request)
        if info.verb == Verb.WATCH:
            return await self._watch(request, handler, info)
        return await handler(request)

    async def _who(self, request: web.Request, record: audit.Record) -> Who:
        try:
            who = await self._authenticator.who(request)
        except ApiError:
            self._metrics.attempts.labels("failure").inc()
            raise
        self._metrics.attempts.labels("success").inc()
        self._metrics.methods.labels(who.how).inc()
        record.user = request["user"] = who.user
        if who.how == "requestheader":
            forwarded = [one.strip() for one in request.headers.get("X-Forwarded-For", "").split(",") if one.strip()]
            record.source_ips = (*forwarded[:8], *record.source_ips)
        wanted = impersonated(request.headers.items())
        if wanted is None:
            return who
        user, questions = wanted
        if not printable(user):
            raise bad_request("the impersonated user has characters that no name has")
        for question in questions:
            decision = await self._authorization.authorize(who.user, question)
            if not decision.allowed:
                raise refusal(who.user.name, question, decision.reason)
        record.impersonator, record.user = who.user, user
        request["user"] = user
        return Who(user, who.how)

    async def _read_body(self, request: web.Request) -> None:
        """Into memory, once and for all (aiohttp keeps it for `request.read()`), within limits of size and time."""
        limit = self._bounds.max_body_bytes
        if request.content_length is not None and request.content_length > limit:
            raise too_large(_too_large(limit))
        try:
            async with asyncio.timeout(self._bounds.body_timeout_s) as deadline:
                await request.read()
        except TimeoutError:
            if not deadline.expired():
                raise
            raise ApiError(504, "Timeout", "Timeout: the request's body did not arrive in time") from None
        except web.RequestPayloadError as error:
            raise bad_request(f"the request's body cannot be read: {error}") from error

    async def _watch(self, request: web.Request, handler: Handler, info: RequestInfo) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._watches[task] = request
        ended = self._metrics.begin_watch(info)
        protocol = request.protocol
        lost = False

        def when_lost() -> None:
            nonlocal lost
            lost = True
            task.cancel()

        if hasattr(protocol, "when_lost"):
            protocol.when_lost = when_lost
        try:
            return await handler(request)
        except asyncio.CancelledError:
            if not (self.stopping or lost):
                raise
            task.uncancel()
            if lost:
                raise ConnectionResetError("the client went away") from None
            response: web.StreamResponse | None = request.get(RESPONSE)
            if response is None:
                raise unavailable("the server is shutting down") from None
            await response.write_eof()
            return response
        finally:
            if hasattr(protocol, "when_lost"):
                protocol.when_lost = None
            del self._watches[task]
            ended()

    # --- answers ----------------------------------------------------------------------------------------------------

    async def _failed(self, request: web.Request, error: ApiError) -> web.StreamResponse:
        started: web.StreamResponse | None = request.get(RESPONSE)
        if started is not None and started.prepared:
            # The head is out: all that can still be told is that the answer is not complete.
            log.error("answer broken off", extra={"audit_id": request[RECORD].audit_id, "error": error.message})
            if request.transport is not None:
                request.transport.abort()
            return started
        body, content_type = encode_status(error.status(), request.headers.get("Accept", ""))
        response = web.Response(status=error.code, body=body, content_type=content_type)
        if error.retry_after_s:
            response.headers["Retry-After"] = str(error.retry_after_s)
        if not request.content.is_eof():  # reading on what nobody wants would cost more than a new connection
            response.force_close()
        return response

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal `on_response_prepare`: the head is about to go out."""
        request[RESPONSE] = response
        record: audit.Record | None = request.get(RECORD)
        if record is None:
            return
        self._dress(response, record)
        if record.info is not None and record.info.verb == Verb.WATCH and response.status == 200:
            self._audit(record, "ResponseStarted", response.status, None)

    def _dress(self, response: web.StreamResponse, record: audit.Record) -> None:
        response.headers["Audit-Id"] = record.audit_id
        for name, value in _STANDARD.items():
            response.headers.setdefault(name, value)
        response.headers["Server"] = SERVER

    # --- what is told of it -----------------------------------------------------------------------------------------

    def _tell(
        self, request: web.Request, record: audit.Record, code: int, failure: ApiError | None, seconds: float
    ) -> None:
        info = record.info
        probe = info is not None and info.target is None and info.path.startswith(PATHS)
        longrunning = info is not None and info.verb == Verb.WATCH
        dry_run = request.query.get("dryRun") == "All"
        self._metrics.finish(info, code, seconds, dry_run, longrunning=longrunning)
        fields: dict[str, object] = {
            "verb": str(info.verb) if info is not None else request.method.lower(),
            "path": request.path[: audit.MAX_TEXT],
            "user": record.user.name if record.user is not None else "",
            "code": code or "cancelled",
            "ms": round(seconds * 1000, 1),
            "client": request.remote or "",
            "audit_id": record.audit_id,
        }
        if record.impersonator is not None:
            fields["impersonator"] = record.impersonator.name
        if failure is not None:
            fields["reason"] = failure.reason
        requests_log.log(logging.DEBUG if probe and code == 200 else logging.INFO, "request", extra=fields)
        if not probe:
            self._audit(record, "ResponseComplete", code, failure)

    def _audit(self, record: audit.Record, stage: str, code: int, failure: ApiError | None) -> None:
        if self._sink is None:
            return
        status = {"status": "Failure", "message": failure.message, "reason": failure.reason} if failure else {}
        self._metrics.audit_events.inc()
        self._sink.write(audit.event(record, stage, self._now(), code, status))

    def _deadline_s(self, request: web.Request) -> float:
        """`?timeout=` can only shorten it."""
        text = request.query.get("timeout", "")
        if not text:
            return self._bounds.request_timeout_s
        try:
            wanted_s = float(text) if text.isdigit() else parse_duration(text) / 1e9
        except ValueError:
            raise bad_request(f"invalid timeout specified in the request URL: {text!r}") from None
        return min(self._bounds.request_timeout_s, wanted_s) if wanted_s > 0 else self._bounds.request_timeout_s


def _parsed(request: web.Request) -> tuple[RequestInfo, ApiError | None]:
    """What is wrong with the path is told only to whom we know."""
    try:
        return requests.parse(request.method, request.path, request.query), None
    except ApiError as error:
        return RequestInfo(request.method.lower(), request.path), error


def _too_large(limit: int) -> str:
    return f"Request entity too large: limit is {limit}"


def _from_http(error: web.HTTPException, max_body_bytes: int) -> ApiError:
    """What aiohttp itself answers: no such route, wrong method, too much."""
    match error.status:
        case 404:
            return not_found_path()
        case 405:
            return method_not_allowed()
        case 413:
            return too_large(_too_large(max_body_bytes))
        case status if status < 500:
            return ApiError(status, "BadRequest", error.reason)
    return internal(error.reason)


def encode_status(status: JsonObject, accept: str) -> tuple[bytes, str]:
    """(body, content type): YAML for who asks for it before JSON, else JSON."""
    wanted = accept.lower()
    yaml_at, json_at = wanted.find("yaml"), wanted.find("json")
    if yaml_at >= 0 and (json_at < 0 or yaml_at < json_at):
        return yaml.safe_dump(status, sort_keys=False).encode(), "application/yaml"
    return msgspec.json.encode(status), "application/json"


async def _compress(request: web.Request, response: web.StreamResponse) -> None:
    """Large answers, for who can read that, in a thread."""
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        return
    if len(response.body) < GZIP_FROM_BYTES or "Content-Encoding" in response.headers:
        return
    if "gzip" not in request.headers.get("Accept-Encoding", "").lower():
        return
    response.body = await asyncio.to_thread(gzip.compress, response.body, 1)
    response.headers["Content-Encoding"] = "gzip"
    response.headers["Vary"] = "Accept-Encoding"


def install(app: web.Application, front: Front) -> None:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await front.handle(request, handler)

    # What handlers are given has plain names; aiohttp warns of each on stderr, where only log lines belong.
    warnings.filterwarnings("ignore", category=web.NotAppKeyWarning)
    app.middlewares.append(middleware)
    app.on_response_prepare.append(front.prepare)
