"""A kube-apiserver as our services use it: requests, lists in pages and watches, with whatever credentials a kubeconfig
or the pod has.

    async with await KubeApi.open(IN_CLUSTER) as api:
        node = await api.get("/api/v1/nodes/node1")

Documents are decoded JSON; whoever uses them gives them types. The client library is imported here alone and late: it
takes seconds and 70 MB, and a server that stands alone has no use for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from libs.kube.credentials import RELOAD_CHECK_S, files_of
from libs.runtime.files import signature

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

JsonObject = dict[str, Any]

log = logging.getLogger(__name__)

IN_CLUSTER = Path("in-cluster")
"""In place of a kubeconfig's path: the pod's service account."""
ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
TIMEOUT_S = 10.0
LIST_TIMEOUT_S = 60.0
"""For one page; a busy server takes its time for it."""
PAGE = 500
WATCH_S = 300
"""A watch ends by itself after so long, so that one that hangs silently is not trusted for ever."""
GARBLED = 502
"""Code of an error for an answer that makes no sense."""
_LINE_LIMIT = 8 << 20  # an object in etcd is at most 1.5 MB

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"


def credentials(kubeconfig: Path | None, environ: Mapping[str, str], token: Path = ACCOUNT_TOKEN) -> Path | None:
    """The kubeconfig that was given, the service account of the pod that we run in, or None."""
    if kubeconfig is not None:
        return kubeconfig
    return IN_CLUSTER if environ.get("KUBERNETES_SERVICE_HOST") and token.exists() else None


class KubeError(Exception):
    """No answer, or not the wanted one. code: of the answer, 0 when there was none; reason: Status' reason ("NotFound",
    "Conflict", …) or "". The text holds no credentials.
    """

    def __init__(self, code: int, message: str, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s

    def pause_s(self, at_least_s: float) -> float:
        """Before the next try: not before the server wants it, where it says when."""
        return max(at_least_s, self.retry_after_s or 0.0)

    @property
    def transient(self) -> bool:
        return self.code == 0 or self.code == 429 or self.code >= 500


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a collection at one revision."""

    items: list[JsonObject]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Event:
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: JsonObject


