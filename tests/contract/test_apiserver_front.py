"""The front of apiserver over real TLS: who gets in, as whom, and what is answered to the others (rows A12, X07)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.apiserver.core.request import API_PREFIX
from services.apiserver.core.status import not_found
from tests.contract.apiserver_stage import POLICIES, ROUTES, SERVER, Pki, Recorder, Stage, issue, stage

ROLES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- {apiGroups: [projectcalico.org], resources: ["*"], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects:
- {kind: Group, name: readers}
- {kind: User, name: proxied}
"""
TOKENS = 'tok-reader-12345,rita,u1,"readers,others"\ntok-admin-12345,adam,u2,system:masters\ntok-nobody-12345,norm,u3\n'


def bearer(token: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {token}")]


READER, ADMIN, NOBODY = bearer("tok-reader-12345"), bearer("tok-admin-12345"), bearer("tok-nobody-12345")


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def shared_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def pki(tmp_path: Path, shared_pki: Pki) -> Pki:
    """Same authorities, files of its own."""
    return Pki(tmp_path / "pki", shared_pki.ca, shared_pki.people, shared_pki.proxy, shared_pki.other)


@pytest.fixture
def settings(pki: Pki) -> dict[str, Any]:
    (pki.home / "tokens").write_text(TOKENS)
    (pki.home / "tokens").chmod(0o600)
    (pki.home / "roles").write_text(ROLES)
    return {
        "client_ca_file": pki.home / "people.crt", "requestheader_client_ca_file": pki.home / "proxy.crt",
        "requestheader_allowed_names": ("front-proxy",), "token_auth_file": pki.home / "tokens",
        "authorization_role_file": pki.home / "roles",
    }  # fmt: skip


@pytest.fixture
async def front(pki: Pki, settings: dict[str, Any]) -> AsyncIterator[Stage]:
    async with stage(pki, **settings) as made:
        yield made


# --- who gets in ----------------------------------------------------------------------------------------------------


async def test_without_credentials_only_the_open_paths_answer(front: Stage) -> None:
    status, body, headers = await front.ask()
    assert (status, body["reason"], body["message"]) == (401, "Unauthorized", "Unauthorized")
    assert body["kind"] == "Status"
    assert headers["Audit-Id"]
    assert [(await front.ask(path))[0] for path in ("/livez", "/healthz", "/readyz")] == [200, 200, 200]
    assert [(await front.ask(path))[0] for path in ("/apis", "/openapi/v3", "/metrics", "/nope")] == [401] * 4


@pytest.mark.parametrize(
    "authorization", ["Bearer wrong", "Bearer", "Basic cm9vdDpyb290", "bearer  ", "Bearer " + "x" * 5000]
)
async def test_bad_credentials_are_refused_even_where_none_are_needed(front: Stage, authorization: str) -> None:
    headers = [("Authorization", authorization)]
    assert [(await front.ask(path, headers=headers))[0] for path in (POLICIES, "/livez")] == [401, 401]


async def test_two_authorization_headers_are_none(front: Stage) -> None:
    assert (await front.ask(headers=[*READER, *NOBODY]))[0] == 401


async def test_a_token_of_the_file(front: Stage) -> None:
    status, body, _ = await front.ask(headers=READER)
    assert status == 200
    assert (body["name"], body["uid"], body["verb"]) == ("rita", "u1", "list")
    assert body["groups"] == ["readers", "others", "system:authenticated"]
    assert (await front.ask(headers=[("authorization", "bEaReR tok-reader-12345")]))[0] == 200


async def test_a_client_certificate(front: Stage) -> None:
    status, body, _ = await front.ask(pair=front.pki.person("carl", "readers", "more"))
    assert (status, body["name"], body["groups"]) == (200, "carl", ["readers", "more", "system:authenticated"])
    assert "authentication.kubernetes.io/credential-id" in body["extra"]


async def test_a_client_certificate_by_an_intermediate(front: Stage) -> None:
    middle = issue("middle", front.pki.people, ca=True)
    connector = aiohttp.TCPConnector(ssl=front.pki.client(issue("carl", middle, groups=["readers"]), middle))
    async with aiohttp.ClientSession(connector=connector) as session, session.get(front.url()) as answer:
        assert (answer.status, (await answer.json())["name"]) == (200, "carl")


@pytest.mark.parametrize(
    "make",
    [
        lambda pki: issue("carl", pki.other, groups=["system:masters"]),
        lambda pki: issue("carl", groups=["system:masters"]),
        lambda pki: pki.person("carl", "system:masters", valid_s=-60),
        lambda pki: pki.person("carl", "system:masters", uses=(SERVER,)),
        lambda pki: issue("carl", pki.ca, groups=["system:masters"]),
        lambda pki: issue("carl", pki.person("eve"), groups=["system:masters"]),
    ],
    ids=["unknown authority", "self-signed", "run out", "for servers", "server's authority", "signed by a person"],
)
async def test_a12_unknown_clients_are_refused(front: Stage, make: Callable[[Pki], Any]) -> None:
    """By the handshake, or, where they get through that, by 401; never by an answer."""
    errors = front.metric("apiserver_tls_handshake_errors_total")
    with pytest.raises(aiohttp.ClientError):
        await front.ask(pair=make(front.pki))
    await until(lambda: front.metric("apiserver_tls_handshake_errors_total") > errors, "it is counted")
    assert (await front.ask(headers=READER))[0] == 200, "and others are still served"


async def test_a_certificate_of_the_proxys_authority_is_no_client(front: Stage) -> None:
    """OpenSSL knows both authorities; which one signed is for us to tell apart."""
    mallory = issue("mallory", front.pki.proxy, groups=["system:masters"])
    assert (await front.ask(pair=mallory))[0] == 401
    assert (await front.ask("/livez", pair=mallory))[0] == 401
    assert (await front.ask(pair=mallory, headers=READER))[1]["name"] == "rita", "a token still counts"


# --- the front proxy ------------------------------------------------------------------------------------------------

AS_PROXIED = [
    ("X-Remote-User", "proxied"), ("X-Remote-Group", "a"), ("X-Remote-Group", "b"), ("X-Remote-Uid", "7"),
    ("X-Remote-Extra-Acme.com%2Fproject", "one"), ("X-Remote-Extra-Acme.com%2Fproject", "two%20"),
]  # fmt: skip


async def test_the_proxys_headers_say_who_asks(front: Stage) -> None:
    status, body, _ = await front.ask(pair=issue("front-proxy", front.pki.proxy), headers=AS_PROXIED)
    assert (status, body["name"], body["uid"]) == (200, "proxied", "7")
    assert body["groups"] == ["a", "b", "system:authenticated"]
    assert body["extra"] == {"acme.com/project": ["one", "two%20"]}


async def test_the_proxys_headers_mean_nothing_from_anybody_else(front: Stage) -> None:
    spoof = [("X-Remote-User", "root"), ("X-Remote-Group", "system:masters")]
    assert (await front.ask(headers=spoof))[0] == 401
    status, body, _ = await front.ask(headers=[*READER, *spoof])
    assert (status, body["name"], "system:masters" in body["groups"]) == (200, "rita", False)
    status, body, _ = await front.ask(pair=front.pki.person("carl", "readers"), headers=spoof)
    assert (status, body["name"], "system:masters" in body["groups"]) == (200, "carl", False)
    for fake in (issue("front-proxy", front.pki.people), issue("front-proxy", front.pki.proxy, uses=(SERVER,))):
        with contextlib.suppress(aiohttp.ClientError):
            status, body, _ = await front.ask(pair=fake, headers=spoof)
            assert status in (401, 403), body


async def test_a_proxy_of_another_name_is_refused(front: Stage) -> None:
    assert (await front.ask(pair=issue("someone", front.pki.proxy), headers=AS_PROXIED))[0] == 401


async def test_names_that_cannot_be_told_are_refused(front: Stage) -> None:
    proxy = issue("front-proxy", front.pki.proxy)
    context = front.pki.client(proxy)
    for value in (b"\xff\xfe", b"a\x01b"):
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
        writer.write(b"GET " + POLICIES.encode() + b" HTTP/1.1\r\nHost: x\r\nX-Remote-User: " + value + b"\r\n\r\n")
        assert (await reader.readline()).split()[1] in (b"400", b"401")
        writer.close()


# --- what may be done -----------------------------------------------------------------------------------------------


async def test_refusals_are_worded_as_kubernetes_does(front: Stage) -> None:
    status, body, _ = await front.ask(headers=NOBODY)
    assert (status, body["reason"], body["code"]) == (403, "Forbidden", 403)
    assert body["message"] == (
        'networkpolicies.projectcalico.org is forbidden: User "norm" cannot list resource "networkpolicies" in API'
        ' group "projectcalico.org" in the namespace "default"'
    )
    assert body["details"] == {"group": "projectcalico.org", "kind": "networkpolicies"}
    _, body, _ = await front.ask(f"{API_PREFIX}/ippools/p1/status", method="PUT", headers=READER, data=b"{}")
    assert body["message"] == (
        'ippools.projectcalico.org "p1" is forbidden: User "rita" cannot update resource "ippools/status" in API group'
        ' "projectcalico.org" at the cluster scope'
    )
    assert body["details"] == {"group": "projectcalico.org", "kind": "ippools", "name": "p1"}
    _, body, _ = await front.ask("/metrics", headers=READER)
    assert body["message"] == 'forbidden: User "rita" cannot get path "/metrics"'
    assert (await front.ask("/apis", headers=NOBODY))[0] == 200, "discovery is for all who are known"


async def test_unknown_paths_and_methods(front: Stage) -> None:
    status, body, _ = await front.ask("/nope", headers=ADMIN)
    assert (status, body["reason"]) == (404, "NotFound")
    status, body, _ = await front.ask(f"{API_PREFIX}/nopes", headers=ADMIN)
    assert (status, body["message"]) == (404, "the server could not find the requested resource")
    status, body, _ = await front.ask(POLICIES, method="OPTIONS", headers=ADMIN)
    assert (status, body["reason"]) == (405, "MethodNotAllowed")
    status, text, headers = await front.ask("/nope", headers=[*ADMIN, ("Accept", "application/yaml")])
    assert (status, headers["Content-Type"].split(";")[0]) == (404, "application/yaml")
    assert "reason: NotFound" in text
    status, text, _ = await front.ask(POLICIES, method="HEAD", headers=READER)
    assert (status, text) == (200, "")


async def test_impersonation_needs_the_verb_for_each_part(front: Stage) -> None:
    as_carl = [("Impersonate-User", "carl"), ("Impersonate-Group", "readers"), ("Impersonate-Extra-scopes", "x")]
    status, body, _ = await front.ask(headers=[*READER, *as_carl])
    assert status == 403
    assert body["message"] == (
        'users "carl" is forbidden: User "rita" cannot impersonate resource "users" in API group ""'
        " at the cluster scope"
    )
    status, body, _ = await front.ask(headers=[*ADMIN, *as_carl])
    assert (status, body["name"], body["extra"]) == (200, "carl", {"scopes": ["x"]})
    assert body["groups"] == ["readers", "system:authenticated"]
    status, body, _ = await front.ask(headers=[*ADMIN, ("Impersonate-Group", "readers")])
    assert (status, body["reason"]) == (400, "BadRequest")
    status, body, _ = await front.ask(headers=[*ADMIN, ("Impersonate-User", "norm")])
    assert status == 403, "one may do what the other may"
    (front.pki.home / "roles").write_text(
        ROLES + "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: carls}\n"
        "rules: [{apiGroups: [''], resources: [users], resourceNames: [carl], verbs: [impersonate]}]\n---\n"
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: carls}\n"
        "roleRef: {kind: ClusterRole, name: carls}\nsubjects: [{kind: User, name: rita}]\n"
    )
    await until(lambda: "carls" in str(front.parts.authorization._judges[0]._roles), "roles taken")  # type: ignore[attr-defined]
    assert (await front.ask(headers=[*READER, ("Impersonate-User", "carl")]))[0] == 403, "carl alone may read nothing"
    _, body, _ = await front.ask(headers=[*READER, *as_carl])
    assert 'groups "readers" is forbidden' in body["message"], "each part is asked for"


