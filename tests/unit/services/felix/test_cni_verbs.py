"""The plugin's verbs beyond the simple path: other plugins for addresses, CHECK, STATUS, GC, calico-ipam, gates."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from libs import model
from libs.ipam.requests import AssignRequest
from libs.resources.client import ResourceClient
from libs.testkit import bootstrap
from services.felix.core.cni import pod
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request, parse
from services.felix.core.journal import Delegation
from services.felix.drivers import gates
from services.felix.drivers.gates import wait_for_gates
from services.felix.drivers.ipam_plugin import IpamPlugins
from tests.unit.services.felix.cni_stage import ENVIRONMENT, NOTHING, Node, posted, undoing, until_nothing

NETNS = ENVIRONMENT["CNI_NETNS"]
HOST_LOCAL: dict[str, Any] = {"type": "host-local", "subnet": "usePodCidr", "routes": [{"dst": "10.0.0.0/8"}]}
GIVEN = {
    "cniVersion": "1.0.0",
    "ips": [{"address": "10.7.0.5/24", "gateway": "10.7.0.1"}],
    "routes": [{"dst": "10.0.0.0/8"}],
    "dns": {"domain": "example.org"},
}


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> Node:
    made = await Node(tmp_path / "journal").fill()
    status = {"podCIDRs": ["10.7.0.0/24", "fd07::/64"]}
    resource = json.loads(bootstrap.resource("Node", "node1", {})) | {"status": status}
    await made.store.put(bootstrap.key("nodes", "node1"), json.dumps(resource).encode())
    made.plugins.answer = GIVEN
    return made


def asked(command: str = "ADD", container: str = "c1", *, env: dict[str, str] | None = None, **config: Any) -> Request:
    environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_PATH": "/opt/cni/bin"}
    if command == "CHECK":
        config.setdefault("prevResult", {"interfaces": [{"name": "eth0", "sandbox": NETNS}]})
    if command in ("STATUS", "GC"):
        config["cniVersion"] = "1.1.0"
    return parse(posted(environment | (env or {}), **config))


def delegated(command: str = "ADD", container: str = "c1", **config: Any) -> Request:
    return asked(command, container, **{"ipam": HOST_LOCAL} | config)


def called(node: Node) -> list[str]:
    return [command for command, _ in node.plugins.called]


# --- other plugins ---


async def test_i22_host_local_gets_the_pod_cidr_and_its_result_becomes_the_pods(node: Node) -> None:
    answer = await node.plugin.handle(delegated())
    assert answer is not None
    assert answer["ips"] == [{"address": "10.7.0.5/32", "interface": 1}]
    assert answer["routes"] == [{"dst": "10.0.0.0/8"}]
    assert answer["dns"] == {"domain": "example.org"}
    ((command, delegation),) = node.plugins.called
    assert (command, delegation.plugin) == ("ADD", "host-local")
    assert json.loads(delegation.config)["ipam"]["subnet"] == "10.7.0.0/24"
    assert json.loads(delegation.config)["policy"] == {"type": "k8s"}
    assert dict(delegation.environment)["CNI_ARGS"].startswith("IgnoreUnknown=1;")
    (link,) = node.links.there.values()
    assert link.routes == (ip_network("10.0.0.0/8"),)
    left = await node.left()
    assert (left["addresses"], left["handles"], left["journal"]) == ([], [], [])
    await node.plugin.handle(delegated("CHECK", prevResult=answer))
    await node.plugin.handle(delegated("DEL"))
    assert called(node) == ["ADD", "CHECK", "DEL"]
    assert json.loads(node.plugins.called[-1][1].config)["ipam"]["subnet"] == "0.0.0.0/0"
    assert await node.left() == NOTHING


async def test_include_default_routes_adds_them(node: Node) -> None:
    await node.plugin.handle(delegated(include_default_routes=True))
    (link,) = node.links.there.values()
    assert link.routes == tuple(ip_network(text) for text in ("0.0.0.0/0", "::/0", "10.0.0.0/8"))


async def test_a_refusal_of_the_other_plugin_is_passed_on_and_undone(node: Node) -> None:
    refusal = CniError(11, "no addresses left", "in 10.7.0.0/24")
    node.plugins.refusal = {"ADD": refusal, "DEL": CniError(7, "never heard of it")}
    with pytest.raises(CniError, match="no addresses left") as caught:
        await node.plugin.handle(delegated())
    assert (caught.value.code, caught.value.details) == (11, "in 10.7.0.0/24")
    assert called(node) == ["ADD", "DEL"]
    assert await node.left() == NOTHING


@pytest.mark.parametrize(
    ("answer", "code"),
    [(None, 6), ({"ips": []}, 102), ({"ips": [{"address": "x"}]}, 7), ({"ips": 5}, 7), ({"cniVersion": "9"}, 7)],
)
async def test_a_result_that_is_none_is_given_back(node: Node, answer: dict[str, Any] | None, code: int) -> None:
    node.plugins.answer = answer
    with pytest.raises(CniError, match="host-local") as caught:
        await node.plugin.handle(delegated())
    assert caught.value.code == code
    assert called(node) == ["ADD", "DEL"]
    assert await node.left() == NOTHING


async def test_what_fails_later_gives_the_other_plugins_address_back(node: Node) -> None:
    node.enforcement.comes = False
    with pytest.raises(CniError, match="policy"):
        await node.plugin.handle(delegated())
    assert called(node) == ["ADD", "DEL"]
    assert await node.left() == NOTHING


async def test_a_crash_after_the_other_plugin_gave_an_address_is_undone_by_the_next_process(node: Node) -> None:
    reached = asyncio.Event()

    async def never(*_: Any) -> bool:
        reached.set()
        await asyncio.Event().wait()
        return False

    node.enforcement.programmed = never  # type: ignore[method-assign]
    asking = asyncio.create_task(node.plugin.handle(delegated()))
    await asyncio.wait_for(reached.wait(), 10)
    successor = node.restarted()
    successor.plugin.undo.recover()
    async with undoing(successor):
        await until_nothing(successor)
    assert called(successor) == ["DEL"]
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_plugin_that_is_not_there_leaves_nothing_and_its_pod_can_be_deleted(node: Node) -> None:
    node.plugins.there = False
    with pytest.raises(CniError, match="no host-local"):
        await node.plugin.handle(delegated())
    assert await node.left() == NOTHING
    await node.plugin.handle(delegated("DEL"))
    assert await node.left() == NOTHING
    node.plugins.there = True
    await node.plugin.handle(delegated())
    node.plugins.there = False
    with pytest.raises(CniError, match="no host-local"):  # it holds an address of ours
        await node.plugin.handle(delegated("DEL"))


async def test_an_add_that_is_repeated_takes_no_second_address(node: Node) -> None:
    first = await node.plugin.handle(delegated())
    again = await node.plugin.handle(delegated())
    assert called(node) == ["ADD"]
    assert (first or {})["ips"] == (again or {})["ips"]
    node.links.there.clear()  # broken: made anew, and the plugin is told to forget the first time
    await node.plugin.handle(delegated())
    assert called(node) == ["ADD", "DEL", "ADD"]


async def test_without_a_pod_cidr_of_the_family_the_node_is_named(node: Node) -> None:
    await node.store.put(bootstrap.key("nodes", "node1"), bootstrap.resource("Node", "node1", {}))
    with pytest.raises(CniError, match="IPv4 pod CIDR of Node node1"):
        await node.plugin.handle(delegated())
    assert (called(node), await node.left()) == ([], NOTHING)


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def delegation(path: Path, plugin: str = "some-ipam") -> Delegation:
    environment = (("CNI_CONTAINERID", "c1"), ("CNI_PATH", f"/nowhere::{path}"))
    return Delegation(plugin=plugin, environment=environment, config='{"name": "n"}')


async def test_a_plugin_is_run_with_environment_and_input_and_its_words_come_back(tmp_path: Path) -> None:
    words = '{"ips": [], "in": %s, "env": "%s"}'
    script(tmp_path / "some-ipam", f"""printf '{words}' "$(cat)" "$CNI_COMMAND $CNI_CONTAINERID\"""")
    answer = await IpamPlugins().run("ADD", delegation(tmp_path))
    assert answer == {"ips": [], "in": {"name": "n"}, "env": "ADD c1"}
    script(tmp_path / "some-ipam", "cat > /dev/null")
    assert await IpamPlugins().run("DEL", delegation(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('echo \'{"code": 11, "msg": "later", "details": "busy"}\'; exit 1', 11, "some-ipam: later"),
        ("echo oops >&2; exit 3", 100, "exit status 3"),
        ('echo \'{"code": "x"}\'; exit 1', 100, "exit status 1"),
        ("echo no json", 6, "not JSON"),
        ("echo '[]'", 6, "no JSON object"),
    ],
)
async def test_what_a_plugin_says_when_it_fails(tmp_path: Path, text: str, code: int, message: str) -> None:
    script(tmp_path / "some-ipam", text)
    with pytest.raises(CniError, match=message) as caught:
        await IpamPlugins().run("ADD", delegation(tmp_path))
    assert caught.value.code == code


