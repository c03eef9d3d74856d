"""Authorities on disk, and the commands `calicoctl trust`."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from libs.trust import etcd_auth, etcd_roles, identities, nats_config, own
from libs.trust.authority import Authority, AuthorityError
from services.calicoctl.app import cli


def ctl(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["trust", *arguments])


def test_an_authority_is_never_replaced(tmp_path: Path) -> None:
    Authority.create(tmp_path)
    before = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(AuthorityError, match="never replaced"):
        Authority.create(tmp_path)
    for name in ("ca.crt", "ca.key", "peer-ca.crt"):
        (tmp_path / name).unlink()
    with pytest.raises(AuthorityError, match=r"peer-ca\.key exists"):
        Authority.create(tmp_path)
    assert before


def test_keys_are_for_their_owner_alone_and_fit_their_certificates(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    place = authority.issue(identities.NATS, names=("nats", "10.0.0.1", "fd00::1"))
    for pair in ("tls", "peer"):
        assert (place / f"{pair}.key").stat().st_mode & 0o777 == 0o600
        ssl.create_default_context().load_cert_chain(place / f"{pair}.crt", place / f"{pair}.key")
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (place / "ca.crt").read_bytes() != (place / "peer-ca.crt").read_bytes()
    assert not (authority.issue(identities.TYPHA) / "peer.crt").exists()


def test_damaged_authorities_are_named(tmp_path: Path) -> None:
    Authority.create(tmp_path)
    other = Authority.create(tmp_path / "other")
    (tmp_path / "ca.key").write_bytes((other.directory / "ca.key").read_bytes())
    with pytest.raises(AuthorityError, match="does not belong"):
        Authority.load(tmp_path)
    (tmp_path / "ca.key").write_bytes(b"nonsense")
    with pytest.raises(AuthorityError, match="no private key"):
        Authority.load(tmp_path)
    with pytest.raises(AuthorityError, match="No such file"):
        Authority.load(tmp_path / "none")


@pytest.mark.parametrize("name", ["", "Node", "a:b", "*", "a b", "-a", "x" * 53, "a\n"])
def test_what_is_no_node_is_no_identity(name: str) -> None:
    with pytest.raises(identities.IdentityError):
        identities.node(name)


def test_commands_make_renew_and_print(tmp_path: Path) -> None:
    at = ("-d", str(tmp_path / "pki"))
    made = ctl("certs", *at, "--node", "node1", "--server", "etcd.example")
    assert made.exit_code == 0, made.output
    key = tmp_path / "pki" / "calico-node.node1" / "tls.key"
    authority, first = (tmp_path / "pki" / "ca.crt").read_bytes(), key.read_bytes()
    again = ctl("certs", *at, "--node", "node1", "--node", "node2")
    assert again.output.splitlines() == [f"calico-node:node2: {tmp_path / 'pki' / 'calico-node.node2'}"]
    assert key.read_bytes() == first
    assert ctl("renew", *at, "--within", "30").output == ""
    assert ctl("renew", *at, "calico-node:node1").exit_code == 0
    assert key.read_bytes() != first
    assert (tmp_path / "pki" / "ca.crt").read_bytes() == authority
    unknown = ctl("renew", *at, "calico-node:node7")
    assert unknown.exit_code == 1
    assert "no certificate of calico-node:node7" in unknown.output
    (one,) = yaml.safe_load_all(ctl("secrets", *at, "calico-typha").output)
    assert one["metadata"] == {"name": "calico-typha-certs", "namespace": "calico-system"}
    assert sorted(one["data"]) == ["ca.crt", "tls.crt", "tls.key"]
    (of_server,) = yaml.safe_load_all(ctl("secrets", *at, "calico-nats").output)
    assert set(of_server["data"]) - set(one["data"]) == {"peer-ca.crt", "peer.crt", "peer.key"}
    for identity, where in (("calico-node:node1", "/etc/calico/certs"), ("root", "no pod")):
        refused = ctl("secrets", *at, identity)
        assert refused.exit_code == 1
        assert where in refused.output
        assert "PRIVATE" not in refused.output
    assert ctl("certs", *at, "--node", "Node").exit_code == 1


def test_a_node_named_like_a_component_gets_nothing_of_it() -> None:
    """Its inboxes carry the service's name; its identity has the node's prefix."""
    permissions = {one.identity: one for one in nats_config.cluster(["typha", "calico-typha", "calicoctl"])}
    typha = permissions.pop(identities.TYPHA)
    for name in ("typha", "calico-typha", "calicoctl"):
        node = permissions[identities.node(name)]
        shared = {"calico.felix.*.applied", "calico.bgp.*.applied", "calico.typha.*.beat"}
        assert not set(node.subscribe) & set(typha.subscribe) - shared
        assert not any(subject.startswith(("_INBOX.typha.", "_INBOX.calicoctl.")) for subject in node.subscribe)


def test_a_plan_is_empty_once_it_is_carried_out() -> None:
    users = etcd_roles.users(["node1"])
    state = etcd_auth.State(
        True,
        {role.name: etcd_auth.grants(role) for role in etcd_roles.ROLES} | {"root": set(), "theirs": set()},
        {name: {role} for name, role in users.items()} | {"root": {"root"}, "theirs": {"theirs"}},
    )
    assert etcd_auth.plan(state, users) == []
    state.users[identities.node("node1")] = {identities.OPERATOR}
    assert [step.text for step in etcd_auth.plan(state, users)] == [
        "user calico-node:node1: no more role calicoctl",
        "user calico-node:node1: role calico-node",
    ]
    assert not any("theirs" in step.text for step in etcd_auth.removal(state))


def test_a_list_of_nodes_is_read_with_comments_and_slips_are_named(tmp_path: Path) -> None:
    listed = tmp_path / "nodes"
    listed.write_text("# rack 1\nnode1\n\n  node2  # spare\nnode1\n")
    users = ctl("nats", "--users-only", "--nodes-file", str(listed), "--node", "node3").output
    assert [name for name in ("node1", "node2", "node3") if users.count(f'"CN=calico-node:{name}"') == 1] == [
        "node1", "node2", "node3"
    ]  # fmt: skip
    assert users.startswith("authorization {")
    assert "tls {" in ctl("nats", "--nodes-file", str(listed)).output
    listed.write_text("node1\nnode1 node2\n")
    assert "nodes:2: 'node1 node2' is no node name" in ctl("nats", "--nodes-file", str(listed)).output
    assert ctl("nats", "--nodes-file", str(tmp_path / "none")).exit_code == 1


async def test_a_node_knows_its_own_files(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    own_files = authority.issue(identities.node("node1"))

    def environ(at: Path) -> dict[str, str]:
        return {
            "ETCD_CA_CERT_FILE": str(at / "ca.crt"), "ETCD_CERT_FILE": str(at / "tls.crt"),
            "ETCD_KEY_FILE": str(at / "tls.key"), "NATS_CERT": str(at / "tls.crt"),
        }  # fmt: skip

    assert await own.check("node1", {}) == ""
    assert await own.check("node1", environ(own_files)) == ""
    assert await own.check("node1", environ(authority.issue(identities.TYPHA))) == identities.TYPHA
    with pytest.raises(own.NotOwn, match=r"certificate of calico-node:node1, and this node is node2.*--node node2"):
        await own.check("node2", environ(own_files))
    (own_files / "tls.key").unlink()
    with pytest.raises(own.NotOwn, match=r"ETCD_KEY_FILE is .*tls\.key, and there is no such file"):
        await own.check("node1", environ(own_files))
    (own_files / "tls.key").write_bytes(b"")
    (own_files / "tls.crt").write_bytes(b"nonsense")
    with pytest.raises(own.NotOwn, match=r"tls\.crt: no certificate in PEM"):
        await own.check("node1", environ(own_files))
