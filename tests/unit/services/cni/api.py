"""A small Kubernetes API over TLS: TokenRequest alone, with what the real one checks (authentication, account, body).

Written after the API's reference (authentication.k8s.io/v1, TokenRequest); used where no kube-apiserver is at hand.
"""

from __future__ import annotations

import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

NAMESPACE, ACCOUNT = "kube-system", "calico-cni-plugin"


def make_pki(home: Path) -> None:
    """ca.pem signs server.pem, which is of 127.0.0.1, ::1 and localhost; other.pem signs nothing."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=home, check=True, capture_output=True, timeout=60)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for ca in ("ca", "other"):
        openssl("req", "-x509", *new_key, "-subj", f"/CN={ca}", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
    openssl(
        *("req", "-x509", *new_key, "-subj", "/CN=server", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-addext", "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost", "-addext", "basicConstraints=CA:FALSE"),
        *("-keyout", "server.key", "-out", "server.pem"),
    )


@dataclass
class Api:
    """own: tokens that we are known by. given: those handed out, in order. refuse: a status to answer with instead."""

    own: set[str] = field(default_factory=lambda: {"own-1"})
    given: list[str] = field(default_factory=list)
    asked_with: list[str] = field(default_factory=list)
    refuse: int = 0
    garbage: bool = False
    valid_s: int = 86_400
    port: int = 0

    async def token(self, request: web.Request) -> web.Response:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer not in self.own:
            return _status(401, "Unauthorized")
        if self.refuse:
            return _status(self.refuse, "told to refuse")
        if (request.match_info["namespace"], request.match_info["account"]) != (NAMESPACE, ACCOUNT):
            return _status(404, f'serviceaccounts "{request.match_info["account"]}" not found')
        body: dict[str, Any] = await request.json()
        if (body.get("apiVersion"), body.get("kind")) != ("authentication.k8s.io/v1", "TokenRequest"):
            return _status(400, f"{body} is no TokenRequest")
        seconds = body["spec"].get("expirationSeconds", 3600)
        if seconds < 600:
            return _status(422, "spec.expirationSeconds: may not specify a duration less than 10 minutes")
        if self.garbage:
            return web.Response(text="<html>")
        self.asked_with.append(bearer)
        self.given.append(f"plugin-{len(self.given) + 1}")
        until = (datetime.now(UTC) + timedelta(seconds=min(seconds, self.valid_s))).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = {"token": self.given[-1], "expirationTimestamp": until}
        return web.json_response(body | {"status": status}, status=201)


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)


@contextlib.asynccontextmanager
async def serving(api: Api, pki: Path | None, host: str = "127.0.0.1") -> AsyncIterator[Api]:
    """pki None: without TLS."""
    app = web.Application()
    app.router.add_post("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", api.token)
    tls = None
    if pki is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(pki / "server.pem", pki / "server.key")
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, api.port, ssl_context=tls)
        await site.start()
        server = site._server
        assert server is not None
        api.port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        yield api
    finally:
        await runner.cleanup()


def write_account(directory: Path, pki: Path, *, token: str = "own-1", ca: str = "ca") -> None:
    """As a projected volume: the files are links into a directory that is replaced as a whole."""
    directory.mkdir(exist_ok=True)
    data = directory / f"..data-{token}-{ca}"
    data.mkdir(exist_ok=True)
    (data / "token").write_text(token)
    (data / "namespace").write_text(NAMESPACE)
    (data / "ca.crt").write_bytes((pki / f"{ca}.pem").read_bytes())
    new = directory / "..data_tmp"
    new.symlink_to(data.name)
    new.replace(directory / "..data")
    for name in ("token", "namespace", "ca.crt"):
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
