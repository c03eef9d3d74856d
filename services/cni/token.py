"""The plugin's token for the Kubernetes API: asked for with our own service account, renewed long before it ends.

TokenRequest of authentication.k8s.io/v1, which is the subresource `token` of a ServiceAccount. When a token is due:
cni-typha-node-bgp-ctl.md section 1.7 of the facts.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

import aiohttp
import msgspec

from services.cni.config import InstallConfig
from services.cni.network import server

VALID_S = 24 * 3600
MIN_WAIT_S = 5.0  # also the pause after a failure
TIMEOUT_S = 30.0


class TokenError(Exception):
    """No token was given; the text says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """expires_at: seconds since the epoch, by the API's clock."""

    text: str
    expires_at: float


class _Status(msgspec.Struct):
    token: str
    expirationTimestamp: datetime  # the API's name


class _Answer(msgspec.Struct):
    status: _Status


class _Refusal(msgspec.Struct):
    message: str = ""


def wait_s(expires_at: float, now: float, random: Random, every_s: float | None = None) -> float:
    """How long a token is used before the next is asked for: a quarter of what is left of it and 0 to 100 % more, so
    that the nodes do not come together, but at least 5 s; or `every_s`, where somebody decided on that.
    """
    if every_s is not None:
        return every_s
    return max(MIN_WAIT_S, (expires_at - now) / 4 * (1 + random.random()))


async def request_token(config: InstallConfig) -> Token:
    """Our own token and authority are read anew each time: both are rotated while we run. Raises TokenError."""
    try:
        own = (config.account_dir / "token").read_text().strip()
        namespace = (config.account_dir / "namespace").read_text().strip()
        tls = _tls(config)
    except (OSError, UnicodeDecodeError, ssl.SSLError) as error:
        raise TokenError(f"our own service account cannot be used: {error}") from error
    url = f"{server(config)}/api/v1/namespaces/{namespace}/serviceaccounts/{config.plugin_account}/token"
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": VALID_S},
    }
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), trust_env=False) as session,
            session.post(url, json=body, headers={"Authorization": f"Bearer {own}"}, ssl=tls) as answer,
        ):
            content = await answer.read()
            status = answer.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TokenError(f"{url}: {error or 'no answer in time'}") from error
    if status not in (200, 201):
        raise TokenError(f"{url}: {status} {_why(content)}".rstrip())
    try:
        given = msgspec.json.decode(content, type=_Answer).status
    except msgspec.MsgspecError as error:
        raise TokenError(f"{url}: the answer is no TokenRequest: {error}") from error
    expires = given.expirationTimestamp
    return Token(given.token, (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp())


def _tls(config: InstallConfig) -> ssl.SSLContext | bool:
    if config.kubernetes_protocol == "http":
        return True
    context = ssl.create_default_context(cafile=None if config.skip_tls_verify else config.account_dir / "ca.crt")
    if config.skip_tls_verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _why(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=_Refusal).message
    except msgspec.MsgspecError:
        return content[:200].decode(errors="replace")
