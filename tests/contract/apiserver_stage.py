"""The front of apiserver on a free port, with authorities and certificates of its own, and handlers that tell what they
were given. Behind it nothing: the verbs have suites of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Self

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libs.runtime.health import Aggregator
from libs.runtime.http import new_registry
from libs.runtime.service import Service
from services.apiserver.app import Parts, build, serving
from services.apiserver.config import ApiserverConfig
from services.apiserver.core.request import API_PREFIX
from services.apiserver.core.status import JsonObject
from services.apiserver.metrics import Metrics
from services.apiserver.shell.reload import follow

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
POLICIES = f"{API_PREFIX}/namespaces/default/networkpolicies"


@dataclass(frozen=True)
class Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def issue(
    name: str,
    by: Pair | None = None,
    *,
    groups: Sequence[str] = (),
    ca: bool = False,
    uses: Sequence[x509.ObjectIdentifier] = (CLIENT,),
    valid_s: float = 86_400,
    hosts: Sequence[str] = (),
) -> Pair:
    """by None: signed by itself. valid_s below zero: it has run out."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        + [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    )
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(seconds=valid_s))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if uses and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if hosts:
        names = [x509.IPAddress(ipaddress.ip_address(host)) if host[0] in "0123456789:" else x509.DNSName(host)
                 for host in hosts]  # fmt: skip
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Pair(builder.sign(by.key if by else key, hashes.SHA256()), key)


@dataclass
class Pki:
    """Files of a home directory; ca signs the server, people, proxy: who their names say."""

    home: Path
    ca: Pair = field(default_factory=lambda: issue("server ca", ca=True))
    people: Pair = field(default_factory=lambda: issue("people ca", ca=True))
    proxy: Pair = field(default_factory=lambda: issue("proxy ca", ca=True))
    other: Pair = field(default_factory=lambda: issue("other ca", ca=True))

    def __post_init__(self) -> None:
        self.home.mkdir(exist_ok=True)
        for name in ("ca", "people", "proxy", "other"):
            (self.home / f"{name}.crt").write_bytes(getattr(self, name).pem)
        self.new_server()

    def new_server(self, name: str = "server") -> Pair:
        made = issue(name, self.ca, uses=(SERVER,), hosts=("127.0.0.1", "::1", "localhost"))
        self.write("server", made)
        return made

    def write(self, name: str, pair: Pair) -> None:
        (self.home / f"{name}.key").write_bytes(pair.key_pem)
        (self.home / f"{name}.crt").write_bytes(pair.pem)

    def person(self, name: str, *groups: str, **more: Any) -> Pair:
        return issue(name, self.people, groups=groups, **more)

    def client(self, pair: Pair | None = None, *extra: Pair) -> ssl.SSLContext:
        """For a client that trusts ca and shows `pair` and what comes after it."""
        context = ssl.create_default_context(cadata=self.ca.pem.decode())
        if pair is not None:
            path = self.home / f"client-{pair.certificate.serial_number}"
            path.write_bytes(pair.key_pem + pair.pem + b"".join(one.pem for one in extra))
            context.load_cert_chain(path)
        return context

    def settings(self) -> dict[str, Any]:
        return {"tls_cert_file": self.home / "server.crt", "tls_private_key_file": self.home / "server.key"}


class Recorder:
    """An audit sink."""

    def __init__(self) -> None:
        self.events: list[JsonObject] = []

    def write(self, event: JsonObject) -> None:
        self.events.append(event)


async def whoami(request: web.Request) -> web.Response:
    user = request["user"]
    body = await request.read()
    return web.json_response(
        {"name": user.name, "groups": list(user.groups), "uid": user.uid, "verb": request["info"].verb,
         "extra": {key: list(values) for key, values in user.extra.items()}, "body": len(body)}
    )  # fmt: skip


ROUTES = [web.route("*", API_PREFIX + "/{rest:.*}", whoami), web.get("/apis", whoami)]


