"""A kube-apiserver as this server needs it: three calls, with whatever credentials a kubeconfig or the pod has.

The client library is imported here alone and late: it takes seconds and 70 MB, and a server that stands alone has no
use for it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from services.apiserver.core.status import JsonObject

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

IN_CLUSTER = Path("in-cluster")
"""In place of a kubeconfig's path: the pod's service account."""
TIMEOUT_S = 10.0


class KubeError(Exception):
    """No answer, or not the wanted one. code: of the answer, 0 when there was none. The text holds no credentials."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def transient(self) -> bool:
        return self.code == 0 or self.code == 429 or self.code >= 500


class KubeApi:
    """`async with await KubeApi.open(path) as api`. Raises ValueError from `open` for a kubeconfig that is no good."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._closed = False

    @classmethod
    async def open(cls, kubeconfig: Path) -> Self:
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
        found.retries = 0  # the callers know what may be asked again
        return cls(ApiClient(found))

    async def get(self, path: str) -> JsonObject:
        return await self._call("GET", path, None)

    async def create(self, path: str, body: JsonObject) -> JsonObject:
        return await self._call("POST", path, body)

    async def _call(self, method: str, path: str, body: JsonObject | None) -> JsonObject:
        if self._closed:  # tasks of the service are cancelled after what it opened was closed
            raise KubeError(0, f"{method} {path}: the client is closed")
        import aiohttp
        from kubernetes_asyncio.client import ApiException

        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            answer: Any = await self._client.call_api(
                path,
                method,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                response_types_map={200: "object", 201: "object"},
                _return_http_data_only=True,
                _request_timeout=TIMEOUT_S,
            )
        except ApiException as error:
            raise KubeError(int(error.status or 0), f"{method} {path}: {error.status} {error.reason}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeError(0, f"{method} {path}: {error or type(error).__name__}") from error
        if not isinstance(answer, dict):
            raise KubeError(502, f"{method} {path}: the answer is no object")
        return answer

    async def close(self) -> None:
        self._closed = True
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
