"""Facts about pods from the Kubernetes API, read for each request and never kept: what a pod was a moment ago may be
another pod's by now.

Which API: the agent's own setting (a kubeconfig, or the service account of the pod it runs in), else
`kubernetes.kubeconfig` of the network configuration. Without either, and for containers that are no pods, the request
is all there is (pods.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import TypeVar

from libs.kube.api import IN_CLUSTER, JsonObject, KubeApi, KubeError
from libs.kube.objects import NAMESPACES, NODES
from libs.runtime.backoff import Backoff
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.kube_pod import check_identity, decode_pod, pod_facts
from services.felix.core.cni.pod import PodFacts
from services.felix.core.cni.request import Request
from services.felix.shell.cni.pods import PodSource, cidrs_by_version

log = logging.getLogger(__name__)

T = TypeVar("T")
LIMIT_S = 15.0
"""How long one request goes on asking an API server that does not answer well; the kubelet gives two minutes."""
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404


class KubernetesPods:
    """default: for every pod, else what the request's configuration names. without: asked where there is no API."""

    def __init__(self, default: Path | None, without: PodSource, random: Random, *, limit_s: float = LIMIT_S) -> None:
        self._default = default
        self._without = without
        self._random = random
        self._limit_s = limit_s
        self._clients: dict[Path, _Client] = {}

    async def facts(self, request: Request) -> PodFacts:
        source = self._default or _of_configuration(request)
        if source is None or not request.is_kubernetes:
            return await self._without.facts(request)
        base = f"/api/v1/namespaces/{request.namespace}"
        name = f"{request.namespace}/{request.pod}"
        pod, namespace = await asyncio.gather(
            self._get(source, f"{base}/pods/{request.pod}", f"pod {name}", decode_pod),
            self._get(source, base, f"namespace {request.namespace}", NAMESPACES.decode),
        )
        check_identity(pod, request.args.get("K8S_POD_UID", ""), name)
        return pod_facts(pod, namespace)

    async def pod_cidrs(self, node: str) -> dict[int, str]:
        if self._default is None:
            return await self._without.pod_cidrs(node)
        path = f"/api/v1/nodes/{node}"
        found = await self._get(self._default, path, f"node {node}", NODES.decode)
        return cidrs_by_version(node, found.spec.cidrs)

    async def warm_up(self) -> None:
        """Loading the client takes seconds, which the first pod should not wait for."""
        if self._default is not None:
            with contextlib.suppress(ValueError):  # said to each pod, until the file is there
                async with self._client(self._default).use():
                    pass

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.close()

    def _client(self, source: Path) -> _Client:
        return self._clients.setdefault(source, _Client(source))

    async def _get(self, source: Path, path: str, what: str, decode: Callable[[JsonObject], T]) -> T:
        """Raises CniError."""
        deadline = time.monotonic() + self._limit_s
        backoff = Backoff(self._random, first_s=0.1, cap_s=2.0)
        client, renewed = self._client(source), False
        while True:
            pause_s = 0.0
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    async with client.use() as api:
                        return decode(await api.get(path))
            except TimeoutError:
                raise _no_answer(what, f"no answer within {self._limit_s:g} s") from None
            except ValueError as error:  # the kubeconfig, or msgspec's ValidationError
                raise CniError(Code.INTERNAL, f"{what}: {error}") from error
            except KubeError as error:
                if error.code == _UNAUTHORIZED and not renewed:
                    renewed = True  # the token may just have been replaced
                    client.doubt()
                    continue
                if error.code == _NOT_FOUND:
                    text = f"Kubernetes has no {what}: deleted meanwhile, or static and not told yet"
                    raise CniError(Code.TRY_AGAIN, text, str(error)) from error
                if not error.transient:
                    hint = "; the service account needs get on pods and namespaces" * (error.code == _FORBIDDEN)
                    raise CniError(Code.INTERNAL, f"{what} cannot be read: {error}{hint}") from error
                pause_s = error.pause_s(backoff.next_s())
                if time.monotonic() + pause_s >= deadline:
                    raise _no_answer(what, str(error)) from error
                log.info("asking again", extra={"what": what, "error": str(error), "retry_s": pause_s})
            await asyncio.sleep(pause_s)


def _no_answer(what: str, why: str) -> CniError:
    return CniError(Code.TRY_AGAIN, f"the Kubernetes API does not tell of {what}: {why}")


def _of_configuration(request: Request) -> Path | None:
    path = request.config.kubernetes.kubeconfig
    return Path(path) if path else None


class _Open:
    """A client and how many requests are on their way with it."""

    def __init__(self, api: KubeApi) -> None:
        self.api = api
        self.users = 0
        self.retired = False


class _Client:
    """Opened again when the file changed: it may hold a token that is renewed every few hours."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._open: _Open | None = None
        self._signature: tuple[int, ...] = ()
        self._doubted = False
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[KubeApi]:
        """Raises ValueError for a kubeconfig that is no good, or not there."""
        async with self._lock:
            held = await self._current()
            held.users += 1
        try:
            yield held.api
        finally:
            held.users -= 1
            if held.retired and not held.users:
                await held.api.close()

    async def _current(self) -> _Open:
        now = self._look()
        if self._open is None or self._doubted or now != self._signature:
            fresh = _Open(await KubeApi.open(self._source))
            old, self._open, self._signature, self._doubted = self._open, fresh, now, False
            if old is not None:
                old.retired = True  # closed by the last request that uses it
                if not old.users:
                    await old.api.close()
        return self._open

    def doubt(self) -> None:
        """What it says of us was not believed: read it again before the next request."""
        self._doubted = True

    async def close(self) -> None:
        if self._open is not None:
            await self._open.api.close()

    def _look(self) -> tuple[int, ...]:
        if self._source == IN_CLUSTER:
            return ()  # the library reads the token again by itself
        try:
            found = os.stat(self._source)
        except OSError:
            return ()  # opening it says why
        return found.st_mtime_ns, found.st_ino, found.st_size
