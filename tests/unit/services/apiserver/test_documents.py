"""The documents as they are served: forms, caching, compression, errors."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from services.apiserver.core import discovery
from tests.unit.services.apiserver.described import VERSION, Described, described

V3_PATH = "/openapi/v3/apis/projectcalico.org/v3"
PATHS = [
    "/", "/api", "/apis", "/apis/projectcalico.org", "/apis/projectcalico.org/v3", "/version", "/openapi/v2",
    "/openapi/v3", V3_PATH, "/apis/authentication.k8s.io", "/apis/authentication.k8s.io/v1",
    "/apis/authorization.k8s.io", "/apis/authorization.k8s.io/v1",
]  # fmt: skip
PROTOBUF = "application/com.github.proto-openapi.spec.%s@v1.0+protobuf"
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=%s;as=APIGroupDiscoveryList"


@pytest.fixture
async def server() -> AsyncIterator[Described]:
    async with described() as running:
        yield running


@pytest.fixture
async def client(server: Described) -> AsyncIterator[aiohttp.ClientSession]:
    """Takes what comes, without unpacking or following."""
    async with aiohttp.ClientSession(
        server.url, auto_decompress=False, headers={"Accept-Encoding": "identity"}, raise_for_status=False
    ) as session:
        yield session


async def fetch(client: aiohttp.ClientSession, path: str, **headers: str) -> tuple[int, Any, aiohttp.ClientResponse]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.get(path, headers=names, allow_redirects=False) as response:
        body = await response.read()
        return response.status, json.loads(body) if body and response.status != 301 else body, response


@pytest.mark.parametrize("path", PATHS)
async def test_each_document_is_json_with_a_tag_by_which_it_need_not_be_sent_again(
    client: aiohttp.ClientSession, path: str
) -> None:
    status, body, response = await fetch(client, path)
    assert (status, response.content_type) == (200, "application/json")
    assert isinstance(body, dict)
    etag = response.headers["ETag"]
    assert len(etag) == 130
    assert etag == f'"{etag[1:-1].upper()}"', "SHA-512 in capitals, quoted"
    assert "Accept" in response.headers["Vary"]
    for tags in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        status, body, response = await fetch(client, path, If_None_Match=tags)
        assert (status, body, response.headers["ETag"]) == (304, b"", etag)
    assert (await fetch(client, path, If_None_Match='"other"'))[0] == 200
    slashed, other, _ = await fetch(client, path.rstrip("/") + "/")
    assert slashed == 200
    assert other == (await fetch(client, path))[1]


@pytest.mark.parametrize("path", PATHS)
async def test_tags_are_the_same_for_every_replica(client: aiohttp.ClientSession, path: str) -> None:
    _, _, first = await fetch(client, path)
    async with described(fresh=True) as again, aiohttp.ClientSession(again.url) as other, other.get(path) as second:
        assert second.headers["ETag"] == first.headers["ETag"]


@pytest.mark.parametrize("path", ["/api", "/apis"])
@pytest.mark.parametrize("version", ["v2", "v2beta1"])
async def test_aggregated_discovery_is_for_who_asks(client: aiohttp.ClientSession, path: str, version: str) -> None:
    kubectl = f"{AGGREGATED % version},application/json"
    status, body, response = await fetch(client, path, Accept=kubectl)
    assert status == 200
    assert response.headers["Content-Type"] == AGGREGATED % version, "parameters in this order: clients compare it"
    assert body == discovery.aggregated(version, core=path == "/api")
    _, plain, legacy = await fetch(client, path, Accept="application/json")
    assert plain["kind"] in ("APIVersions", "APIGroupList")
    assert legacy.headers["Content-Type"] == "application/json"
    assert legacy.headers["ETag"] != response.headers["ETag"]
    # A tag of one form is none of the other.
    assert (await fetch(client, path, Accept=kubectl, If_None_Match=legacy.headers["ETag"]))[0] == 200
    assert (await fetch(client, path, Accept=kubectl, If_None_Match=response.headers["ETag"]))[0] == 304


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/openapi/v2", PROTOBUF % "v2"),
        (V3_PATH, PROTOBUF % "v3"),
        ("/apis", "application/vnd.kubernetes.protobuf"),
        ("/apis", AGGREGATED % "v3"),
        ("/version", "text/html"),
    ],
)
async def test_forms_that_are_not_there_are_refused_with_those_that_are(
    client: aiohttp.ClientSession, path: str, wanted: str
) -> None:
    status, body, _ = await fetch(client, path, Accept=wanted)
    assert (status, body["kind"], body["reason"], body["code"]) == (406, "Status", "NotAcceptable", 406)
    assert "application/json" in body["message"]
    assert (await fetch(client, path, Accept=f"{wanted}, application/json"))[0] == 200
    assert (await fetch(client, path, Accept=f"{wanted}, */*"))[0] == 200


async def test_kube_apiservers_aggregator_gets_what_it_asks_for(client: aiohttp.ClientSession) -> None:
    """v2 with `Accept: application/json` and the last tag; v3 without any Accept (kube-aggregator, downloader.go)."""
    status, body, response = await fetch(client, "/openapi/v2", Accept="application/json")
    assert (status, body["swagger"]) == (200, "2.0")
    tag = response.headers["ETag"]
    assert (await fetch(client, "/openapi/v2", Accept="application/json", If_None_Match=tag))[0] == 304
    async with client.get("/openapi/v3", skip_auto_headers=["Accept"]) as index:
        assert index.status == 200
        assert set((await index.json())["paths"]) == {"apis/projectcalico.org/v3"}


async def test_a_document_asked_for_by_its_hash_may_be_kept_for_ever(client: aiohttp.ClientSession) -> None:
    _, index, _ = await fetch(client, "/openapi/v3")
    url = index["paths"]["apis/projectcalico.org/v3"]["serverRelativeURL"]
    status, body, response = await fetch(client, url)
    assert (status, body["openapi"], body["info"]["version"]) == (200, "3.0.0", VERSION)
    assert "immutable" in response.headers["Cache-Control"]
    assert response.headers["ETag"] == f'"{url.partition("?hash=")[2]}"'
    _, _, plain = await fetch(client, V3_PATH)
    assert "immutable" not in plain.headers["Cache-Control"], "may change with the next version of the server"
    status, _, moved = await fetch(client, f"{V3_PATH}?hash=0123")
    assert (status, moved.headers["Location"]) == (301, url)


@pytest.mark.parametrize("path", ["/openapi/v2", V3_PATH, "/apis/projectcalico.org/v3"])
async def test_large_documents_are_packed_for_who_takes_it(client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(path) as plain, client.get(path, headers={"Accept-Encoding": "gzip"}) as packed:
        assert "Content-Encoding" not in plain.headers
        assert packed.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in packed.headers["Vary"]
        sent = await packed.read()
        assert gzip.decompress(sent) == await plain.read()
        assert len(sent) * 4 < int(plain.headers["Content-Length"])
    async with client.get("/version", headers={"Accept-Encoding": "gzip"}) as small:
        assert "Content-Encoding" not in small.headers, "not worth it"


async def test_head_says_the_same_without_the_content(client: aiohttp.ClientSession) -> None:
    async with client.get(V3_PATH) as whole, client.head(V3_PATH) as head:
        assert head.status == 200
        assert await head.read() == b""
        assert head.headers["ETag"] == whole.headers["ETag"]
        assert head.headers["Content-Length"] == whole.headers["Content-Length"]


async def test_other_methods_and_paths_are_none_of_these(client: aiohttp.ClientSession) -> None:
    async with client.post("/openapi/v2") as response:
        assert response.status == 405
    for path in ("/openapi/v1", "/openapi/v3/apis/apps/v1", "/apis/other.org"):
        assert (await fetch(client, path))[0] == 404


async def test_the_list_of_paths_has_those_of_others(client: aiohttp.ClientSession) -> None:
    _, body, _ = await fetch(client, "/")
    assert {"/healthz", "/version", "/openapi/v2"} <= set(body["paths"])
    for path in body["paths"]:
        if path != "/healthz":
            assert (await fetch(client, path))[0] == 200