# --- files that change ----------------------------------------------------------------------------------------------


async def served(port: int, context: ssl.SSLContext) -> bytes:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    found = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    return bytes(found)


async def test_a12_certificates_are_replaced_while_connections_stand(front: Stage) -> None:
    context = front.pki.client()
    before = await served(front.port, context)
    connector = aiohttp.TCPConnector(ssl=context, limit=1)
    async with aiohttp.ClientSession(connector=connector, headers=dict(READER)) as session:
        async with session.get(front.url()) as answer:
            assert answer.status == 200
        (front.pki.home / "server.crt").write_text("not a certificate")
        await asyncio.sleep(0.2)
        assert await served(front.port, context) == before, "a bad file changes nothing"
        front.pki.new_server("renewed")
        deadline = time.monotonic() + 20
        while await served(front.port, context) == before:
            assert time.monotonic() < deadline
        connections = len(connector._conns)
        async with session.get(front.url()) as answer:
            assert answer.status == 200, "the standing connection goes on"
        assert connections == 1


async def test_authorities_are_replaced_without_a_restart(front: Stage) -> None:
    old, new = front.pki.person("carl", "readers"), issue("dora", front.pki.other, groups=["readers"])
    connector = aiohttp.TCPConnector(ssl=front.pki.client(old), limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get(front.url()) as answer:
            assert answer.status == 200
        (front.pki.home / "people.crt").write_bytes(front.pki.other.pem)
        await until(lambda: front.parts.trust.clients["file"].pem == front.pki.other.pem, "taken")
        assert (await front.ask(pair=new))[1]["name"] == "dora"
        with pytest.raises(aiohttp.ClientError):
            await front.ask(pair=old)
        async with session.get(front.url()) as answer:
            assert answer.status == 401, "also on a connection from before"


async def test_tokens_and_roles_are_read_again_and_bad_ones_keep_the_last_good(front: Stage) -> None:
    tokens, roles = front.pki.home / "tokens", front.pki.home / "roles"
    tokens.write_text("new-token-12345,nina,u9,readers\n")
    deadline = time.monotonic() + 20
    while (await front.ask(headers=bearer("new-token-12345")))[0] != 200:
        assert time.monotonic() < deadline
    assert (await front.ask(headers=READER))[0] == 401, "a token that was taken out is no good at once"
    tokens.write_text("only-one-column\n")
    roles.write_text("kind: [")
    files = {file.what: file for file in front.parts.files}
    await until(lambda: bool(files["tokens"].trouble and files["roles"].trouble), "both are seen")
    assert "line 1" in files["tokens"].trouble
    assert "only-one-column" not in files["tokens"].trouble, "no tokens in errors"
    assert (await front.ask(headers=bearer("new-token-12345")))[0] == 200


# --- TLS ------------------------------------------------------------------------------------------------------------


async def refused(port: int, context: ssl.SSLContext) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    except (ssl.SSLError, ConnectionError):
        return True
    writer.close()
    return False


def client(pki: Pki, low: ssl.TLSVersion, high: ssl.TLSVersion, ciphers: str = "") -> ssl.SSLContext:
    context = pki.client()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers(ciphers or "ALL:@SECLEVEL=0")  # else our own side would refuse before the server does
    context.maximum_version = high
    context.minimum_version = low
    return context


V1_1, V1_2, V1_3 = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


async def test_a12_tls_1_1_is_refused(front: Stage) -> None:
    assert await refused(front.port, client(front.pki, V1_1, V1_1))
    assert not await refused(front.port, client(front.pki, V1_2, V1_2))
    assert not await refused(front.port, client(front.pki, V1_3, V1_3))
    await until(lambda: front.metric("apiserver_tls_handshake_errors_total") == 1, "it is counted")


async def test_a12_versions_and_suites_are_settings(pki: Pki, settings: dict[str, Any]) -> None:
    async with stage(pki, **settings, tls_min_version="VersionTLS13") as front:
        assert await refused(front.port, client(pki, V1_2, V1_2))
        assert not await refused(front.port, client(pki, V1_3, V1_3))
    suites = ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",)
    async with stage(pki, **settings, tls_cipher_suites=suites) as front:
        assert await refused(front.port, client(pki, V1_2, V1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"))
        assert not await refused(front.port, client(pki, V1_2, V1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"))


async def test_ipv6(pki: Pki, settings: dict[str, Any]) -> None:
    async with stage(pki, **settings, host="::1") as front:
        assert (await front.ask(headers=READER))[1]["name"] == "rita"


async def test_plain_http_to_the_tls_port_does_no_harm(front: Stage) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"HTTP/1.1 200" not in await reader.read()
    writer.close()
    assert (await front.ask(headers=READER))[0] == 200


# --- what is told, and what is not ----------------------------------------------------------------------------------


async def broken(_: web.Request) -> web.Response:
    raise RuntimeError("internals with passwords")


async def missing(_: web.Request) -> web.Response:
    raise not_found("networkpolicies", "web")


async def test_audit_events_and_the_request_log_tell_who_and_what_but_no_secrets(
    pki: Pki, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """X07: nothing of a credential or a body is in what we write."""
    caplog.set_level(logging.DEBUG)
    recorder = Recorder()
    routes = [web.get(POLICIES + "/broken", broken), web.get(POLICIES + "/web", missing), *ROUTES]
    async with stage(pki, routes, sink=recorder, **settings) as front:
        given = [("Audit-Id", "from-the-front-1"), ("X-Forwarded-For", "192.0.2.7, 2001:db8::1")]
        proxy = issue("front-proxy", pki.proxy)
        assert (await front.ask(POLICIES + "?labelSelector=a%3Db", pair=proxy, headers=[*AS_PROXIED, *given]))[0] == 200
        await front.ask(headers=bearer("wrong-token-98765"))
        body = b'{"metadata": {"name": "x"}, "spec": {"password": "body-secret"}}'
        await front.ask(POLICIES + "?access_token=query-secret", method="POST", headers=ADMIN, data=body)
        status, failed, headers = await front.ask(POLICIES + "/broken", headers=READER)
        assert (status, failed["reason"]) == (500, "InternalError")
        assert "passwords" not in failed["message"]
        assert headers["Audit-Id"] in failed["message"]
        _, failed, _ = await front.ask(POLICIES + "/web", headers=READER)
        assert failed["message"] == 'networkpolicies.projectcalico.org "web" not found'
        as_carl = [("Impersonate-User", "carl"), ("Impersonate-Group", "readers")]
        await front.ask(headers=[*ADMIN, *as_carl])
        await front.ask("/livez")
    first, denied, created, crashed, lost, other = recorder.events
    assert (first["kind"], first["apiVersion"], first["level"]) == ("Event", "audit.k8s.io/v1", "Metadata")
    assert (first["auditID"], first["stage"], first["verb"]) == ("from-the-front-1", "ResponseComplete", "list")
    assert first["user"]["username"] == "proxied"
    assert first["sourceIPs"] == ["192.0.2.7", "2001:db8::1", "127.0.0.1"]
    assert first["objectRef"] == {
        "resource": "networkpolicies", "namespace": "default", "apiGroup": "projectcalico.org", "apiVersion": "v3"
    }  # fmt: skip
    assert first["responseStatus"] == {"metadata": {}, "code": 200}
    assert first["annotations"]["authorization.k8s.io/decision"] == "allow"
    assert "readers" in first["annotations"]["authorization.k8s.io/reason"]
    assert denied["responseStatus"]["code"] == 401
    assert (created["verb"], created["responseStatus"]["code"]) == ("create", 200)
    assert crashed["responseStatus"]["code"] == 500
    assert (lost["responseStatus"]["reason"], lost["responseStatus"]["code"]) == ("NotFound", 404)
    assert (other["user"]["username"], other["impersonatedUser"]["username"]) == ("adam", "carl")
    written = str(recorder.events) + "\n".join(str(record.__dict__) for record in caplog.records)
    secrets = ["tok-reader-12345", "tok-admin-12345", "wrong-token-98765", "body-secret", "query-secret", "PRIVATE KEY"]
    assert [secret for secret in secrets if secret in written] == []
    lines = [record for record in caplog.records if record.name == "services.apiserver.requests"]
    told = [(r.user, r.verb, r.path, r.code) for r in lines]  # type: ignore[attr-defined]
    assert ("proxied", "list", POLICIES, 200) in told
    assert ("", "list", POLICIES, 401) in told


async def test_health_paths_in_kubernetes_form(front: Stage) -> None:
    reporter = front.service.health.register("Datastore")
    status, text, _ = await front.ask("/readyz?verbose")
    assert (status, "[-]datastore failed: reason withheld" in text) == (500, True)
    assert text.endswith("readyz check failed\n")
    assert (await front.ask("/livez"))[:2] == (200, "ok"), "not ready is not dead"
    assert (await front.ask("/readyz?exclude=datastore"))[:2] == (200, "ok")
    assert (await front.ask("/readyz/datastore", headers=ADMIN))[0] == 500
    reporter.report()
    assert (await front.ask("/readyz"))[:2] == (200, "ok")
    text = (await front.ask("/healthz?verbose"))[1]
    assert text == "[+]ping ok\n[+]datastore ok\n[+]shutdown ok\nhealthz check passed\n"
    assert (await front.ask("/readyz/nope", headers=ADMIN))[0] == 404


async def test_metrics_have_kubernetes_names_and_bounded_labels(front: Stage) -> None:
    for number in range(5):
        await front.ask(f"/made-up-{number}", headers=ADMIN)
    await front.ask(headers=READER)
    await front.ask()
    what = {
        "verb": "LIST", "group": "projectcalico.org", "version": "v3", "resource": "networkpolicies", "subresource": "",
        "scope": "namespace", "component": "apiserver",
    }  # fmt: skip
    assert front.metric("apiserver_request_total", **what, dry_run="", code="200") == 1
    assert front.metric("apiserver_request_total", **what, dry_run="", code="401") == 1
    assert front.metric("apiserver_request_duration_seconds_count", **what) == 2
    assert front.metric("authentication_attempts_total", result="failure") == 1
    samples = [
        s.labels for m in front.service.registry.collect() for s in m.samples if s.name == "apiserver_request_total"
    ]
    assert not [labels for labels in samples if "made-up" in str(labels)]


async def test_large_answers_are_compressed_for_who_can_read_that(pki: Pki, settings: dict[str, Any]) -> None:
    async def large(_: web.Request) -> web.Response:
        return web.Response(body=b"[" + b"1," * 200_000 + b"1]", content_type="application/json")

    async with stage(pki, [web.get(POLICIES, large)], **settings) as front:
        for accepted, encoding in (("gzip", "gzip"), ("identity", None)):
            _, body, headers = await front.ask(headers=[*READER, ("Accept-Encoding", accepted)])
            assert (len(body), headers.get("Content-Encoding")) == (200_001, encoding)
