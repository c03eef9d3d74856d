"""What ADD learns of a pod from the Kubernetes API, and what it does when that answers badly (facts/
kubernetes-conversion.md section 6).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from aiohttp import web

from libs.kube.api import IN_CLUSTER, credentials
from libs.resources.client import ResourceClient
from libs.store.memory import MemoryStore
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request, parse
from services.felix.shell.cni.kubernetes import KubernetesPods
from services.felix.shell.cni.pods import RequestPods
from tests.unit.services.felix.cni_stage import posted

POD: dict[str, Any] = {
    "metadata": {
        "name": "web", "namespace": "ns1", "uid": "u1", "labels": {"app": "web"}, "generateName": "web-",
        "annotations": {"cni.projectcalico.org/ipv4pools": '["a"]'},
    },
    "spec": {
        "serviceAccountName": "robot",
        "containers": [
            {"name": "c", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}]},
            {"name": "d", "ports": [{"containerPort": 53, "protocol": "UDP", "hostPort": 5353}]},
        ],
        "initContainers": [{"name": "i", "ports": [{"containerPort": 9, "name": "side"}]}],
    },
}  # fmt: skip
NAMESPACE = {"metadata": {"name": "ns1", "annotations": {"cni.projectcalico.org/ipv6pools": '["b"]'}}}
Answer = Callable[[web.Request], web.StreamResponse]


class Api:
    """answers: what the next requests get instead, one after the other; None hangs."""

    def __init__(self, directory: Path) -> None:
        self.kubeconfig = directory / "kubeconfig"
        self.pod: dict[str, Any] | None = POD
        self.answers: list[int | None] = []
        self.tokens: list[str] = []
        self.accepted = "t0"
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.tokens.append(token)
        if token != self.accepted:
            return _status(401, "Unauthorized")
        if request.path.endswith("/pods/web"):
            if self.answers:
                code = self.answers.pop(0)
                if code is None:
                    await asyncio.sleep(60)
                return _status(code or 500, "not today")
            return web.json_response(self.pod) if self.pod else _status(404, 'pods "web" not found')
        if request.path == "/api/v1/nodes/node1":
            return web.json_response({"spec": {"podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]}})
        return web.json_response(NAMESPACE)

    def write(self, token: str) -> None:
        fresh = self.kubeconfig.with_suffix(".new")
        fresh.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "c", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        }))  # fmt: skip
        fresh.rename(self.kubeconfig)


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)


@asynccontextmanager
async def serving(directory: Path, limit_s: float = 10.0) -> AsyncIterator[tuple[Api, KubernetesPods]]:
    api = Api(directory)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.port = runner.addresses[0][1]
    api.write("t0")
    store = RequestPods(ResourceClient(MemoryStore()))
    pods = KubernetesPods(api.kubeconfig, store, Random(1), limit_s=limit_s)
    try:
        yield api, pods
    finally:
        await pods.aclose()
        await runner.cleanup()


def add(uid: str = "", **config: Any) -> Request:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns1;K8S_POD_NAME=web" + (f";K8S_POD_UID={uid}" if uid else "")
    return parse(posted({"CNI_ARGS": args}, **config))


async def test_the_pod_and_its_namespace_are_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, pods):
        facts = await pods.facts(add(uid="u1"))
        assert await pods.pod_cidrs("node1") == {4: "10.1.0.0/24", 6: "fd00:1::/64"}
    assert facts.labels == {"app": "web"}
    assert (facts.service_account, facts.generate_name) == ("robot", "web-")
    assert facts.annotation("cni.projectcalico.org/ipv4pools") == '["a"]'
    assert facts.annotation("cni.projectcalico.org/ipv6pools") == '["b"]'
    assert [(one.name, one.port, one.protocol, one.host_port) for one in facts.ports] == [
        ("http", 80, "TCP", 0), ("", 53, "UDP", 5353), ("side", 9, "TCP", 0),
    ]  # fmt: skip


async def test_labels_that_changed_are_seen_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as (api, pods):
        await pods.facts(add())
        api.pod = {**POD, "metadata": {**POD["metadata"], "labels": {"app": "other"}}}
        assert (await pods.facts(add())).labels == {"app": "other"}


async def test_a_pod_of_the_same_name_is_not_the_same_pod(tmp_path: Path) -> None:
    async with serving(tmp_path) as (api, pods):
        with pytest.raises(CniError, match=r"another one by now.*uid u0.*u1") as caught:
            await pods.facts(add(uid="u0"))
        assert caught.value.code == Code.TRY_AGAIN
        mirrored = {"kubernetes.io/config.mirror": "u0"}  # a static pod, known to the kubelet by its own uid
        api.pod = {**POD, "metadata": {**POD["metadata"], "annotations": mirrored}}
        assert (await pods.facts(add(uid="u0"))).labels == {"app": "web"}


async def test_no_such_pod_and_no_permission_are_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as (api, pods):
        api.answers = [403]
        with pytest.raises(CniError, match=r"pod ns1/web cannot be read.*not today.*needs get on pods") as caught:
            await pods.facts(add())
        assert caught.value.code == Code.INTERNAL
        api.pod = None
        with pytest.raises(CniError, match="Kubernetes has no pod ns1/web") as caught:
            await pods.facts(add())
        assert caught.value.code == Code.TRY_AGAIN
        api.pod = {"metadata": {"labels": {"app": 5}}}
        with pytest.raises(CniError, match=r"pod ns1/web: Expected `str`"):
            await pods.facts(add())


async def test_an_api_in_trouble_is_asked_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as (api, pods):
        api.answers = [500, 429, 503]
        assert (await pods.facts(add())).labels == {"app": "web"}
        assert api.answers == []


@pytest.mark.parametrize("trouble", [[500] * 1000, [None]])
async def test_trouble_that_lasts_ends_with_try_again(tmp_path: Path, trouble: list[int | None]) -> None:
    async with serving(tmp_path, limit_s=0.6) as (api, pods):
        api.answers = list(trouble)
        with pytest.raises(CniError, match="does not tell of pod ns1/web") as caught:
            await pods.facts(add())
        assert caught.value.code == Code.TRY_AGAIN


async def test_a_renewed_token_is_used(tmp_path: Path) -> None:
    async with serving(tmp_path) as (api, pods):
        await pods.facts(add())
        api.accepted = "t1"
        api.write("t1")
        before = len(api.tokens)
        assert (await pods.facts(add())).labels == {"app": "web"}
        assert set(api.tokens[before:]) == {"t1"}  # the file is looked at, before anybody refuses
        api.accepted = "t2"  # without a new file: it is read again once, then the refusal is told
        before = len(api.tokens)
        with pytest.raises(CniError, match="401"):
            await pods.facts(add())
        assert len(api.tokens) - before <= 4


async def test_a_token_in_a_file_of_its_own_is_read_again_once_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (api, pods):
        token = tmp_path / "token"
        token.write_text("t0")
        document = yaml.safe_load(api.kubeconfig.read_text())
        document["users"][0]["user"] = {"tokenFile": str(token)}
        api.kubeconfig.write_text(yaml.safe_dump(document))
        await pods.facts(add())
        token.write_text("t1")
        api.accepted = "t1"
        assert (await pods.facts(add())).labels == {"app": "web"}


async def test_without_an_api_the_request_says_it_all(tmp_path: Path) -> None:
    async with serving(tmp_path) as (api, with_api):
        labels = {"args": {"cni": {"labels": {"app": "told"}}}}
        none = KubernetesPods(None, RequestPods(ResourceClient(MemoryStore())), Random(1))
        assert (await none.facts(add(**labels))).labels == {"app": "told"}
        # The configuration names one; a container that is no pod is nobody's business there.
        named = labels | {"kubernetes": {"kubeconfig": str(api.kubeconfig)}}
        assert (await none.facts(add(**named))).labels == {"app": "web"}
        plain = parse(posted({"CNI_ARGS": ""}, **named))
        assert (await with_api.facts(plain)).labels == {"app": "told"}
        with pytest.raises(CniError, match="kubeconfig /none/here"):
            await none.facts(add(kubernetes={"kubeconfig": "/none/here"}))
        await none.aclose()


def test_a_service_account_is_used_where_there_is_one(tmp_path: Path) -> None:
    token = tmp_path / "token"
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    assert credentials(None, environ, token) is None
    token.touch()
    assert credentials(None, environ, token) == IN_CLUSTER
    assert credentials(None, {}, token) is None
    assert credentials(tmp_path, environ, token) == tmp_path
    assert credentials(None, os.environ) is None
