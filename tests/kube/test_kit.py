"""The control plane of the tests is a real one: it authorises, deletes, and passes requests on to other API servers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.netlink.netns import in_netns
from libs.testkit import netns
from libs.testkit.kube.aggregation import Backend, condition, register
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.servers import ServerError
from tests.kube.conftest import needs
from tests.kube.toy import GROUP, VERSION, ToyServer

READ_NOTES = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "read-notes"},
    "rules": [{"apiGroups": [GROUP], "resources": ["notes"], "verbs": ["get", "list"]}],
}
READERS = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "read-notes"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "read-notes"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "readers"}],
}
NOTE = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Note", "metadata": {"name": "first"}, "text": "hello"}


def toy_of(
    cp: ControlPlane, namespace: str, address: str = "127.0.0.1", port: int | None = None, group: str = GROUP
) -> tuple[ToyServer, Backend]:
    serving = cp.ca.issue("toy", names=[f"calico-api.{namespace}.svc"])
    toy = ToyServer(serving, cp.front_proxy_ca, address, port, group)
    return toy, Backend(toy.port, cp.ca.cert, address=address, namespace=namespace)


@pytest.fixture(scope="module")
def toy(control_plane: ControlPlane) -> Iterator[ToyServer]:
    control_plane.kubectl("create", "namespace", "toy")
    server, backend = toy_of(control_plane, "toy")
    with server:
        register(control_plane, backend, group=GROUP, version=VERSION)
        control_plane.kubectl.apply(READ_NOTES, READERS)
        yield server


def test_users_may_do_what_rbac_says_and_nothing_else(control_plane: ControlPlane) -> None:
    alice = control_plane.as_user(control_plane.user("alice", groups=["dev"]))
    assert 'User "alice" cannot list resource "configmaps"' in alice.fails("get", "configmaps")
    control_plane.kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps")
    control_plane.kubectl("create", "rolebinding", "reader", "--role=reader", "--group=dev")
    control_plane.until(lambda: alice.run("get", "configmaps").status == 0, "the role counts")
    assert "cannot list" in alice.fails("get", "secrets")


def test_the_certificate_of_another_authority_is_nobodys(control_plane: ControlPlane) -> None:
    stranger = control_plane.kubeconfig(control_plane.front_proxy_ca.issue("mallory", groups=["system:masters"]))
    assert "must be logged in" in control_plane.as_user(stranger).fails("get", "namespaces")


def test_service_accounts_have_tokens(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "serviceaccount", "robot")
    robot = control_plane.as_user(control_plane.service_account("default", "robot"))
    assert robot.json("auth", "whoami")["status"]["userInfo"]["username"] == "system:serviceaccount:default:robot"


def test_a_deleted_namespace_goes_with_all_that_is_in_it(control_plane: ControlPlane) -> None:
    kubectl = control_plane.kubectl
    kubectl("create", "namespace", "short-lived")
    kubectl("create", "configmap", "inside", "-n", "short-lived")
    kubectl("delete", "namespace", "short-lived", "--timeout=50s")
    assert "short-lived" not in kubectl("get", "namespaces", "-o", "name")
    assert "not found" in kubectl.fails("get", "configmap", "inside", "-n", "short-lived")


def test_requests_are_passed_on_with_the_callers_name_and_the_front_proxys_certificate(
    control_plane: ControlPlane, toy: ToyServer
) -> None:
    rita = control_plane.as_user(control_plane.user("rita", groups=["readers", "dev"]))
    assert "notes" in control_plane.kubectl("api-resources", "--api-group", GROUP, "-o", "name")
    control_plane.kubectl("create", "-f", "-", stdin=str(NOTE).replace("'", '"'))
    control_plane.until(lambda: rita.run("get", "notes").status == 0, "the role counts")
    assert rita.json("get", "note", "first")["text"] == "hello"
    by_rita = [seen for seen in toy.about("notes") if seen.user == "rita"]
    assert by_rita[-1].path.endswith("/notes/first")
    assert set(by_rita[-1].groups) == {"readers", "dev", "system:authenticated"}
    assert {seen.caller for seen in toy.about("notes")} == {"front-proxy-client"}


def test_kube_apiserver_refuses_before_it_passes_on(control_plane: ControlPlane, toy: ToyServer) -> None:
    bob = control_plane.as_user(control_plane.user("bob"))
    assert 'User "bob" cannot list resource "notes"' in bob.fails("get", "notes")
    assert [seen for seen in toy.about("notes") if seen.user == "bob"] == []


def test_a_server_that_went_away_is_named_unavailable(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "namespace", "gone")
    server, backend = toy_of(control_plane, "gone", group="gone.example.org")
    with server:
        register(control_plane, backend, group="gone.example.org", version=VERSION)
    reason = "failing or missing response from https://localhost"
    with pytest.raises(TimeoutError):
        register(control_plane, backend, group="never.example.org", timeout_s=3)
    control_plane.until(lambda: reason in condition(control_plane, "v3.never.example.org").get("message", ""), reason)
    with pytest.raises(TimeoutError, match=reason):
        register(control_plane, backend, group="never.example.org", timeout_s=0.1)
    control_plane.kubectl("delete", "apiservice", "v1.gone.example.org", "v3.never.example.org")


def test_a_port_in_use_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    needs("kubectl", "kube-apiserver")
    plane = ControlPlane(controllers=(), directory=tmp_path)
    taken = socket.create_server(("127.0.0.1", plane.apiserver.port))
    with taken, pytest.raises(ServerError, match="address already in use"), plane:
        pass
    assert not plane.etcd.running
    assert not plane.apiserver.running


def test_the_whole_thing_ends_with_its_block_also_when_it_listens_on_ipv6() -> None:
    needs("kubectl", "kube-apiserver", "kube-controller-manager")
    with ControlPlane(address="::1") as plane:
        assert plane.manager is not None
        pids = [plane.etcd.pid, plane.apiserver.pid, plane.manager.pid]
        plane.kubectl("create", "namespace", "six")
        server, backend = toy_of(plane, "six")
        with server:
            register(plane, backend, group=GROUP, version=VERSION)
            assert plane.kubectl.json("get", "notes")["items"] == []
        directory = plane.directory
    assert not directory.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_in_a_namespace_it_reaches_servers_by_their_address() -> None:
    needs("kubectl", "kube-apiserver")
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    space = netns.create("kube")
    try:
        space.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        with ControlPlane(address="192.0.2.1", netns=space.name, controllers=()) as plane:
            plane.kubectl("create", "namespace", "toy")
            server, backend = toy_of(plane, "toy", "192.0.2.1", 5443)
            with contextlib.ExitStack() as stack:
                with in_netns(space.path):  # where a thread's sockets are, is where it was born
                    stack.enter_context(server)
                register(plane, backend, group=GROUP, version=VERSION)
                assert plane.kubectl.json("get", "notes")["items"] == []
                assert {seen.caller for seen in server.about("notes")} == {"front-proxy-client"}
            with pytest.raises(OSError):
                socket.create_connection(("192.0.2.1", plane.apiserver.port), timeout=1)
    finally:
        netns.delete(space)
