from __future__ import annotations

from pathlib import Path

import pytest

from libs.store import StoreConfig, StoreConfigError
from libs.store.config import split_endpoint


def test_nothing_set_means_the_local_server() -> None:
    config = StoreConfig.from_env({})
    assert config.endpoints == ("http://127.0.0.1:2379",)
    assert not config.authenticates


def test_calicos_variables(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    config = StoreConfig.from_env(
        {
            "DATASTORE_TYPE": "etcdv3",
            "ETCD_ENDPOINTS": "https://etcd-a:2379,https://[fd00::1]:2379",
            "ETCD_USERNAME": "u",
            "ETCD_PASSWORD": "secret",
            "ETCD_CA_CERT_FILE": f"{tmp_path}/ca",
            "ETCD_CERT_FILE": f"{tmp_path}/cert",
            "ETCD_KEY_FILE": f"{tmp_path}/key",
        }
    )
    assert config.endpoints == ("https://etcd-a:2379", "https://[fd00::1]:2379")
    assert (config.ca, config.cert, config.key) == (b"ca", b"cert", b"key")
    assert config.authenticates
    assert "secret" not in repr(config)


def test_domain_instead_of_endpoints() -> None:
    for domain in ("example.org", "example.org.", "etcd.kube-system.svc", "_x.example.org"):
        config = StoreConfig.from_env({"ETCD_DISCOVERY_SRV": f" {domain}\n", "ETCD_ENDPOINTS": ""})
        assert (config.discovery_srv, config.endpoints) == (domain, ())


def test_pem_text_instead_of_files() -> None:
    assert StoreConfig.from_env({"ETCD_CA_CERT": "PEM", "ETCD_CERT_FILE": ""}).ca == b"PEM"


@pytest.mark.parametrize("env", [{"ETCD_USERNAME": "u"}, {"ETCD_PASSWORD": "p"}])
def test_half_a_login_is_none(env: dict[str, str]) -> None:
    assert not StoreConfig.from_env(env).authenticates


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({"DATASTORE_TYPE": "kubernetes"}, "DATASTORE_TYPE"),
        ({"ETCD_DISCOVERY_SRV": "example.org", "ETCD_ENDPOINTS": "http://a:1"}, "ETCD_DISCOVERY_SRV, not both"),
        ({"ETCD_DISCOVERY_SRV": "https://example.org"}, "ETCD_DISCOVERY_SRV: 'https://example.org' is no domain name"),
        ({"ETCD_DISCOVERY_SRV": "a..b"}, "is no domain name"),
        ({"ETCD_DISCOVERY_SRV": ".".join(["a" * 60] * 4)}, "is no domain name"),
        ({"ETCD_ENDPOINTS": "127.0.0.1:2379"}, "ETCD_ENDPOINTS"),
        ({"ETCD_ENDPOINTS": "http://a:99999"}, "ETCD_ENDPOINTS"),
        ({"ETCD_ENDPOINTS": "http://a:1/path"}, "ETCD_ENDPOINTS"),
        ({"ETCD_CA_CERT": "PEM", "ETCD_CA_CERT_FILE": "/ca"}, "ETCD_CA_CERT_FILE, not both"),
        ({"ETCD_CA_CERT_FILE": "/no/such/file"}, "ETCD_CA_CERT_FILE"),
        ({"ETCD_CERT": "PEM"}, "key"),
    ],
)
def test_mistakes_are_named(env: dict[str, str], names: str) -> None:
    with pytest.raises(StoreConfigError, match=names):
        StoreConfig.from_env(env)


@pytest.mark.parametrize(
    ("endpoint", "split"),
    [
        ("http://127.0.0.1:2379", (False, "127.0.0.1:2379")),
        ("https://etcd.example:2380/", (True, "etcd.example:2380")),
        ("http://[::1]", (False, "[::1]:2379")),
    ],
)
def test_endpoints(endpoint: str, split: tuple[bool, str]) -> None:
    assert split_endpoint(endpoint) == split
