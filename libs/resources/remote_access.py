"""How to reach an API server: its address, what to trust, and who we are. From single settings (K8S_API_ENDPOINT …) or
from a kubeconfig, which the Kubernetes client reads with all its ways to log in (certificates, tokens, exec plugins,
OIDC) and renews.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from libs.resources.remote_settings import Settings

HeaderSource = Callable[[], Awaitable[Mapping[str, str]]]


class AccessProblem(ValueError):
    """The settings cannot be used; the text names the one and what to do."""


@dataclass(frozen=True, slots=True)
class Access:
    """tls: None for plain HTTP. server_name: other than the host, for TLS. headers: asked before each request, since
    tokens get old.
    """

    url: str
    tls: ssl.SSLContext | None
    headers: HeaderSource
    server_name: str | None = None
    proxy: str | None = None
    qps: float = 0.0
    burst: int = 0


async def open_access(settings: Settings) -> Access:
    """Raises AccessProblem."""
    if settings.kubeconfig or settings.kubeconfig_text or settings.context:
        return await _of_kubeconfig(settings)
    if settings.endpoint:
        return _of_settings(settings)
    default = Path.home() / ".kube" / "config"
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
    return Access(url, tls, headers, qps=settings.qps, burst=settings.burst)


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
    import yaml
    from kubernetes_asyncio import client, config

    found: Any = client.Configuration()
    try:
        if settings.kubeconfig_text:
            value = yaml.safe_load(settings.kubeconfig_text)
            if not isinstance(value, dict):
                raise AccessProblem("kubeconfigInline: expected a kubeconfig")
            await config.load_kube_config_from_dict(value, context=settings.context or None, client_configuration=found)
        else:
            await config.load_kube_config(
                config_file=settings.kubeconfig or None, context=settings.context or None,
                client_configuration=found, persist_config=False,
            )  # fmt: skip
    except (config.ConfigException, yaml.YAMLError, OSError) as error:
        where = settings.kubeconfig or ("kubeconfigInline" if settings.kubeconfig_text else "~/.kube/config")
        raise AccessProblem(f"kubeconfig {where}: {error}") from error
    return _of_configuration(found, settings)


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
    tls = None
    if url.startswith("https:"):
        tls = _tls(
            settings.ca_file or found.ssl_ca_cert or "",
            settings.cert_file or found.cert_file or "",
            settings.key_file or found.key_file or "",
            insecure=settings.insecure or not found.verify_ssl,
        )
    return Access(url, tls, headers, found.tls_server_name, found.proxy, qps=settings.qps, burst=settings.burst)