async def test_a_plugin_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.felix.drivers.ipam_plugin.LIMIT_S", 8.0)
    script(tmp_path / "some-ipam", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    with pytest.raises(CniError, match="did not answer ADD") as caught:
        await IpamPlugins().run("ADD", delegation(tmp_path))
    assert caught.value.code == Code.TRY_AGAIN
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_plugin_that_cannot_be_found_or_run(tmp_path: Path) -> None:
    with pytest.raises(CniError, match="no such program in CNI_PATH") as caught:
        await IpamPlugins().run("ADD", delegation(tmp_path))
    assert caught.value.code == 7
    (tmp_path / "some-ipam").write_text("no program")
    (tmp_path / "some-ipam").chmod(0o755)
    with pytest.raises(CniError, match="cannot be run") as caught:
        await IpamPlugins().run("ADD", delegation(tmp_path))
    assert caught.value.code == 5


# --- addresses ---


async def test_c10_addresses_past_ipam_are_used_and_nothing_is_held(node: Node) -> None:
    config: dict[str, Any] = {
        "args": {"cni": {"annotations": {pod.IP_ADDRS_NO_IPAM: '["192.0.2.9", "2001:db8::9"]'}}},
        "feature_control": {"ip_addrs_no_ipam": True},
    }
    answer = await node.plugin.handle(asked(**config))
    assert answer is not None
    assert [one["address"] for one in answer["ips"]] == ["192.0.2.9/32", "2001:db8::9/128"]
    assert (await node.left())["addresses"] == []
    await node.plugin.handle(asked("CHECK", **config, prevResult=answer))
    await node.plugin.handle(asked("DEL", **config))
    assert await node.left() == NOTHING


async def test_i07_a_fixed_address_goes_over_to_the_pods_next_container_and_to_nobody_else(node: Node) -> None:
    fixed = {"args": {"cni": {"annotations": {pod.IP_ADDRS: '["10.65.0.77"]'}}}}
    await node.plugin.handle(asked(**fixed))
    await node.plugin.handle(asked(container="c2", **fixed))
    assert (await node.left())["addresses"] == ["net.c2"]
    other = {"CNI_ARGS": "K8S_POD_NAMESPACE=ns1;K8S_POD_NAME=other"}
    with pytest.raises(CniError, match=r"net\.c2") as caught:
        await node.plugin.handle(asked(container="c3", env=other, **fixed))
    assert caught.value.code == Code.NO_ADDRESS
    await node.plugin.handle(asked("DEL", **fixed))  # of the first, late
    assert (await node.left())["addresses"] == ["net.c2"]


async def test_c14_the_interfaces_of_a_pod_come_and_go_alone(node: Node) -> None:
    answers = {}
    for name in ("eth0", "net1"):
        answers[name] = await node.plugin.handle(asked(env={"CNI_IFNAME": name}))
    left = await node.left()
    assert sorted(set(left["addresses"])) == ["net.c1", "net.c1@net1"]
    assert len(left["links"]) == len(left["endpoints"]) == 2
    assert {link.own_table for link in node.links.there.values()} == {False, True}
    await node.plugin.handle(asked("DEL", env={"CNI_IFNAME": "eth0"}))
    assert set((await node.left())["addresses"]) == {"net.c1@net1"}
    await node.plugin.handle(asked("CHECK", env={"CNI_IFNAME": "net1"}, prevResult=answers["net1"]))
    await node.plugin.handle(asked("DEL", env={"CNI_IFNAME": "net1"}))
    assert await node.left() == NOTHING


async def test_settings_of_the_configuration_reach_the_link(node: Node) -> None:
    config = {
        "mtu": 1234,
        "num_queues": 4,
        "device_type": "netkit",
        "container_settings": {"allow_ip_forwarding": True},
    }
    made = asked(**config, args={"cni": {"annotations": {pod.HW_ADDR: "02:00:00:00:00:07"}}})
    answer = await node.plugin.handle(made)
    (link,) = node.links.there.values()
    assert (link.mtu_bytes, link.queues, link.device, link.allow_ip_forwarding) == (1234, 4, "netkit", True)
    assert link.container_mac == "02:00:00:00:00:07" == (answer or {})["interfaces"][1]["mac"]
    endpoints = (await node.left())["endpoints"]
    assert endpoints[0].spec.mac == "02:00:00:00:00:07"


async def test_c05_the_mtu_of_the_file_comes_before_that_of_the_agent(node: Node) -> None:
    file = node.directory.parent / "mtu"
    with pytest.raises(CniError, match="require_mtu_file") as caught:
        await node.plugin.handle(asked(require_mtu_file=True))
    assert caught.value.code == Code.TRY_AGAIN
    for text, config, expected in (("", {}, 1500), ("1400\n", {}, 1400), ("1400", {"mtu": 1300}, 1300)):
        if text:
            file.write_text(text)
        await node.plugin.handle(asked(**config))
        (link,) = node.links.there.values()
        assert link.mtu_bytes == expected
        await node.plugin.handle(asked("DEL"))
    for text in ("big", "99999", "-1", ""):
        file.write_text(text)
        with pytest.raises(CniError, match="MTU file"):
            await node.plugin.handle(asked())
        assert await node.left() == NOTHING


async def test_c08_the_configuration_may_set_how_long_policy_is_waited_for(node: Node) -> None:
    for seconds, expected in ((0, 1.0), (7, 7.0)):
        await node.plugin.handle(asked(policy_setup_timeout_seconds=seconds))
        assert node.enforcement.limits_s.pop() == expected
        await node.plugin.handle(asked("DEL"))
    node.enforcement.comes = False
    with pytest.raises(CniError, match="not in the kernel after 7 s"):
        await node.plugin.handle(asked(policy_setup_timeout_seconds=7))
    assert await node.left() == NOTHING


async def test_another_nodes_name_is_refused(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "nodename"
    for config in ({"nodename": "node2"}, {"hostname": "node2"}):
        with pytest.raises(CniError, match="'node2'") as caught:
            await node.plugin.handle(asked(**config))
        assert caught.value.code == 7
    with pytest.raises(CniError, match="has calico-node started") as caught:
        await node.plugin.handle(asked(nodename_file=str(file)))
    assert caught.value.code == Code.TRY_AGAIN
    file.write_text("node3\n")
    with pytest.raises(CniError, match="'node3'"):
        await node.plugin.handle(asked(nodename_file=str(file)))
    assert await node.left() == NOTHING
    await node.plugin.handle(asked(nodename_file=str(tmp_path / "none"), nodename_file_optional=True))
    await node.plugin.handle(asked(nodename="Node1"))


async def test_a_network_without_kubernetes_policy_gets_its_profile_once(node: Node) -> None:
    resources = ResourceClient(node.store)
    for container in ("c1", "c2"):
        await node.plugin.handle(asked(container=container, policy={}, env={"CNI_ARGS": ""}))
    profile = await resources.get("Profile", "net")
    assert isinstance(profile, model.Profile)
    assert profile.spec.labels_to_apply == {"net": ""}
    assert [one.spec.profiles for one in (await node.left())["endpoints"]] == [["net"], ["net"]]


# --- CHECK and STATUS ---


async def test_c13_check_names_everything_that_is_wrong(node: Node) -> None:
    answer = await node.plugin.handle(asked())
    assert answer is not None
    await node.plugin.handle(asked("CHECK", prevResult=answer))
    other = json.loads(json.dumps(answer))
    other["ips"][0]["address"] = "10.65.9.9/32"
    node.links.there.clear()
    node.enforcement.comes = False
    clean = node.restarted()
    await clean.plugin._addresses.release("net.c1")
    with pytest.raises(CniError) as caught:
        await node.plugin.handle(asked("CHECK", prevResult=other))
    assert caught.value.code == Code.CHECK_FAILED
    for text in (
        "is not as it should be",
        "lacks address 10.65.9.9 of prevResult",
        "prevResult lacks address 10.65.",
        "is not assigned to net.c1 in IPAM",
        "policy of cali",
    ):
        assert text in str(caught.value), text


async def test_check_of_a_result_without_our_interface(node: Node) -> None:
    await node.plugin.handle(asked())
    with pytest.raises(CniError, match="prevResult has no interface eth0"):
        await node.plugin.handle(asked("CHECK", prevResult={"interfaces": [{"name": "net7", "sandbox": NETNS}]}))


async def test_a_result_of_calicos_own_plugin_is_understood(node: Node) -> None:
    answer = await node.plugin.handle(asked())
    assert answer is not None
    theirs = {
        "interfaces": [{"name": answer["interfaces"][0]["name"], "mac": "02:00:00:00:00:01", "sandbox": NETNS}],
        "ips": [{"address": one["address"]} for one in answer["ips"]],
    }
    await node.plugin.handle(asked("CHECK", prevResult=theirs))


async def test_a_later_plugin_may_have_changed_the_mac(node: Node) -> None:
    answer = await node.plugin.handle(asked())
    assert answer is not None
    seen = []
    node.links.check = lambda pod_: seen.append(pod_) or []  # type: ignore[method-assign, func-returns-value]
    answer["interfaces"][1]["mac"] = "02:00:00:00:00:99"
    await node.plugin.handle(asked("CHECK", prevResult=answer))
    assert seen[0].container_mac == "02:00:00:00:00:99"


async def test_c13_status_tells_why_no_pod_could_be_connected(node: Node) -> None:
    await node.plugin.handle(asked("STATUS"))

    async def refused(**config: Any) -> CniError:
        with pytest.raises(CniError) as caught:
            await node.plugin.handle(asked("STATUS", **config))
        return caught.value

    node.enforcement.follows = False
    error = await refused()
    assert (error.code, "typha" in error.details) == (50, True)
    node.enforcement.follows, node.enforcement.fails = True, "EINVAL"
    assert ((await refused()).code, (await refused()).details) == (51, "EINVAL")
    node.enforcement.fails = ""
    assert "no-such" in (await refused(ipam={"type": "calico-ipam", "ipv4_pools": ["no-such"]})).details
    await node.store.put(
        bootstrap.key("ippools", "v4"),
        bootstrap.resource("IPPool", "v4", {**bootstrap.pool_spec("10.65.0.0/16", block_size=26), "disabled": True}),
    )
    assert "no enabled IPv4 pool" in (await refused()).details
    node.plugins.refusal = {"STATUS": CniError(51, "half dead")}
    assert (await refused(ipam=HOST_LOCAL)).code == 51
    node.plugins.refusal = {}
    await node.plugin.handle(asked("STATUS", ipam=HOST_LOCAL))
    node.store.cut = True
    assert (await refused()).code == 50


# --- GC ---


def collect(*valid: tuple[str, str], **config: Any) -> Request:
    listed = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
    return asked("GC", **config, **{"cni.dev/valid-attachments": listed})


def of_pod(container: str, ifname: str = "eth0") -> dict[str, str]:
    return {"CNI_ARGS": f"K8S_POD_NAMESPACE=ns1;K8S_POD_NAME=p-{container}x", "CNI_IFNAME": ifname}


async def test_c13_gc_takes_what_is_not_listed_and_nothing_of_other_networks(node: Node) -> None:
    for container, ifname, name in (
        ("a", "eth0", "net"), ("a", "net1", "net"), ("b", "eth0", "net"), ("c", "eth0", "net.other"),
    ):  # fmt: skip
        await node.plugin.handle(asked(container=container, env=of_pod(container, ifname), name=name))
    await node.plugin.handle(collect(("a", "eth0")))
    left = await node.left()
    assert sorted(set(left["addresses"])) == ["net.a", "net.other.c"]
    assert len(left["links"]) == len(left["endpoints"]) == 2
    await node.plugin.handle(collect(("a", "eth0")))
    assert await node.left() == left
    await node.plugin.handle(collect(name="net.other"))
    assert set((await node.left())["addresses"]) == {"net.a"}


async def test_gc_gives_back_addresses_that_nobody_uses(node: Node) -> None:
    ids = {name: name * 64 for name in "abcd"}
    await node.plugin.handle(asked(container=ids["a"], env=of_pod("a")))
    for name in "bc":  # as calico-ipam for another plugin, or lost
        await node.plugin.handle_ipam(asked(container=ids[name], env=of_pod(name)))
    await node.plugin.handle_ipam(asked(container=ids["d"], env=of_pod("d"), name="net.other"))
    await node.plugin.handle_ipam(asked(container="some-vm", env=of_pod("e")))
    await node.plugin.handle(collect((ids["a"], "eth0"), (ids["b"], "eth0")))
    held = set((await node.left())["addresses"])
    assert held == {f"net.{ids['a']}", f"net.{ids['b']}", f"net.other.{ids['d']}", "net.some-vm"}


async def test_gc_settles_what_the_journal_holds_and_forwards_itself(node: Node) -> None:
    await node.plugin.handle(delegated(container="a", env=of_pod("a")))
    await node.plugin.handle(delegated(container="b", env=of_pod("b")))
    node.plugins.refusal = {"DEL": CniError(11, "later")}
    with pytest.raises(CniError, match="later"):
        await node.plugin.handle(delegated("DEL", "b", env=of_pod("b")))
    assert (await node.left())["journal"] == ["b"]
    with pytest.raises(CniError, match="could not be collected") as caught:
        await node.plugin.handle(collect(("a", "eth0"), ipam=HOST_LOCAL))
    assert (caught.value.code, "container b, interface eth0: later" in caught.value.details) == (11, True)
    node.plugins.refusal, node.plugins.called = {}, []
    await node.plugin.handle(collect(("a", "eth0"), ipam=HOST_LOCAL))
    assert called(node) == ["DEL", "GC"]
    assert json.loads(node.plugins.called[1][1].config)["cni.dev/valid-attachments"] == [
        {"containerID": "a", "ifname": "eth0"}
    ]
    left = await node.left()
    assert (left["journal"], len(left["endpoints"])) == ([], 1)
    node.plugins.called = []
    await node.plugin.handle(collect(ipam=HOST_LOCAL))
    assert called(node) == ["DEL", "GC"]
    assert dict(node.plugins.called[0][1].environment)["CNI_CONTAINERID"] == "a"
    assert await node.left() == NOTHING


async def test_gc_goes_on_after_a_failure_and_tells_of_it(node: Node) -> None:
    for name in "ab":
        await node.plugin.handle(delegated(container=name, env=of_pod(name)))
    run = node.plugins.run

    async def sometimes(command: str, delegation_: Delegation) -> dict[str, Any] | None:
        if command == "DEL" and dict(delegation_.environment)["CNI_CONTAINERID"] == "a":
            raise CniError(5, "not this one")
        return await run(command, delegation_)

    node.plugins.run = sometimes  # type: ignore[method-assign]
    with pytest.raises(CniError, match="1 could not be collected yet") as caught:
        await node.plugin.handle(collect(ipam=HOST_LOCAL))
    assert caught.value.details == "container a, interface eth0: not this one"
    left = await node.left()
    assert (left["endpoints"], left["links"], left["journal"]) == ([], [], ["a"])


# --- calico-ipam by itself ---


async def test_calico_ipam_gives_addresses_with_the_blocks_mask(node: Node) -> None:
    answer = await node.plugin.handle_ipam(asked())
    assert answer is not None
    assert set(answer) == {"cniVersion", "ips", "routes", "dns"}
    assert [set(one) for one in answer["ips"]] == [{"address"}, {"address"}]
    four, six = (one["address"] for one in answer["ips"])
    assert (four.endswith("/26"), six.endswith("/122")) == (True, True)
    assert [one["dst"] for one in answer["routes"]] == [str(ip_network(one, strict=False)) for one in (four, six)]
    assert await node.plugin.handle_ipam(asked()) == answer
    await node.plugin.handle_ipam(asked("CHECK", prevResult=answer))
    with pytest.raises(CniError, match="prevResult lacks"):
        await node.plugin.handle_ipam(asked("CHECK", prevResult={"ips": answer["ips"][:1]}))
    await node.plugin.handle_ipam(asked("DEL"))
    await node.plugin.handle_ipam(asked("DEL"))
    assert await node.left() == NOTHING
    with pytest.raises(CniError, match="no address is assigned"):
        await node.plugin.handle_ipam(asked("CHECK", prevResult=answer))


async def test_calico_ipam_gives_the_address_that_is_asked_for(node: Node) -> None:
    answer = await node.plugin.handle_ipam(asked(env={"CNI_ARGS": "IgnoreUnknown=1;IP=10.65.0.9"}))
    assert (answer or {})["ips"] == [{"address": "10.65.0.9/32"}]
    with pytest.raises(CniError, match=r"10\.65\.0\.9") as caught:
        await node.plugin.handle_ipam(asked(container="c2", env={"CNI_ARGS": "IP=10.65.0.9"}))
    assert caught.value.code == Code.NO_ADDRESS
    assert (await node.left())["addresses"] == ["net.c1"]


async def test_calico_ipam_gives_both_families_or_none(node: Node) -> None:
    taken = {"args": {"cni": {"ips": ["10.65.0.9", "192.0.2.1"]}}}
    with pytest.raises(CniError, match="more than one"):
        await node.plugin.handle_ipam(asked(**taken))
    with pytest.raises(CniError, match="2001:db8::1"):
        await node.plugin.handle_ipam(asked(args={"cni": {"ips": ["10.65.0.9", "2001:db8::1"]}}))
    assert await node.left() == NOTHING


async def test_calico_ipam_says_when_it_cannot(node: Node) -> None:
    await node.plugin.handle_ipam(asked("STATUS"))
    with pytest.raises(CniError, match="host-local"):
        await node.plugin.handle_ipam(asked(ipam={"type": "host-local"}))
    node.store.cut = True
    with pytest.raises(CniError) as caught:
        await node.plugin.handle_ipam(asked("STATUS"))
    assert caught.value.code == 50
    node.store.cut = False
    await node.plugin.handle_ipam(asked(container="c" * 64))
    await node.plugin.handle_ipam(collect())
    assert await node.left() == NOTHING


async def test_calico_ipam_del_gives_up_what_version_2_gave(node: Node) -> None:
    await node.plugin._addresses._ipam.auto_assign(AssignRequest(handle="ns1.web", node="node1", num4=1))
    await node.plugin.handle_ipam(asked("DEL"))
    assert await node.left() == NOTHING


# --- gates ---


@pytest_asyncio.fixture
async def gate() -> AsyncIterator[tuple[str, list[int]]]:
    """A server's URL and the statuses that it still has to answer; 200 after the last."""
    statuses: list[int] = []

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=statuses.pop(0) if statuses else 200, headers={"Location": "/elsewhere"})

    app = web.Application()
    app.router.add_get("/ready", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/ready", statuses
    await runner.cleanup()


async def test_c07_gates_are_waited_for(
    gate: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch, node: Node
) -> None:
    url, statuses = gate
    monkeypatch.setattr(gates, "PERIOD_S", 0.01)
    statuses += [503, 404, 302]
    await node.plugin.handle(asked(readiness_gates=[url, url.replace("ready", "ready?second")]))
    assert len(statuses) <= 1  # a redirect is an answer
    monkeypatch.setattr(gates, "PERIOD_S", 5.0)
    monkeypatch.setattr(gates, "LIMIT_S", 4.0)  # one attempt
    statuses[:] = [500] * 1000
    with pytest.raises(CniError, match="is not ready") as caught:
        await wait_for_gates((url,))
    assert (caught.value.code, caught.value.details) == (Code.TRY_AGAIN, "status 500")
    with pytest.raises(CniError, match="is not ready"):
        await wait_for_gates(("http://127.0.0.1:1/",))


@pytest.mark.parametrize("url", ["", "x", "ftp://x/", "http://", "http://[::1"])
async def test_gates_that_are_no_urls_are_refused(url: str, node: Node) -> None:
    with pytest.raises(CniError, match="readiness_gates") as caught:
        await node.plugin.handle(asked(readiness_gates=[url]))
    assert caught.value.code == 7
    assert await node.left() == NOTHING
