"""The plugin's token: how it is asked for, when the next one is due, and the kubeconfig that carries it."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.runtime.config import load
from services.cni.config import InstallConfig
from services.cni.install import install
from services.cni.network import InstallError, kubeconfig, network_config, server
from services.cni.token import TokenError, request_token, wait_s
from tests.unit.services.cni.api import ACCOUNT, Api, make_pki, serving, write_account


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pki")
    make_pki(home)
    return home


@pytest.fixture
def account(tmp_path: Path, pki: Path) -> Path:
    write_account(tmp_path / "account", pki)
    return tmp_path / "account"


def config(account: Path, port: int = 443, **environ: str) -> InstallConfig:
    values = {"CALICO_CNI_ACCOUNT_DIR": str(account), "KUBERNETES_SERVICE_PORT": str(port)}
    values |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}
    return load(InstallConfig, [], values | environ, prog="test")


@given(left_s=st.floats(-100, 1e6), seed=st.integers())
def test_the_next_token_is_due_after_a_quarter_to_half_of_its_life_and_never_at_once(left_s: float, seed: int) -> None:
    found = wait_s(1000 + left_s, 1000, Random(seed))
    assert found >= 5
    assert found == 5 or left_s / 4 - 1e-6 <= found <= left_s / 2 + 1e-6
    assert wait_s(1000 + left_s, 1000, Random(seed), 7.0) == 7.0


def test_nodes_that_started_together_do_not_come_back_together() -> None:
    waits = [wait_s(86_400, 0, Random(seed)) for seed in range(100)]
    assert max(waits) - min(waits) > 86_400 / 8
    assert len(set(waits)) == 100


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
async def test_a_token_is_given_over_tls_by_name_and_either_family(account: Path, pki: Path, host: str) -> None:
    async with serving(Api(), pki, host.strip("[]")) as api:
        token = await request_token(config(account, api.port, KUBERNETES_SERVICE_HOST=host))
    assert token.text == "plugin-1"
    assert 86_300 < token.expires_at - time.time() <= 86_400


async def test_an_authority_that_did_not_sign_is_refused_unless_nobody_is_to_look(
    account: Path, pki: Path, tmp_path: Path
) -> None:
    write_account(tmp_path / "wrong", pki, ca="other")
    async with serving(Api(), pki) as api:
        with pytest.raises(TokenError, match="certificate verify failed"):
            await request_token(config(tmp_path / "wrong", api.port))
        assert api.given == []
        assert (await request_token(config(tmp_path / "wrong", api.port, SKIP_TLS_VERIFY="true"))).text == "plugin-1"
    async with serving(Api(), None) as api:
        assert (await request_token(config(account, api.port, KUBERNETES_SERVICE_PROTOCOL="http"))).text == "plugin-1"


@pytest.mark.parametrize(
    ("api", "environ", "told"),
    [
        (Api(own=set()), {}, "401 Unauthorized"),
        (Api(refuse=403), {}, "403 told to refuse"),
        (Api(), {"CALICO_CNI_SERVICE_ACCOUNT": "nobody"}, '404 serviceaccounts "nobody" not found'),
        (Api(garbage=True), {}, "is no TokenRequest"),
    ],
)
async def test_a_refusal_says_who_refused_what(
    account: Path, pki: Path, api: Api, environ: dict[str, str], told: str
) -> None:
    async with serving(api, pki):
        with pytest.raises(TokenError, match=told) as refused:
            await request_token(config(account, api.port, **environ))
    assert f"https://127.0.0.1:{api.port}/api/v1/namespaces/kube-system/serviceaccounts/" in str(refused.value)
    assert "own-1" not in str(refused.value)
    api.port = 0


async def test_nobody_there_and_no_account_are_told(account: Path, pki: Path, tmp_path: Path) -> None:
    async with serving(Api(), pki) as api:
        port = api.port
    with pytest.raises(TokenError, match="Cannot connect"):
        await request_token(config(account, port))
    with pytest.raises(TokenError, match="our own service account cannot be used"):
        await request_token(config(tmp_path, port))


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_kubeconfig_has_server_authority_and_token(account: Path) -> None:
    document = json.loads(kubeconfig(config(account, 6443, KUBERNETES_SERVICE_HOST="fd00::1"), "t0ken", b"PEM"))
    (cluster,), (user,), (context,) = (document[name] for name in ("clusters", "users", "contexts"))
    assert cluster["cluster"] == {
        "server": "https://[fd00::1]:6443", "certificate-authority-data": base64.b64encode(b"PEM").decode(),
    }  # fmt: skip
    assert user["user"] == {"token": "t0ken"}
    assert context["context"] == {"cluster": cluster["name"], "user": user["name"]}
    assert document["current-context"] == context["name"]
    unchecked = json.loads(kubeconfig(config(account, SKIP_TLS_VERIFY="true"), "t", b""))
    assert unchecked["clusters"][0]["cluster"] == {
        "server": "https://127.0.0.1:443", "insecure-skip-tls-verify": True,
    }  # fmt: skip


def test_the_api_is_named_as_it_is_reached(account: Path) -> None:
    named = config(account, 80, KUBERNETES_SERVICE_HOST="api.example", KUBERNETES_SERVICE_PROTOCOL="http")
    assert server(named) == "http://api.example:80"


PLACEHOLDERS = {
    "CNI_MTU": 1400, "KUBERNETES_NODE_NAME": "n1", "DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": "http://e:1",
    "ETCD_DISCOVERY_SRV": "example.org", "ETCD_CA_CERT_FILE": "/etc/cni/net.d/calico-tls/etcd-ca",
    "ETCD_CERT_FILE": "/etc/cni/net.d/calico-tls/etcd-cert", "ETCD_KEY_FILE": "", "LOG_LEVEL": "debug",
    "LOG_FILE_PATH": "/l.log", "LOG_FILE_MAX_SIZE": 5, "LOG_FILE_MAX_AGE": 6, "LOG_FILE_MAX_COUNT": 7,
    "KUBECONFIG_FILEPATH": "/etc/cni/net.d/calico-kubeconfig", "KUBERNETES_SERVICE_HOST": "::1",
    "KUBERNETES_SERVICE_PORT": "6443", "SERVICEACCOUNT_TOKEN": "t0ken",
}  # fmt: skip


def test_every_placeholder_of_calico_is_filled(account: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in ("etcd-ca", "etcd-cert"):
        (secrets / name).write_text(name)
    fields = ", ".join(
        f'"{name}": __{name}__' if isinstance(value, int) else f'"{name}": "__{name}__"'
        for name, value in PLACEHOLDERS.items()
    )
    environ = {
        "CNI_MTU": "1400", "KUBERNETES_NODE_NAME": "n1", "ETCD_ENDPOINTS": "http://e:1", "LOG_LEVEL": "debug",
        "ETCD_DISCOVERY_SRV": "example.org", "LOG_FILE_PATH": "/l.log", "LOG_FILE_MAX_SIZE": "5",
        "LOG_FILE_MAX_AGE": "6", "LOG_FILE_MAX_COUNT": "7", "KUBERNETES_SERVICE_HOST": "::1",
        "TLS_ASSETS_DIR": str(secrets), "CNI_NET_DIR": "/host/etc/cni/net.d",
        "CALICO_CNI_HOST_CONF_DIR": "/etc/cni/net.d", "CNI_NETWORK_CONFIG": f'{{"type": "calico", {fields}}}',
    }  # fmt: skip
    text = network_config(config(account, 6443, **environ), has_portmap=False, token="t0ken")
    assert json.loads(text) == {"type": "calico"} | PLACEHOLDERS
    with pytest.raises(InstallError, match="nothing fills: __SERVICEACCOUNT_TOKEN__"):
        network_config(config(account, 6443, **environ), has_portmap=False)


def test_kubeconfig_and_certificates_are_private_and_the_network_list_comes_last(
    account: Path, pki: Path, tmp_path: Path
) -> None:
    plugin, secrets = tmp_path / "plugin", tmp_path / "secrets"
    plugin.write_bytes(b"\x7fELF")
    secrets.mkdir()
    (secrets / "etcd-key").write_text("key")
    net = tmp_path / "net.d"
    net.mkdir()
    for name in ("10-calico.conflist", "20-other.conflist"):
        (net / name).write_text("{}")
    environ = {
        "CNI_BIN_DIR": str(tmp_path / "bin"), "CNI_NET_DIR": str(net), "CNI_BINARY": str(plugin),
        "TLS_ASSETS_DIR": str(secrets), "CNI_CONF_NAME": "05-calico.conflist", "REQUIRE_MTU_FILE": "true",
        "CNI_OLD_CONF_NAME": "10-calico.conflist",
    }  # fmt: skip
    written = install(config(account, **environ), "t0ken")
    assert written[2:] == [net / "calico-tls/etcd-key", net / "calico-kubeconfig", net / "05-calico.conflist"]
    assert {path.stat().st_mode & 0o777 for path in written[2:]} == {0o600}
    assert not (net / "10-calico.conflist").exists(), "the runtime takes the first list; the old one has gone"
    assert (net / "20-other.conflist").exists()
    (calico,) = json.loads((net / "05-calico.conflist").read_text())["plugins"]
    assert calico["kubernetes"] == {"kubeconfig": str(net / "calico-kubeconfig")}
    assert calico["require_mtu_file"] is True
    users: Any = json.loads((net / "calico-kubeconfig").read_text())["users"]
    assert users[0]["user"]["token"] == "t0ken"
    assert ACCOUNT not in (net / "calico-kubeconfig").read_text()
    assert install(config(account, **environ), "t0ken") == []
    assert install(config(account, **environ), "next") == [net / "calico-kubeconfig"]