class Stage:
    def __init__(self, port: int, parts: Parts, service: Service, pki: Pki) -> None:
        self.port, self.parts, self.service, self.pki = port, parts, service, pki
        self.host = "127.0.0.1"

    def url(self, path: str = POLICIES) -> str:
        return f"https://{self.host}:{self.port}{path}"

    async def ask(
        self,
        path: str = POLICIES,
        *,
        method: str = "GET",
        pair: Pair | None = None,
        headers: Iterable[tuple[str, str]] = (),
        data: Any = None,
    ) -> tuple[int, Any, Any]:
        """(status, decoded JSON or text, headers), over a connection of its own."""
        connector = aiohttp.TCPConnector(ssl=self.pki.client(pair), force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, self.url(path), headers=list(headers), data=data) as answer,
        ):
            text = await answer.text()
            kind = answer.headers.get("Content-Type", "")
            return answer.status, (await answer.json() if "json" in kind and text else text), answer.headers

    def metric(self, name: str, **labels: str) -> float:
        return self.service.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def stage(
    pki: Pki, routes: Iterable[web.AbstractRouteDef] = ROUTES, *, sink: Any = None, host: str = "127.0.0.1",
    **settings: Any,
) -> AsyncIterator[Stage]:  # fmt: skip
    settings = {"reload_interval_s": 0.05, "bind_address": host, "secure_port": 0} | pki.settings() | settings
    config = ApiserverConfig(**settings)
    async with asyncio.TaskGroup() as tasks:
        service = Service("apiserver", tasks, Aggregator(), new_registry(process=False))
        try:
            async with AsyncExitStack() as stack:
                metrics = Metrics(service.registry)
                parts = await build(config, service, stack, metrics, sink, random=Random(1))
                service.spawn(follow(parts.files, config.reload_interval_s), name="files")
                async with serving(config, service, parts, routes, metrics) as listeners:
                    made = Stage(listeners[0].ports[0], parts, service, pki)
                    made.host = f"[{host}]" if ":" in host else host
                    yield made
        finally:
            service._cancel_spawned()


# --- a kube-apiserver's two reviews and its ConfigMap ----------------------------------------------------------------


@dataclass
class Reviewer:
    """Decides by `allow`, knows `tokens`, and counts what it was asked. down: answers 503 to everything."""

    allow: Any = lambda spec: True
    tokens: dict[str, JsonObject] = field(default_factory=dict)
    trust: dict[str, str] = field(default_factory=dict)
    bearer: str = "own-token"
    down: bool = False
    delay_s: float = 0.0
    asked: list[JsonObject] = field(default_factory=list)
    reviewed: int = 0
    port: int = 0

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.bearer}":
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        if self.down:
            return web.json_response({"kind": "Status", "code": 503}, status=503)
        await asyncio.sleep(self.delay_s)
        return await handler(request)

    async def access(self, request: web.Request) -> web.Response:
        review = await request.json()
        assert (review["apiVersion"], review["kind"]) == ("authorization.k8s.io/v1", "SubjectAccessReview")
        self.asked.append(review["spec"])
        allowed = bool(self.allow(review["spec"]))
        return web.json_response(
            review | {"status": {"allowed": allowed, "reason": "" if allowed else "no rule"}}, status=201
        )

    async def token(self, request: web.Request) -> web.Response:
        review = await request.json()
        assert (review["apiVersion"], review["kind"]) == ("authentication.k8s.io/v1", "TokenReview")
        self.reviewed += 1
        user = self.tokens.get(review["spec"]["token"])
        status = {"authenticated": True, "user": user} if user else {"error": "token unknown"}
        return web.json_response(review | {"status": status}, status=201)

    async def config(self, _: web.Request) -> web.Response:
        return web.json_response({"apiVersion": "v1", "kind": "ConfigMap", "data": self.trust})

    @contextlib.asynccontextmanager
    async def serving(self, pki: Pki) -> AsyncIterator[Self]:
        app = web.Application(middlewares=[self.guard])
        app.router.add_post("/apis/authorization.k8s.io/v1/subjectaccessreviews", self.access)
        app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", self.token)
        app.router.add_get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication", self.config)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pki.home / "server.crt", pki.home / "server.key")
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context).start()
            self.port = runner.addresses[0][1]
            yield self
        finally:
            await runner.cleanup()

    def kubeconfig(self, pki: Pki) -> Path:
        path = pki.home / "kubeconfig"
        path.write_text(
            f"""apiVersion: v1
kind: Config
current-context: it
contexts: [{{name: it, context: {{cluster: it, user: it}}}}]
clusters: [{{name: it, cluster: {{server: "https://127.0.0.1:{self.port}", certificate-authority: {pki.home}/ca.crt}}}}]
users: [{{name: it, user: {{token: {self.bearer}}}}}]
"""
        )
        return path
