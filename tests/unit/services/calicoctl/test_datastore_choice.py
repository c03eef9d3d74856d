"""Which datastore is meant and how it is reached: file, environment, options (facts: section 5.1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.calicoctl.config import ETCD, KUBERNETES, ConfigProblem, load

FILE = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n"


@pytest.mark.parametrize(
    ("variables", "meant"),
    [
        ({}, ETCD),
        ({"KUBECONFIG": "/k"}, KUBERNETES),
        ({"K8S_API_ENDPOINT": "https://a:6443"}, KUBERNETES),
        ({"KUBECONFIG": "/k", "ETCD_ENDPOINTS": "http://a:1"}, ETCD),
        ({"KUBECONFIG": "/k", "DATASTORE_TYPE": "etcdv3"}, ETCD),
        ({"DATASTORE_TYPE": "kubernetes"}, KUBERNETES),
        ({"KUBECONFIG": "/k", "ETCD_DISCOVERY_SRV": "example.org"}, ETCD),
        ({"CALICO_DATASTORE_TYPE": "kubernetes"}, KUBERNETES),
        ({"CALICO_DATASTORE_TYPE": "kubernetes", "DATASTORE_TYPE": "etcdv3"}, ETCD),
    ],
)
def test_which_datastore(variables: dict[str, str], meant: str) -> None:
    assert load(None, variables).datastore == meant


def test_every_setting_of_kubernetes_by_environment() -> None:
    found = load(None, {
        "DATASTORE_TYPE": "kubernetes", "K8S_API_ENDPOINT": "https://[2001:db8::1]:6443", "K8S_KEY_FILE": "/key",
        "K8S_CERT_FILE": "/cert", "K8S_CA_FILE": "/ca", "K8S_API_TOKEN": "token-token", "KUBECONFIG": "/config",
        "K8S_INSECURE_SKIP_TLS_VERIFY": "true", "K8S_CLIENT_QPS": "20.5", "K8S_CLIENT_BURST": "40",
        "K8S_CURRENT_CONTEXT": "prod", "K8S_DISABLE_NODE_POLL": "true", "USE_POD_CIDR": "false",
        "CALICO_API_GROUP": "projectcalico.org/v3",
    }).kubernetes  # fmt: skip
    assert (found.endpoint, found.key_file, found.cert_file, found.ca_file) == (
        "https://[2001:db8::1]:6443", "/key", "/cert", "/ca",
    )  # fmt: skip
    assert (found.token, found.kubeconfig, found.insecure, found.qps, found.burst, found.context) == (
        "token-token", "/config", True, 20.5, 40, "prod",
    )  # fmt: skip
    assert "token-token" not in repr(found)


def test_every_setting_of_kubernetes_by_file_and_the_context_by_option(tmp_path: Path) -> None:
    file = tmp_path / "calicoctl.cfg"
    file.write_text(
        f"{FILE}  datastoreType: kubernetes\n  kubeconfig: /config\n  k8sAPIEndpoint: https://a:1\n"
        "  k8sKeyFile: /key\n  k8sCertFile: /cert\n  k8sCAFile: /ca\n  k8sAPIToken: token-token\n"
        "  k8sInsecureSkipTLSVerify: true\n  k8sClientQPS: 7\n  k8sCurrentContext: prod\n  usePodCIDR: false\n"
        "  kubeconfigInline: 'kind: Config'\n"
    )
    found = load(str(file), {"K8S_API_ENDPOINT": "https://other:1", "K8S_CLIENT_BURST": "9"}).kubernetes
    assert (found.endpoint, found.kubeconfig, found.key_file, found.cert_file, found.ca_file, found.token) == (
        "https://a:1", "/config", "/key", "/cert", "/ca", "token-token",
    )  # fmt: skip
    assert (found.insecure, found.qps, found.burst, found.context) == (True, 7.0, 9, "prod")
    assert found.kubeconfig_text == "kind: Config"
    assert load(str(file), {}, "test").kubernetes.context == "test"


def test_certificates_of_etcd_inline_by_file(tmp_path: Path) -> None:
    file = tmp_path / "calicoctl.cfg"
    file.write_text(
        f"{FILE}  etcdEndpoints: https://a:2379\n  etcdCACert: |\n    CA\n"
        "  etcdCert: |\n    CERT\n  etcdKey: |\n    KEY\n"
    )
    store = load(str(file), {}).store
    assert (store.ca, store.cert, store.key) == (b"CA\n", b"CERT\n", b"KEY\n")
    with pytest.raises(ConfigProblem, match="not both"):
        load(str(file), {"ETCD_KEY_FILE": "/key"})


def test_members_of_etcd_by_dns_and_the_file_wins_over_the_environment(tmp_path: Path) -> None:
    assert load(None, {"CALICO_ETCD_DISCOVERY_SRV": "example.org"}).store.discovery_srv == "example.org"
    by_dns, by_list = tmp_path / "dns.cfg", tmp_path / "list.cfg"
    by_dns.write_text(f"{FILE}  etcdDiscoverySrv: example.net\n")
    by_list.write_text(f"{FILE}  etcdEndpoints: http://a:1\n")
    store = load(str(by_dns), {"ETCD_ENDPOINTS": "http://b:1", "CALICO_ETCD_ENDPOINTS": "http://c:1"}).store
    assert (store.discovery_srv, store.endpoints) == ("example.net", ())
    store = load(str(by_list), {"ETCD_DISCOVERY_SRV": "example.org"}).store
    assert (store.discovery_srv, store.endpoints) == ("", ("http://a:1",))
    by_dns.write_text(f"{FILE}  etcdDiscoverySrv: example.net\n  etcdEndpoints: http://a:1\n")
    with pytest.raises(ConfigProblem, match="not both"):
        load(str(by_dns), {})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"DATASTORE_TYPE": "consul"}, "expected etcdv3 or kubernetes"),
        ({"DATASTORE_TYPE": "kubernetes", "K8S_CLIENT_QPS": "fast"}, "K8S_CLIENT_QPS"),
        ({"DATASTORE_TYPE": "kubernetes", "K8S_CLIENT_QPS": "-1"}, "K8S_CLIENT_QPS"),
        ({"DATASTORE_TYPE": "kubernetes", "K8S_INSECURE_SKIP_TLS_VERIFY": "maybe"}, "K8S_INSECURE_SKIP_TLS_VERIFY"),
        ({"DATASTORE_TYPE": "kubernetes", "CALICO_API_GROUP": "crd.projectcalico.org/v1"}, "CALICO_API_GROUP"),
        ({"ETCD_DISCOVERY_SRV": "example.org", "CALICO_ETCD_ENDPOINTS": "http://a:1"}, "not both"),
    ],
)
def test_settings_that_cannot_be_used_are_named(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigProblem, match=message):
        load(None, variables)
