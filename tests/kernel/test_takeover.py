"""Taking over and uninstalling in a container: without iptables' programs, on mounted directories."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.netlink.netns import in_netns
from libs.testkit.netns import Namespace, can_make_namespaces, create, delete
from services.node.shell.takeover import take_over

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and network namespaces"),
]


@pytest.fixture
def host() -> Iterator[Namespace]:
    made = create("tov")
    yield made
    delete(made)


def test_chains_that_nobody_here_can_remove_are_told(
    host: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for table, chain in (
        ("ip filter", "FORWARD"), ("ip filter", "cali-FORWARD"), ("ip filter", "cali-INPUT"), ("ip6 nat", "cali-X"),
        ("ip calico", "cali-FORWARD"), ("inet filter", "cali-of-somebody"), ("ip mangle", "KUBE-x"),
    ):  # fmt: skip
        host.run("nft", "add", "table", *table.split())
        host.run("nft", "add", "chain", *table.split(), chain)
    with monkeypatch.context() as without, in_netns(host.path):
        without.setenv("PATH", str(tmp_path))
        outcome = take_over([])
    (told,) = (one for one in outcome.left if "iptables-nft" in one)
    assert "2 in ip filter, 1 in ip6 nat:" in told
    assert "cali-FORWARD" in host.run("nft", "list", "table", "ip", "filter")
    assert not outcome.removed


def test_mounted_directories_of_state_are_emptied_and_stay(host: Namespace, tmp_path: Path) -> None:
    state, root = tmp_path / "state", Path(__file__).resolve().parents[2]
    (state / "inner").mkdir(parents=True)
    (state / "nodename").write_text("n")
    (state / "link").symlink_to(tmp_path)
    command = shlex.join([
        sys.executable, "-m", "services.node", "uninstall", "--force", "--state-dir", str(state),
        "--conf-dir", str(tmp_path / "net.d"), "--bin-dir", str(tmp_path / "bin"),
    ])  # fmt: skip
    script = f"mount --bind {state} {state} && cd {root} && {command} && {command}"
    told = host.run("unshare", "--mount", "sh", "-c", script).splitlines()
    assert told == [f"removed all in {state}", "nothing to remove"]
    assert not list(state.iterdir())
    assert tmp_path.exists()


@pytest.mark.parametrize("shared", [True, False])
def test_of_tunl0_only_what_is_ours_goes(host: Namespace, tmp_path: Path, shared: bool) -> None:
    """Any link of that name will do: what the module makes by itself, this kernel may not have."""
    if not host.run("sh", "-c", "ip -o link show tunl0 2>/dev/null || true"):
        host.run("ip", "link", "add", "tunl0", "type", "veth", "peer", "name", "other0")
    host.run("ip", "link", "set", "tunl0", "up")
    host.run("ip", "address", "add", "10.65.0.1/32", "dev", "tunl0")
    host.run("ip", "route", "add", "blackhole", "10.65.0.0/26", "proto", "80")
    if shared:
        host.run("ip", "address", "add", "198.51.100.1/32", "dev", "tunl0")
        host.run("ip", "address", "add", "10.65.0.2/30", "dev", "tunl0")
    script = uninstalling(tmp_path)
    told = host.run("sh", "-c", script)
    left = host.run("ip", "-o", "address", "show")
    assert "10.65.0.1/32" not in left
    assert "10.65.0.0/26" not in host.run("ip", "route")
    if shared:
        assert "10.65.0.1/32 of interface tunl0" in told
        assert "198.51.100.1/32" in left
        assert "10.65.0.2/30" in left
        assert ",UP" in host.run("ip", "-o", "link", "show", "tunl0")
    else:
        assert "removed interface tunl0" in told
    again = host.run("sh", "-c", f"({script}) 2>&1 || true")
    if shared:  # nothing tells any more that this one is somebody else's
        assert "left: 198.51.100.1/32 of interface tunl0: no route of Calico's is left" in again
        assert "10.65.0.2/30" not in again
        assert "198.51.100.1/32" in host.run("ip", "-o", "address", "show")
    else:
        assert again == "nothing to remove\n"


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_wireguards_rule_goes_whatever_its_table_is(host: Namespace, tmp_path: Path, family: str) -> None:
    net = "10.65.1.0/26" if family == "-4" else "fd00:65:1::/122"
    host.run("ip", family, "route", "add", "throw", net, "table", "1000", "proto", "80")
    host.run("ip", family, "rule", "add", "not", "fwmark", "0x200000/0x200000", "lookup", "1000", "priority", "99")
    host.run("ip", family, "rule", "add", "not", "fwmark", "0x4/0x4", "lookup", "77", "priority", "98")  # somebody's
    told = host.run("sh", "-c", uninstalling(tmp_path))
    assert f"rules of WireGuard: IPv{family[1]}: 1" in told
    rules = host.run("ip", family, "rule")
    assert "lookup 1000" not in rules
    assert "lookup 77" in rules
    assert net not in host.run("ip", family, "route", "show", "table", "all")


def uninstalling(place: Path) -> str:
    """The command, for a shell: of nothing but what is in the kernel."""
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable, "-m", "services.node", "uninstall", "--force", "--state-dir", str(place / "state"),
        "--conf-dir", str(place / "net.d"), "--bin-dir", str(place / "bin"),
    ]  # fmt: skip
    return f"cd {root} && {shlex.join(command)}"
