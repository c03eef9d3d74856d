"""Passwords of BGP peers by the Kubernetes API, with the Role of the manifests. A real kube-apiserver."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio
import yaml

from libs.kube.api import KubeApi
from libs.testkit.kube.control_plane import ControlPlane
from services.bgp.core.settings import SecretRef
from services.bgp.shell.kubernetes_secrets import KubernetesSecrets
from services.bgp.shell.secrets import NotYet
from tests.contract.typha_stage import PROJECT

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

NAMESPACE = "calico-system"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
NAMES = {("ServiceAccount", "calico-node"), *((kind, "calico-node-bgp-secrets") for kind in ("Role", "RoleBinding"))}
PASSWORD, OTHER = SecretRef("bgp-secrets", "rr"), SecretRef("bgp-secrets", "tor")


class Stage:
    def __init__(self, control_plane: ControlPlane, api: KubeApi, account: Path) -> None:
        self.control_plane, self.api, self.account = control_plane, api, account

    async def put(self, name: str, **values: bytes) -> None:
        data = {key: b64encode(value).decode() for key, value in values.items()}
        await self.api.create(SECRETS, {"metadata": {"name": name}, "data": data})

    async def change(self, name: str, **values: bytes | None) -> None:
        data = {key: None if value is None else b64encode(value).decode() for key, value in values.items()}
        await self.api.patch(f"{SECRETS}/{name}", {"data": data})


class Reading:
    """What the speaker asks for every two seconds."""

    def __init__(self, account: Path) -> None:
        self.secrets = KubernetesSecrets(account, NAMESPACE, Random(1))
        self.task = asyncio.create_task(self.secrets.run())

    async def until(self, ref: SecretRef, wanted: bytes | str, *others: SecretRef) -> None:
        """A text: that it is part of why there is none."""
        found: bytes | str = b""
        try:
            async with asyncio.timeout(40):
                while True:
                    found = (await self.secrets.read([ref, *others]))[ref]
                    if found == wanted or (isinstance(wanted, str) and isinstance(found, str) and wanted in found):
                        return
                    assert not self.task.done()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{ref}: {found!r}, not {wanted!r}") from None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(control_plane: ControlPlane) -> AsyncIterator[Stage]:
    def prepare() -> Path:
        control_plane.kubectl("create", "namespace", NAMESPACE)
        documents = yaml.safe_load_all((PROJECT / "k8s/parts/rbac.yaml").read_text())
        mine: list[dict[str, Any]] = [one for one in documents if (one["kind"], one["metadata"]["name"]) in NAMES]
        assert len(mine) == len(NAMES)
        control_plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(mine))
        return control_plane.service_account(NAMESPACE, "calico-node")

    account = await asyncio.to_thread(prepare)
    async with await KubeApi.open(control_plane.admin) as api:
        yield Stage(control_plane, api, account)


@pytest_asyncio.fixture(loop_scope="module")
async def reading(stage: Stage) -> AsyncIterator[Reading]:
    made = Reading(stage.account)
    yield made
    made.task.cancel()
    with suppress(asyncio.CancelledError):
        await made.task
    for name in ("bgp-secrets", "not-granted"):
        await asyncio.to_thread(stage.control_plane.kubectl.run, "delete", "secret", name, "-n", NAMESPACE)


async def test_g13_a_password_comes_changes_and_goes_with_its_secret(stage: Stage, reading: Reading) -> None:
    await reading.until(PASSWORD, "is missing in namespace calico-system")
    await stage.put("bgp-secrets", rr=b"one\n", tor=b"")
    await reading.until(PASSWORD, b"one")
    await reading.until(OTHER, "is empty", PASSWORD)
    await stage.change("bgp-secrets", rr=b"two")
    await reading.until(PASSWORD, b"two")
    await stage.change("bgp-secrets", rr=None)
    await reading.until(PASSWORD, "is missing")
    await stage.change("bgp-secrets", rr=b"three")
    await reading.until(PASSWORD, b"three")
    await stage.api.delete(f"{SECRETS}/bgp-secrets")
    await reading.until(PASSWORD, "is missing")


async def test_the_first_answer_is_the_servers(stage: Stage, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a poll: a session neither ends nor is given up after a restart because nobody had asked yet."""
    monkeypatch.setattr("services.bgp.shell.kubernetes_secrets.FIRST_ANSWER_S", 60.0)  # a busy machine
    await stage.put("bgp-secrets", rr=b"one")
    assert (await reading.secrets.read([PASSWORD]))[PASSWORD] == b"one"
    other = SecretRef("not-granted", "rr")
    found = await reading.secrets.read([PASSWORD, other])
    assert found[PASSWORD] == b"one"
    assert "cannot list resource" in str(found[other])
    assert not isinstance(found[other], NotYet)  # that is an answer
    assert (await reading.secrets.read([other]))[other] == found[other]
    assert (await reading.secrets.read([PASSWORD]))[PASSWORD] == b"one"  # again, by another informer


async def test_a_secret_that_is_not_granted_is_named_with_verb_and_account(stage: Stage, reading: Reading) -> None:
    await stage.put("bgp-secrets", rr=b"one")
    await stage.put("not-granted", rr=b"never")
    other = SecretRef("not-granted", "rr")
    text = f'User "system:serviceaccount:{NAMESPACE}:calico-node" cannot list resource "secrets"'
    await reading.until(other, text, PASSWORD)
    await reading.until(PASSWORD, b"one", other)  # the other one does not suffer
    twisted = SecretRef("bgp-secrets,metadata.namespace=x", "rr")
    assert "not a name" in str((await reading.secrets.read([twisted]))[twisted])


async def test_what_was_read_stays_while_the_api_server_is_away(stage: Stage, reading: Reading) -> None:
    await stage.put("bgp-secrets", rr=b"one")
    await reading.until(PASSWORD, b"one")
    await asyncio.to_thread(stage.control_plane.apiserver.close)
    try:
        for _ in range(20):
            assert (await reading.secrets.read([PASSWORD]))[PASSWORD] == b"one"
            await asyncio.sleep(0.05)
        fresh = Reading(stage.account)
        await fresh.until(PASSWORD, "onnect")  # held down, with the reason
        assert isinstance((await fresh.secrets.read([PASSWORD]))[PASSWORD], NotYet)
        fresh.task.cancel()
    finally:
        await asyncio.to_thread(stage.control_plane.apiserver.start)
    await stage.change("bgp-secrets", rr=b"two")
    await reading.until(PASSWORD, b"two")


async def test_credentials_that_cannot_be_read_are_told_and_read_when_they_are_there(
    stage: Stage, tmp_path: Path
) -> None:
    await stage.put("bgp-secrets", rr=b"one")
    late = tmp_path / "kubeconfig"
    reading = Reading(late)
    try:
        await reading.until(PASSWORD, str(late))
        late.write_text(stage.account.read_text())
        await reading.until(PASSWORD, b"one")
    finally:
        reading.task.cancel()
        await stage.api.delete(f"{SECRETS}/bgp-secrets")