class KubeApi:
    """`async with await KubeApi.open(path) as api`. Raises ValueError from `open` for a kubeconfig that is no good;
    KubeError from all else. path: from the root, without a query.
    """

    def __init__(self, client: ApiClient, kubeconfig: Path, *, reload_check_s: float = RELOAD_CHECK_S) -> None:
        self._client, self._kubeconfig = client, kubeconfig
        self._closed = False
        self._files = files_of(client.configuration, kubeconfig)
        self._seen = signature(self._files)
        self._reload_check_s = reload_check_s
        self._look_at = self._renew_at = 0.0
        self._retired: list[ApiClient] = []

    @classmethod
    async def open(cls, kubeconfig: Path, *, reload_check_s: float = RELOAD_CHECK_S) -> Self:
        """reload_check_s: how often, at most, a call looks whether the kubeconfig or the certificates that it names
        have changed.
        """
        return cls(await cls._load(kubeconfig), kubeconfig, reload_check_s=reload_check_s)

    @staticmethod
    async def _load(kubeconfig: Path) -> ApiClient:
        import yaml
        from kubernetes_asyncio import config
        from kubernetes_asyncio.client import ApiClient, Configuration

        found = Configuration()
        try:
            if kubeconfig == IN_CLUSTER:
                config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
            else:
                await config.load_kube_config(str(kubeconfig), client_configuration=found, persist_config=False)
        except (config.ConfigException, OSError, yaml.YAMLError, ValueError) as error:
            raise ValueError(f"kubeconfig {kubeconfig}: {error}") from error
        except (TypeError, AttributeError, AssertionError) as error:  # the client library looks at no types
            raise ValueError(f"kubeconfig {kubeconfig}: not of a kubeconfig's form ({error})") from error
        found.retries = 0  # the callers know what may be asked again
        try:
            return ApiClient(found)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"kubeconfig {kubeconfig}: certificates: {error.strerror or error}") from error

    async def _reloaded(self) -> ApiClient:
        """The client to ask with: another one since what it was made of has changed. What is under way, such as
        watches, ends on the old one, which is closed when the next takes its place or all do.
        """
        import asyncio

        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return self._client
        self._look_at = now + self._reload_check_s
        if (seen := signature(self._files)) == self._seen:
            return self._client
        self._seen = seen
        try:
            made = await self._load(self._kubeconfig)
        except ValueError as error:
            log.warning("changed credentials are not used", extra={"error": str(error)})
            return self._client
        await self._replace(made)
        return made

    async def _renewed(self, refused: ApiClient) -> ApiClient:
        """The client to ask with after a 401: `refused` itself where there is nothing newer to show. A token may have
        been renewed since the last look, or come from a program that must be run again.
        """
        import asyncio

        now = asyncio.get_running_loop().time()
        if self._client is not refused or now < self._renew_at:
            return self._client
        self._renew_at = now + self._reload_check_s
        try:
            made = await self._load(self._kubeconfig)
        except ValueError as error:
            log.warning("credentials that were refused cannot be renewed", extra={"error": str(error)})
            return self._client
        if self._client is not refused or made.configuration.api_key == refused.configuration.api_key:
            await made.close()
            return self._client
        await self._replace(made)
        return made

    async def _replace(self, made: ApiClient) -> None:
        log.info("credentials have changed", extra={"kubeconfig": str(self._kubeconfig)})
        older, self._retired = self._retired, [self._client]
        self._client, self._files = made, files_of(made.configuration, self._kubeconfig)
        self._seen = signature(self._files)
        for client in older:
            await client.close()

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> JsonObject:
        return await self._call("GET", path, None, query=query)

    async def create(self, path: str, body: JsonObject) -> JsonObject:
        return await self._call("POST", path, body)

    async def update(self, path: str, body: JsonObject) -> JsonObject:
        """PUT: with metadata.resourceVersion in the body it is a compare-and-swap (409 when somebody was faster)."""
        return await self._call("PUT", path, body)

    async def patch(self, path: str, body: JsonObject | list[JsonObject], kind: str = MERGE) -> JsonObject:
        return await self._call("PATCH", path, body, content_type=kind)

    async def delete(self, path: str, body: JsonObject | None = None) -> JsonObject:
        """body: DeleteOptions."""
        return await self._call("DELETE", path, body)

    async def list_all(self, path: str, query: Mapping[str, str] | None = None) -> Listing:
        """Everything at once; see `pages`."""
        items: list[JsonObject] = []
        revision = ""
        async with aclosing(self.pages(path, query)) as pages:
            async for page in pages:
                items += page.items
                revision = page.resource_version
        return Listing(items, revision)

    async def pages(self, path: str, query: Mapping[str, str] | None = None) -> AsyncGenerator[Listing, None]:
        """Everything, `PAGE` objects at a time, all of one revision. A continue token that is too old (410) is an
        error: whoever wants everything begins again.
        """
        more: dict[str, str] = {}
        while True:
            asked = {**(query or {}), "limit": str(PAGE), **more}
            page = await self._call("GET", path, None, query=asked, timeout_s=LIST_TIMEOUT_S)
            items, metadata = page.get("items") or [], page.get("metadata") or {}
            if not isinstance(items, list) or not isinstance(metadata, dict) or not all(map(_is_named, items)):
                raise KubeError(GARBLED, f"GET {path}: the answer is no list of objects")
            yield Listing(items, str(metadata.get("resourceVersion") or ""))
            if not metadata.get("continue"):
                return
            more = {"continue": str(metadata["continue"])}

    async def serves(self, group_version: str, plural: str) -> bool:
        """Is there such a kind of resource ("apps/v1", "deployments")? Raises KubeError when the server does not say
        yes or no.
        """
        try:
            found = await self.get(f"/apis/{group_version}")
        except KubeError as error:
            if error.code != 404:
                raise
            return False
        return any(isinstance(one, dict) and one.get("name") == plural for one in found.get("resources") or [])

    async def watch(
        self, path: str, resource_version: str, query: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Event, None]:
        """What happens after that revision, bookmarks included, until the server ends the watch (after `WATCH_S`, or
        before). Raises KubeError; with code 410 the revision is too old and everything must be listed again.
        """
        asked = {
            "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_S), **(query or {}),
        }  # fmt: skip
        async with aclosing(self._lines(path, asked)) as lines:
            async for line in lines:
                yield _event(path, line)

    async def _lines(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        import asyncio

        import aiohttp

        response = await self._ask("GET", path, None, query=query, timeout_s=None)
        try:
            if response.status != 200:
                raise _refused("WATCH", path, response.status, await response.read(), response.headers)
            rest = b""
            while True:
                try:
                    async with asyncio.timeout(WATCH_S + TIMEOUT_S):
                        chunk = await response.content.readany()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    raise _no_answer("WATCH", path, error) from error
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LINE_LIMIT:
                    raise KubeError(GARBLED, f"WATCH {path}: an event of more than {_LINE_LIMIT} bytes")
                for line in lines:
                    if line.strip():
                        yield line
        finally:
            response.close()

    async def _call(
        self,
        method: str,
        path: str,
        body: JsonObject | list[JsonObject] | None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout_s: float = TIMEOUT_S,
    ) -> JsonObject:
        import aiohttp

        response = await self._ask(
            method, path, body, query=query, content_type=content_type, timeout_s=timeout_s
        )  # fmt: skip
        try:
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _no_answer(method, path, error) from error
        finally:
            response.release()
        if response.status >= 300:
            raise _refused(method, path, response.status, content, response.headers)
        try:
            answer = msgspec.json.decode(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise KubeError(GARBLED, f"{method} {path}: the answer is no object")
        return answer

    async def _ask(
        self,
        method: str,
        path: str,
        body: JsonObject | list[JsonObject] | None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout_s: float | None = TIMEOUT_S,
    ) -> Any:
        """The response, whatever its status; nothing of its body is read yet."""
        if self._closed:  # tasks of the service are cancelled after what it opened was closed
            raise KubeError(0, f"{method} {path}: the client is closed")
        import aiohttp
        from kubernetes_asyncio.client import ApiException

        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=TIMEOUT_S)
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if body is not None else {})

        async def ask(client: ApiClient) -> Any:
            return await client.call_api(
                path, method, query_params=list((query or {}).items()), header_params=dict(headers), body=body,
                auth_settings=["BearerToken"], _return_http_data_only=True, _preload_content=False,
                _request_timeout=timeout,
            )  # fmt: skip

        try:
            client = await self._reloaded()
            response = await ask(client)
            if response.status != 401 or (newer := await self._renewed(client)) is client:
                return response
            response.release()
            return await ask(newer)
        except ApiException as error:
            raise KubeError(int(error.status or 0), f"{method} {path}: {error.status} {error.reason}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _no_answer(method, path, error) from error

    async def close(self) -> None:
        self._closed = True
        for client in (self._client, *self._retired):
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _is_named(document: object) -> bool:
    """Is it an object with the metadata that all have?"""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    return isinstance(metadata, dict) and isinstance(metadata.get("name"), str) and bool(metadata["name"])


def _event(path: str, line: bytes) -> Event:
    try:
        event = msgspec.json.decode(line)
        kind, document = event["type"], event["object"]
    except (ValueError, KeyError, TypeError) as error:
        raise KubeError(GARBLED, f"WATCH {path}: not an event: {error}") from error
    if kind == "ERROR":
        raise _ended(path, document)
    if kind == "BOOKMARK":
        named = isinstance(document, dict) and isinstance(document.get("metadata"), dict)
    else:
        named = kind in ("ADDED", "MODIFIED", "DELETED") and _is_named(document)
    if not named:
        raise KubeError(GARBLED, f"WATCH {path}: no event of an object: {kind!r}")
    return Event(kind, document)


def _ended(path: str, status: object) -> KubeError:
    """Of the Status that an ERROR event carries."""
    if not isinstance(status, dict):
        return KubeError(GARBLED, f"WATCH {path}: an error without a status")
    code, details = status.get("code"), status.get("details")
    pause = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    return KubeError(
        code if isinstance(code, int) else GARBLED, f"WATCH {path}: {code} {status.get('message')}",
        str(status.get("reason") or ""), float(pause) if isinstance(pause, int) else None,
    )  # fmt: skip


def _no_answer(method: str, path: str, error: Exception) -> KubeError:
    return KubeError(0, f"{method} {path}: {error or type(error).__name__}")


def _refused(method: str, path: str, code: int, content: bytes, headers: Mapping[str, str]) -> KubeError:
    """The message of a Status, which names verb, resource and user where a permission is missing."""
    try:
        status = json.loads(content)
        message, reason = str(status["message"]), str(status.get("reason") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, reason = content[:200].decode(errors="replace").strip(), ""
    try:
        pause = float(headers.get("Retry-After") or "")
    except ValueError:
        pause = None
    return KubeError(code, f"{method} {path}: {code} {message or 'without a message'}", reason, pause)
