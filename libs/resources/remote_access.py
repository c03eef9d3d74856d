"""How to reach an API server: its address, what to trust, and who we are. From single settings (K8S_API_ENDPOINT …) or
from a kubeconfig, which the Kubernetes client reads with all its ways to log in (certificates, tokens, exec plugins,
OIDC) and renews. What is renewed while we run is taken without a restart (`Renewing`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from libs.kube.credentials import RELOAD_CHECK_S, files_of
from libs.resources.remote_settings import Settings
from libs.runtime.files import signature

log = logging.getLogger(__name__)

HeaderSource = Callable[[], Awaitable[Mapping[str, str]]]


class AccessProblem(ValueError):
    """The settings cannot be used; the text names the one and what to do."""


@dataclass(frozen=True, slots=True)
class Access:
    """tls: None for plain HTTP. server_name: other than the host, for TLS. headers: asked before each request, since
    tokens get old. files: what all this was read from; again: reads it again, raises AccessProblem.
    """

    url: str
    tls: ssl.SSLContext | None
    headers: HeaderSource
    server_name: str | None = None
    proxy: str | None = None
    qps: float = 0.0
    burst: int = 0
    files: tuple[Path, ...] = ()
    again: Callable[[], Awaitable[Access]] | None = None


class Renewing:
    """An access for long: another one takes its place when its files have changed, or when the server refuses it and
    there is something newer to show. A kubeconfig that names another server by now is not followed there.
    """

    def __init__(self, access: Access, *, reload_check_s: float = RELOAD_CHECK_S) -> None:
        self.access = access
        self._seen = signature(access.files)
        self._reload_check_s = reload_check_s
        self._look_at = self._renew_at = 0.0

    async def current(self) -> Access:
        """What to ask with."""
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return self.access
        self._look_at = now + self._reload_check_s
        if (seen := signature(self.access.files)) != self._seen:
            self._seen = seen
            if (made := await self._again()) is not None:
                self._take(made)
        return self.access

    async def after_refusal(self, refused: Access) -> Access:
        """What to ask with after a 401: `refused` itself where there is nothing newer."""
        now = asyncio.get_running_loop().time()
        if self.access is not refused or now < self._renew_at:
            return self.access
        self._renew_at = now + self._reload_check_s
        seen = signature(refused.files)
        made = await self._again()
        if made is None or self.access is not refused:
            return self.access
        other_files = seen != self._seen or made.files != refused.files  # an exec plugin's certificate is in new ones
        if other_files or dict(await made.headers()) != dict(await refused.headers()):
            self._seen = seen
            self._take(made)
        return self.access

    async def _again(self) -> Access | None:
        if self.access.again is None:
            return None
        try:
            made = await self.access.again()
        except AccessProblem as problem:
            log.warning("changed credentials are not used", extra={"error": str(problem)})
            return None
        if made.url != self.access.url:
            log.warning("credentials of another server are not used", extra={"was": self.access.url, "is": made.url})
            return None
        return made

    def _take(self, made: Access) -> None:
        log.info("credentials have changed", extra={"server": made.url})
        if made.files != self.access.files:
            self._seen = signature(made.files)
        self.access = made


async def open_access(settings: Settings) -> Access:
    """Raises AccessProblem."""
    access = await _open(settings)
    if access.again is None:
        return replace(access, again=lambda: open_access(settings))
    return access


async def _open(settings: Settings) -> Access:
    if settings.kubeconfig or settings.kubeconfig_text or settings.context:
        return await _of_kubeconfig(settings)
    if settings.endpoint:
        return _of_settings(settings)
    default = _default_kubeconfig()
    if default.is_file():
        return await _of_kubeconfig(settings)
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return await _in_cluster(settings)
    raise AccessProblem(
        "datastore type kubernetes: no API server is named; set KUBECONFIG or K8S_API_ENDPOINT, or give --config"
    )


def _of_settings(settings: Settings) -> Access:
    token = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}

    async def headers() -> Mapping[str, str]:
        return token

    url = _checked(settings.endpoint)
    tls = None
    if url.startswith("https:"):
        tls = _tls(settings.ca_file, settings.cert_file, settings.key_file, insecure=settings.insecure)
    named = (settings.ca_file, settings.cert_file, settings.key_file)
    files = tuple(Path(name) for name in named if name)
    return Access(url, tls, headers, qps=settings.qps, burst=settings.burst, files=files)


def _checked(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AccessProblem(f"K8S_API_ENDPOINT: {url!r} is not https://host:port")
    return parts.geturl().rstrip("/")


def _tls(ca_file: str, cert_file: str, key_file: str, *, insecure: bool) -> ssl.SSLContext:
    if bool(cert_file) != bool(key_file):
        raise AccessProblem("the client certificate and its key must be set together (K8S_CERT_FILE, K8S_KEY_FILE)")
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise AccessProblem(f"certificate authority {ca_file}: {_reason(error)}") from error
    if cert_file:
        try:
            context.load_cert_chain(cert_file, key_file)
        except (OSError, ssl.SSLError) as error:
            raise AccessProblem(f"client certificate {cert_file}, key {key_file}: {_reason(error)}") from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


async def _of_kubeconfig(settings: Settings) -> Access:
    # Half a second of imports that only this way in needs.
    import aiohttp
    import yaml
    from kubernetes_asyncio import client, config

    found: Any = client.Configuration()
    where = settings.kubeconfig or ("kubeconfigInline" if settings.kubeconfig_text else "~/.kube/config")
    try:
        if settings.kubeconfig_text:
            value = yaml.safe_load(settings.kubeconfig_text)
            if not isinstance(value, dict):
                raise AccessProblem("kubeconfigInline: expected a kubeconfig")
            loaded = await config.load_kube_config_from_dict(
                value, context=settings.context or None, client_configuration=found
            )
        else:
            loaded = await config.load_kube_config(
                config_file=settings.kubeconfig or str(_default_kubeconfig()), context=settings.context or None,
                client_configuration=found, persist_config=False,
            )  # fmt: skip
    except AccessProblem:
        raise
    except (config.ConfigException, yaml.YAMLError, OSError, aiohttp.ClientError) as error:
        raise AccessProblem(f"kubeconfig {where}: {error or type(error).__name__}") from error
    except (
        TypeError,
        AttributeError,
        AssertionError,
        ValueError,
        KeyError,
    ) as error:  # the client library looks at no types
        raise AccessProblem(f"kubeconfig {where}: not of a kubeconfig's form ({error})") from error
    files = () if settings.kubeconfig_text else _files(found, settings.kubeconfig or str(_default_kubeconfig()))
    # Whoever chooses another context for kubectl meanwhile does not mean us.
    context = str((loaded.current_context or {}).get("name") or settings.context)
    same = replace(settings, context=context)
    access = _of_configuration(found, settings)
    return replace(access, files=(*access.files, *files), again=lambda: open_access(same))


def _default_kubeconfig() -> Path:
    return Path.home() / ".kube" / "config"


def _files(configuration: Any, paths: str) -> tuple[Path, ...]:
    """paths: of kubeconfigs, with `:` between them."""
    each = (Path(path).expanduser() for path in paths.split(os.pathsep) if path)
    return tuple(file for path in each for file in files_of(configuration, path))


async def _in_cluster(settings: Settings) -> Access:
    from kubernetes_asyncio import client, config

    found: Any = client.Configuration()
    load: Any = config.load_incluster_config
    try:
        load(client_configuration=found)
    except config.ConfigException as error:
        raise AccessProblem(f"service account of this pod: {error}") from error
    return _of_configuration(found, settings)


def _of_configuration(found: Any, settings: Settings) -> Access:
    """found: kubernetes_asyncio.client.Configuration, whose types nobody wrote down."""

    async def headers() -> Mapping[str, str]:
        if settings.token:
            return {"Authorization": f"Bearer {settings.token}"}
        bearer = await found.get_api_key_with_prefix("BearerToken")
        return {"Authorization": bearer} if bearer else {}

    url = _checked(settings.endpoint or found.host)
    ca_file = settings.ca_file or found.ssl_ca_cert or ""
    cert_file = settings.cert_file or found.cert_file or ""
    key_file = settings.key_file or found.key_file or ""
    tls = None
    if url.startswith("https:"):
        insecure = settings.insecure or not found.verify_ssl
        tls = _tls(ca_file, cert_file, key_file, insecure=insecure)
    return Access(
        url, tls, headers, found.tls_server_name, found.proxy, qps=settings.qps, burst=settings.burst,
        files=tuple(Path(name) for name in (ca_file, cert_file, key_file) if name),
    )  # fmt: skip
