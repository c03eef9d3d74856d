"""Who asks: the front proxy's headers, a client certificate, a bearer token, or nobody on the few open paths.

The order is that of Kubernetes' aggregated servers; the first that finds credentials of its kind decides, and
credentials that are no good are a 401 everywhere, also where none would have been needed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from aiohttp import web

from services.apiserver.core.identity import (
    NOBODY,
    HeaderNames,
    Tokens,
    authenticated,
    bearer,
    parse_tokens,
    printable,
)  # fmt: skip
from services.apiserver.core.rbac import MASTERS
from services.apiserver.core.request import User
from services.apiserver.core.status import unauthorized
from services.apiserver.shell.certificates import Bundle, Peer, common_name, user_of
from services.apiserver.shell.reload import Followed

log = logging.getLogger(__name__)

MAX_TOKEN = 16 * 1024
DEVELOPER = User("system:admin", (MASTERS,))
"""Who everybody is on loopback in development."""


class TokenSource(Protocol):
    async def user(self, token: str) -> User | None:
        """None for a token that it does not know."""
        ...


class TokenFile:
    """Kubernetes' static token file, read again when it changes. key: of `fingerprint`."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path, self._key = path, key
        self._tokens = Tokens()
        self.file = Followed("tokens", [path], self._load)

    def _load(self) -> None:
        mode = self._path.stat().st_mode
        if mode & 0o007:
            extra = {"path": str(self._path), "mode": f"{mode & 0o777:o}"}
            log.warning("token file can be read by everybody on this host", extra=extra)
        self._tokens = parse_tokens(self._path.read_text(encoding="utf-8"), self._key)
        if self._tokens.twice:
            log.warning("tokens that are there twice, the later line counts", extra={"lines": self._tokens.twice})

    async def user(self, token: str) -> User | None:
        return self._tokens.user(self._key, token)


@dataclass(slots=True)
class Trust:
    """Authorities as they are now. clients: by where they come from (a file, the cluster's ConfigMap)."""

    clients: dict[str, Bundle] = field(default_factory=dict)
    proxy: Bundle | None = None
    names: HeaderNames = field(default_factory=HeaderNames)


@dataclass(frozen=True, slots=True)
class Who:
    """how: requestheader, certificate, token, anonymous or development; for metrics and the log."""

    user: User
    how: str


class Authenticator:
    """open_paths: for which nobody in particular may ask. development: everybody without credentials is DEVELOPER."""

    def __init__(
        self,
        trust: Trust,
        tokens: Sequence[TokenSource],
        *,
        open_paths: Callable[[str], bool],
        development: bool,
        now: Callable[[], datetime],
    ) -> None:
        self._trust, self._tokens = trust, tuple(tokens)
        self._open, self._development, self._now = open_paths, development, now

    async def who(self, request: web.Request) -> Who:
        """Raises ApiError 401."""
        peer: Peer | None = getattr(request.protocol, "peer", None)
        if peer is not None:
            found = self._by_certificate(peer, request)
            if found is not None:
                return found
        authorization = request.headers.getall("Authorization", [])
        if authorization:
            return await self._by_token(authorization)
        if peer is not None:
            raise unauthorized()
        if self._development:
            return Who(authenticated(DEVELOPER), "development")
        if self._open(request.path):
            return Who(NOBODY, "anonymous")
        raise unauthorized()

    def _by_certificate(self, peer: Peer, request: web.Request) -> Who | None:
        now = self._now()
        if self._trust.proxy is not None:
            try:
                proxy = self._trust.proxy.verify(peer, now)
            except ValueError:
                pass  # then it is nobody's proxy, and its headers mean nothing
            else:
                user = self._trust.names.user(request.headers.items())
                if user is not None:
                    allowed = self._trust.names.allowed
                    if allowed and common_name(proxy) not in allowed:
                        log.warning(
                            "proxy with a certificate of another name", extra={"common_name": common_name(proxy)}
                        )
                        raise unauthorized()
                    return Who(_checked(user), "requestheader")
        reasons = []
        for bundle in self._trust.clients.values():
            try:
                certificate = bundle.verify(peer, now)
            except ValueError as error:
                reasons.append(str(error))
                continue
            user = user_of(certificate, peer.leaf)
            if user is not None:
                return Who(_checked(user), "certificate")
            reasons.append("the certificate names nobody (CN)")
        log.debug("client certificate not taken", extra={"reasons": reasons})
        return None

    async def _by_token(self, headers: Sequence[str]) -> Who:
        token = bearer(headers[0]) if len(headers) == 1 else None
        if token is None or len(token) > MAX_TOKEN:
            raise unauthorized()
        for source in self._tokens:
            user = await source.user(token)
            if user is not None:
                return Who(_checked(user), "token")
        raise unauthorized()


def _checked(user: User) -> User:
    if not printable(user):
        raise unauthorized()
    return authenticated(user)


def new_key() -> bytes:
    """For `fingerprint`, of this process alone."""
    return os.urandom(32)
