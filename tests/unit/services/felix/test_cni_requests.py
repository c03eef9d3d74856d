"""CNI requests and results as values: what is read, what is refused and with which code, and what is answered."""

from __future__ import annotations

import hashlib
import json
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.model.qos import PREFIX as QOS
from libs.netlink.podlink import pod_routes
from services.felix.core.cni import pod
from services.felix.core.cni.addressing import Given, Wanted, needs_pod_cidrs, wanted, with_pod_cidrs
from services.felix.core.cni.endpoint import Place, make_endpoint, network_profile
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.pod import PodFacts, facts_of, wanted_mac
from services.felix.core.cni.request import Request, parse, parse_args
from services.felix.core.cni.result import Dns, Interface, Ip, Result, Route, decode_result, encode_result
from services.felix.core.cni.versions import VERSIONS
from services.felix.core.route_settings import RouteSettings
from services.felix.shell.cni.links import pod_link, result_of
from tests.unit.services.felix.cni_stage import CONFIG, ENVIRONMENT, posted, request

NETNS = ENVIRONMENT["CNI_NETNS"]


def annotated(annotations: dict[str, str], **config: Any) -> tuple[Request, PodFacts]:
    made = request(args={"cni": {"annotations": annotations}}, **config)
    return made, facts_of(made)


def refusal(env: dict[str, str], config: dict[str, Any]) -> CniError:
    with pytest.raises(CniError) as caught:
        parse(posted(env, **config))
    return caught.value


# --- names ---


def test_names_follow_calico() -> None:
    made = request()
    assert made.host_interface("cali") == "cali" + hashlib.sha1(b"ns1.web").hexdigest()[:11]
    assert (made.handle, made.orchestrator, made.namespace) == ("net.c1", "k8s", "ns1")
    assert made.profiles("") == ["kns.ns1"]
    assert made.profiles("acc") == ["kns.ns1", "ksa.ns1.acc"]
    plain = parse(posted({"CNI_ARGS": ""}))
    assert (plain.host_interface("cali"), plain.orchestrator, plain.profiles("")) == ("calic1", "cni", ["net"])
    assert request(policy={}).profiles("acc") == ["net"]
    podman = parse(posted({"CNI_ARGS": "K8S_POD_NAME=web;K8S_POD_NAMESPACE="}))
    assert (podman.orchestrator, podman.pod, podman.namespace) == ("cni", "", "default")


def test_further_interfaces_have_names_and_handles_of_their_own() -> None:
    for arguments in (ENVIRONMENT["CNI_ARGS"], ""):
        made = [parse(posted({"CNI_IFNAME": name, "CNI_ARGS": arguments})) for name in ("eth0", "net1", "net2")]
        assert len({one.host_interface("cali") for one in made}) == 3
        assert all(len(one.host_interface("cali")) <= 15 for one in made)
        assert [one.handle for one in made] == ["net.c1", "net.c1@net1", "net.c1@net2"]
        assert len({Place("node1", "cali").endpoint_name(one) for one in made}) == 3


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"CNI_IFNAME": "-eth"}, "CNI_IFNAME"),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=ns1;K8S_POD_NAME=web-"}, "K8S_POD_NAME"),
    ],
)
def test_names_that_no_endpoint_can_have(env: dict[str, str], text: str) -> None:
    with pytest.raises(CniError, match=text) as caught:
        Place("node1", "cali").endpoint_name(parse(posted(env)))
    assert caught.value.code == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", {}), ("a=b", {"a": "b"}), ("a=b;c=d=e;", {"a": "b", "c": "d=e"}), ("a=", {"a": ""})],
)
def test_arguments(text: str, expected: dict[str, str]) -> None:
    assert parse_args(text) == expected


# --- refusals ---


@pytest.mark.parametrize(
    ("env", "config", "code", "text"),
    [
        ({"CNI_COMMAND": "MOVE"}, {}, 4, "CNI_COMMAND"),
        ({"CNI_CONTAINERID": ""}, {}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "-x"}, {}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a/b"}, {}, 4, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": ""}, {}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, {}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a/b"}, {}, 4, "CNI_IFNAME"),
        ({"CNI_IFNAME": "x" * 16}, {}, 4, "CNI_IFNAME"),
        ({"CNI_NETNS": ""}, {}, 4, "CNI_NETNS"),
        ({"CNI_NETNS": "x"}, {}, 4, "CNI_NETNS"),
        ({"CNI_ARGS": "x"}, {}, 4, "CNI_ARGS"),
        ({}, {"cniVersion": "0.2.1"}, 1, "0.2.1"),
        ({}, {"cniVersion": "2.0.0"}, 1, "2.0.0"),
        ({"CNI_COMMAND": "CHECK"}, {"cniVersion": "0.3.1"}, 1, "CHECK"),
        ({"CNI_COMMAND": "STATUS"}, {"cniVersion": "1.0.0"}, 1, "STATUS"),
        ({"CNI_COMMAND": "GC"}, {"cniVersion": "1.0.0"}, 1, "GC"),
        ({"CNI_COMMAND": "CHECK"}, {}, 7, "prevResult"),
        ({"CNI_COMMAND": "CHECK"}, {"prevResult": {"ips": [{"address": "x"}]}}, 7, "prevResult"),
        ({}, {"prevResult": {"ips": [{"address": "10.0.0.1/32", "interface": 3}]}}, 7, "interface 3"),
        ({}, {"prevResult": []}, 7, "$.prevResult"),
        ({}, {"name": ""}, 7, "`name` is missing"),
        ({}, {"name": "a b"}, 7, "`name` is 'a b'"),
        ({}, {"name": 7}, 7, "$.name"),
        ({}, {"ipam": {"type": "../host-local"}}, 7, "ipam.type"),
        ({"CNI_PATH": ""}, {"ipam": {"type": "host-local"}}, 4, "CNI_PATH"),
        ({}, {"mtu": "1500"}, 7, "$.mtu"),
        ({}, {"mtu": -1}, 7, "$.mtu"),
        ({}, {"mtu": 65536}, 7, "$.mtu"),
        ({}, {"device_type": "macvlan"}, 7, "device_type"),
        ({}, {"container_settings": {"allow_ip_forwarding": "yes"}}, 7, "$.container_settings.allow_ip_forwarding"),
        ({}, {"feature_control": [1]}, 7, "$.feature_control"),
        ({}, {"readiness_gates": "http://x"}, 7, "$.readiness_gates"),
        ({}, {"policy_setup_timeout_seconds": -1}, 7, "$.policy_setup_timeout_seconds"),
        ({}, {"ipam": {"ipv4_pools": ["a", 1]}}, 7, "$.ipam.ipv4_pools[1]"),
        ({}, {"args": {"cni": {"ports": [{"name": "x", "port": "80"}]}}}, 7, "$.args.cni.ports[0].port"),
        ({}, {"runtimeConfig": {"bandwidth": {"ingressRate": "1M"}}}, 7, "$.runtimeConfig.bandwidth.ingressRate"),
        ({}, {"runtimeConfig": {"deviceID": "0000:00:1f.6"}}, 2, "deviceID = '0000:00:1f.6'"),
        ({}, {"runtimeConfig": {"infinibandGUID": "c2:11"}}, 2, "infinibandGUID = 'c2:11'"),
    ],
)
def test_bad_requests_have_the_code_of_the_specification_and_name_the_key(
    env: dict[str, str], config: dict[str, Any], code: int, text: str
) -> None:
    error = refusal(env, config)
    assert (error.code, text in str(error)) == (code, True), error
    said = error.object("")
    assert said["code"] == code
    version = config.get("cniVersion", CONFIG["cniVersion"])
    assert said["cniVersion"] == (version if version in VERSIONS else "1.0.0")


def test_bodies_that_are_no_request_are_refused() -> None:
    deep = "[" * 100_000
    for body, code in (
        (b"", 6),
        (b"[]", 6),
        (b'{"env": {}, "config": "{"}', 6),
        (b'{"env": {}, "config": "[]"}', 7),
        (json.dumps({"env": {}, "config": deep}).encode(), 6),
        (b'{"env": {}, "config": "\\ud800"}', 6),
        (deep.encode(), 6),
    ):
        with pytest.raises(CniError) as caught:
            parse(body)
        assert caught.value.code == code, body[:40]


def test_keys_that_nobody_knows_and_nulls_are_ignored() -> None:
    odd = {"vxlan_vni": 7, "windows_use_single_network": True, "dataplane_options": {"a": 1}, "ipam": None, "mtu": None}
    made = parse(posted({}, **odd, args=None, runtimeConfig={"aliases": ["a"], "portMappings": [], "mac": None}))
    assert (made.config.mtu, made.config.ipam.type) == (0, "calico-ipam")
    assert made.raw["vxlan_vni"] == 7


def test_a_missing_version_is_0_2_0() -> None:
    body = json.dumps({"env": ENVIRONMENT, "config": json.dumps({"name": "net"})}).encode()
    assert parse(body).version == "0.2.0"


def test_del_needs_little_and_other_commands_no_container() -> None:
    broken: dict[str, Any] = {
        "mtu": "big", "ipam": {"type": "calico-ipam", "assign_ipv4": "no"}, "args": {"cni": {"labels": 5}},
        "prevResult": {"ips": 5}, "runtimeConfig": {"deviceID": "x"},
    }  # fmt: skip
    made = parse(posted({"CNI_COMMAND": "DEL", "CNI_NETNS": ""}, **broken))
    assert (made.netns, made.handle) == ("", "net.c1")
    env = {"CNI_COMMAND": "STATUS", "CNI_CONTAINERID": "", "CNI_IFNAME": "", "CNI_NETNS": "", "CNI_ARGS": ""}
    assert parse(posted(env, cniVersion="1.1.0")).command == "STATUS"


def test_as_calico_ipam_the_calling_plugins_keys_do_not_matter() -> None:
    body = posted({}, mtu="1500", device_type=5, policy={"type": "k8s"})
    with pytest.raises(CniError):
        parse(body)
    assert parse(body, for_ipam=True).config.mtu == 0


def test_gc_without_a_list_is_not_gc_with_an_empty_one() -> None:
    env = {"CNI_COMMAND": "GC"}
    with pytest.raises(CniError, match="valid-attachments"):
        parse(posted(env, cniVersion="1.1.0")).valid_attachments()
    assert parse(posted(env, cniVersion="1.1.0", **{"cni.dev/valid-attachments": []})).valid_attachments() == ()
    old = parse(posted(env, cniVersion="1.1.0", **{"cni.dev/attachments": [{"containerID": "c", "ifname": "eth0"}]}))
    assert [(one.container, one.ifname) for one in old.valid_attachments()] == [("c", "eth0")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "cniVersion", "name", "type", "ipam", "args", "runtimeConfig", "prevResult", "mtu", "dns", "policy",
        "readiness_gates", "cni.dev/valid-attachments", "container_settings", "feature_control", "nodename", "x",
    ]
)  # fmt: skip
INNER = st.sampled_from(
    ["type", "cni", "labels", "ips", "mac", "bandwidth", "annotations", "ranges", "subnet", "ports"]
)
CONFIGS = st.dictionaries(KEYS, JSON | st.dictionaries(INNER, JSON, max_size=3), max_size=5)
ENVIRONMENTS = st.fixed_dictionaries(
    {
        "CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "STATUS", "GC", "", "add"]),
        "CNI_CONTAINERID": st.sampled_from(["c1", "", "a/b", "ä"]) | st.text(max_size=4),
        "CNI_NETNS": st.sampled_from(["/var/run/netns/x", "", "x"]),
        "CNI_IFNAME": st.sampled_from(["eth0", "net1", "", "x" * 20]) | st.text(max_size=4),
        "CNI_ARGS": st.sampled_from(["", "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b", ";;", "=", "IP=x"])
        | st.text(max_size=9),
    }
)


@given(env=ENVIRONMENTS, config=CONFIGS, valid=st.booleans(), for_ipam=st.booleans(), cut=st.integers(0, 400))
def test_whatever_comes_is_a_request_or_a_cni_error(
    env: dict[str, str], config: dict[str, Any], valid: bool, for_ipam: bool, cut: int
) -> None:
    text = json.dumps((CONFIG if valid else {}) | config)
    bodies = [json.dumps({"env": env, "config": text[:cut] if cut < 350 else text}).encode()]
    bodies.append(bodies[0][:cut])
    refusals: list[dict[str, Any]] = []
    for body in bodies:
        try:
            made = parse(body, for_ipam=for_ipam)
            facts = facts_of(made)
            wanted(made, facts)
            wanted_mac(made, facts)
            make_endpoint(made, facts, Place("node1", "cali"), "02:00:00:00:00:01", (), None)
            made.valid_attachments()
        except CniError as error:
            refusals.append(json.loads(json.dumps(error.object(""))))
    assert {refusal["code"] for refusal in refusals} <= {int(code) for code in Code}


# --- what a pod asks for ---


def test_annotations_of_the_pod_come_before_the_namespace_and_those_before_the_configuration() -> None:
    made = request(
        ipam={"type": "calico-ipam", "ipv4_pools": ["conf4"], "ipv6_pools": ["conf6"], "assign_ipv6": "true"},
        args={
            "cni": {
                "annotations": {pod.IPV4_POOLS: '["pod4"]'},
                "namespaceAnnotations": {pod.IPV4_POOLS: '["ns4"]', pod.IPV6_POOLS: '["ns6"]'},
            }
        },
    )
    assert wanted(made, facts_of(made)) == Wanted(1, 1, ("pod4",), ("ns6",))
    assert wanted(made, PodFacts()) == Wanted(1, 1, ("conf4",), ("conf6",))
    families = PodFacts(namespace_annotations={pod.IP_FAMILIES: '["IPv6"]'})
    assert wanted(made, families) == Wanted(0, 1, ("conf4",), ("conf6",))
    # Of the rest a namespace's annotations say nothing.
    assert wanted(made, PodFacts(namespace_annotations={pod.IP_ADDRS: '["10.0.0.1"]'})).fixed == ()


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({}, ()),
        ({"env": "IP=10.0.0.1"}, ("10.0.0.1",)),
        ({"env": "IP=10.0.0.1,fd00::1"}, ("10.0.0.1", "fd00::1")),
        ({"env": "IP=10.0.0.1", "args": ["10.0.0.2/24"]}, ("10.0.0.2",)),
        ({"args": ["10.0.0.2/24"], "runtime": ["10.0.0.3/16", "fd00::3"]}, ("10.0.0.3", "fd00::3")),
        ({"runtime": ["10.0.0.3/16"], "annotation": '["10.0.0.4"]'}, ("10.0.0.4",)),
    ],
)
def test_fixed_addresses_from_wherever_runtimes_put_them(sources: dict[str, Any], expected: tuple[str, ...]) -> None:
    cni: dict[str, Any] = {"ips": sources.get("args", [])}
    if "annotation" in sources:
        cni["annotations"] = {pod.IP_ADDRS: sources["annotation"]}
    env = {"CNI_ARGS": ENVIRONMENT["CNI_ARGS"] + ";" + sources.get("env", "")}
    made = parse(posted(env, args={"cni": cni}, runtimeConfig={"ips": sources.get("runtime", [])}))
    assert tuple(map(str, wanted(made, facts_of(made)).fixed)) == expected


@pytest.mark.parametrize(
    ("annotations", "config", "text"),
    [
        ({pod.IP_ADDRS: "10.0.0.1"}, {}, "no JSON list"),
        ({pod.IP_ADDRS: "[]"}, {}, "empty list"),
        ({pod.IP_ADDRS: '["10.0.0.300"]'}, {}, "10.0.0.300"),
        ({pod.IP_ADDRS: '["10.0.0.1/24"]'}, {}, "10.0.0.1/24"),
        ({pod.IP_ADDRS: '["10.0.0.1", "10.0.0.2"]'}, {}, "more than one"),
        ({pod.IP_ADDRS: '["10.0.0.1"]', pod.IP_ADDRS_NO_IPAM: '["10.0.0.1"]'}, {}, "exclude each other"),
        ({pod.IP_ADDRS_NO_IPAM: '["10.0.0.1"]'}, {}, "feature_control.ip_addrs_no_ipam"),
        ({pod.IP_FAMILIES: '["ipv4"]'}, {}, "'ipv4'"),
        ({pod.IPV4_POOLS: "pool"}, {}, "no JSON list"),
        ({}, {"ipam": {"assign_ipv4": "maybe"}}, "'maybe'"),
        ({}, {"ipam": {"assign_ipv4": "false"}}, "both false"),
        ({}, {"ipam": {"subnet": "10.0.0.0/8", "ipv4_pools": ["p"]}}, "exclude each other"),
        ({}, {"runtimeConfig": {"ips": ["x"]}}, "runtimeConfig.ips"),
        ({}, {"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/8"}]]}}, "ipRanges"),
    ],
)
def test_addresses_that_cannot_be_asked_for(annotations: dict[str, str], config: dict[str, Any], text: str) -> None:
    with pytest.raises(CniError) as caught:
        wanted(*annotated(annotations, **config))
    assert caught.value.code in (2, 7)
    assert text in str(caught.value)


def test_addresses_past_ipam_where_the_feature_is_on() -> None:
    made, facts = annotated(
        {pod.IP_ADDRS_NO_IPAM: '["10.9.0.1", "fd09::1"]'}, feature_control={"ip_addrs_no_ipam": True}
    )
    assert [str(one) for one in wanted(made, facts).unmanaged] == ["10.9.0.1", "fd09::1"]
    other = parse(posted({"CNI_PATH": "/x"}, ipam={"type": "host-local"}, feature_control={"ip_addrs_no_ipam": True}))
    with pytest.raises(CniError, match="calico-ipam only"):
        wanted(other, facts)


def test_macs_in_their_order() -> None:
    full: dict[str, Any] = {
        "runtimeConfig": {"mac": "02-00-00-00-00-02"},
        "args": {"cni": {"mac": "02:00:00:00:00:03", "annotations": {pod.HW_ADDR: "1C:0C:0A:C0:FF:EE"}}},
    }
    env = {"CNI_ARGS": ENVIRONMENT["CNI_ARGS"] + ";MAC=02:00:00:00:00:04"}
    for drop, expected in (
        ((), "1c:0c:0a:c0:ff:ee"),
        (("annotations",), "02:00:00:00:00:02"),
        (("annotations", "runtimeConfig"), "02:00:00:00:00:03"),
        (("annotations", "runtimeConfig", "args"), "02:00:00:00:00:04"),
    ):
        config = {key: value for key, value in full.items() if key not in drop}
        if "annotations" in drop and "args" in config:
            config["args"] = {"cni": {"mac": "02:00:00:00:00:03"}}
        made = parse(posted(env, **config))
        assert wanted_mac(made, facts_of(made)) == expected
    for bad in ("01:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00", "x"):
        with pytest.raises(CniError, match="hwAddr"):
            wanted_mac(*annotated({pod.HW_ADDR: bad}))
    assert wanted_mac(*annotated({})) is None


def test_containerd_may_pass_the_annotations_on() -> None:
    made = request(
        runtimeConfig={"io.kubernetes.cri.pod-annotations": {"a": "cri", "b": "cri"}},
        args={"cni": {"annotations": {"b": "args"}}},
    )
    assert facts_of(made).annotations == {"a": "cri", "b": "args"}


PLACE = Place("node1", "cali")


def test_the_endpoint_has_what_the_pod_asked_for() -> None:
    made, facts = annotated(
        {pod.FLOATING_IPS: '["1.2.3.4", "2001:db8::4", "1.2.3.5"]', pod.SOURCE_PREFIXES: '["10.7.0.0/16"]'},
        feature_control={"floating_ips": True},
        runtimeConfig={"bandwidth": {"ingressRate": 1000000, "egressRate": 2000000, "egressBurst": 3000000}},
    )
    addresses = (ip_interface("10.0.0.1").ip, ip_interface("fd00::1").ip)
    endpoint, problems = make_endpoint(made, facts, PLACE, "02:00:00:00:00:01", addresses, None)
    assert problems == []
    nats = [(nat.internal_ip, nat.external_ip) for nat in endpoint.spec.ip_nats]
    assert nats == [("10.0.0.1", "1.2.3.4"), ("fd00::1", "2001:db8::4"), ("10.0.0.1", "1.2.3.5")]
    assert endpoint.spec.allow_spoofed_source_prefixes == ["10.7.0.0/16"]
    controls = endpoint.spec.qos_controls
    assert controls is not None
    assert (controls.ingress_bandwidth, controls.egress_bandwidth, controls.egress_burst) == (1000000, 2000000, 3000000)
    assert endpoint.metadata.annotations == {pod.NETWORK: "net"}


def test_calicos_own_limits_come_before_the_runtimes() -> None:
    made, facts = annotated(
        {f"{QOS}ingressBandwidth": "7M"}, runtimeConfig={"bandwidth": {"ingressRate": 1000000, "egressRate": 2000000}}
    )
    endpoint, _ = make_endpoint(made, facts, PLACE, "", (ip_interface("10.0.0.1").ip,), None)
    assert endpoint.spec.qos_controls is not None
    assert endpoint.spec.qos_controls.ingress_bandwidth == 7000000
    assert endpoint.spec.qos_controls.egress_bandwidth == 2000000


@pytest.mark.parametrize(
    ("annotations", "config", "text"),
    [
        ({pod.FLOATING_IPS: '["1.2.3.4"]'}, {}, "feature_control.floating_ips"),
        ({pod.FLOATING_IPS: '["2001:db8::1"]'}, {"feature_control": {"floating_ips": True}}, "no IPv6 address"),
        ({pod.FLOATING_IPS: '["x"]'}, {"feature_control": {"floating_ips": True}}, "'x'"),
        ({pod.SOURCE_PREFIXES: '["10.0.0.0/33"]'}, {}, "10.0.0.0/33"),
        ({pod.SOURCE_PREFIXES: "10.0.0.0/8"}, {}, "no JSON list"),
    ],
)
def test_endpoints_that_cannot_be(annotations: dict[str, str], config: dict[str, Any], text: str) -> None:
    made, facts = annotated(annotations, **config)
    with pytest.raises(CniError) as caught:
        make_endpoint(made, facts, PLACE, "", (ip_interface("10.0.0.1").ip,), None)
    assert (caught.value.code, text in str(caught.value)) == (7, True), caught.value


def test_the_profile_of_a_network_without_kubernetes_policy() -> None:
    inside = network_profile(parse(posted({"CNI_ARGS": ""}))).spec
    assert inside.ingress[0].source is not None
    assert inside.ingress[0].source.selector == "has(net)"
    assert inside.labels_to_apply == {"net": ""}
    assert network_profile(request()).spec.ingress[0].source is None


# --- pod CIDRs for host-local ---


def test_pod_cidrs_stand_in_for_their_names_wherever_a_subnet_may() -> None:
    config = {
        "name": "n",
        "ipam": {
            "type": "host-local",
            "subnet": "UsePodCIDR",
            "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "usePodCidrIPv6", "rangeStart": "x"}], [{"subnet": "10.1.0.0/16"}]],
        },
    }
    made = with_pod_cidrs(config, {4: "10.0.0.0/24", 6: "fd00::/64"}.__getitem__)
    assert made["ipam"]["subnet"] == "10.0.0.0/24"
    assert made["ipam"]["ranges"] == [[{"subnet": "fd00::/64", "rangeStart": "x"}], [{"subnet": "10.1.0.0/16"}]]
    assert made["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}]
    assert needs_pod_cidrs(config)
    assert not needs_pod_cidrs(made)
    assert config["ipam"]["subnet"] == "UsePodCIDR"  # type: ignore[index]


@pytest.mark.parametrize("ranges", [5, [5], [[5]]])
def test_ranges_of_another_shape_are_refused(ranges: Any) -> None:
    with pytest.raises(CniError, match=r"ipam\.ranges"):
        with_pod_cidrs({"ipam": {"ranges": ranges}}, lambda version: "")


# --- results ---


FULL = Result(
    interfaces=(Interface(name="cali1", mac="ee:ee:ee:ee:ee:ee", mtu=1450), Interface(name="eth0", sandbox=NETNS)),
    ips=(Ip(ip_interface("10.0.0.1/32"), None, 1), Ip(ip_interface("fd00::1/128"), ip_interface("fe80::1").ip, 1)),
    routes=(Route(ip_network("10.0.0.0/8"), None, (("mtu", 1400),)), Route(ip_network("fd00::/8"))),
    dns=Dns(nameservers=("10.0.0.2",)),
)


def test_each_version_has_its_form() -> None:
    made = {version: encode_result(FULL, version) for version in VERSIONS}
    old = {
        "ip4": {"ip": "10.0.0.1/32", "routes": [{"dst": "10.0.0.0/8"}]},
        "ip6": {"ip": "fd00::1/128", "gateway": "fe80::1", "routes": [{"dst": "fd00::/8"}]},
        "dns": {"nameservers": ["10.0.0.2"]},
    }
    for version in ("0.1.0", "0.2.0"):
        assert made[version] == {"cniVersion": version, **old}
    for version in ("0.3.0", "0.3.1", "0.4.0", "1.0.0"):
        numbered = not version.startswith("1")
        four = {"version": "4"} if numbered else {}
        six = {"version": "6"} if numbered else {}
        assert made[version] == {
            "cniVersion": version,
            "interfaces": [{"name": "cali1", "mac": "ee:ee:ee:ee:ee:ee"}, {"name": "eth0", "sandbox": NETNS}],
            "ips": [
                {**four, "address": "10.0.0.1/32", "interface": 1},
                {**six, "address": "fd00::1/128", "gateway": "fe80::1", "interface": 1},
            ],
            "routes": [{"dst": "10.0.0.0/8"}, {"dst": "fd00::/8"}],
            "dns": {"nameservers": ["10.0.0.2"]},
        }
    assert made["1.1.0"]["interfaces"][0] == {"name": "cali1", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1450}
    assert made["1.1.0"]["routes"][0] == {"dst": "10.0.0.0/8", "mtu": 1400}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("other", VERSIONS)
def test_a_result_of_any_version_becomes_one_of_any_other(version: str, other: str) -> None:
    read = decode_result(encode_result(FULL, version), "prevResult")
    assert encode_result(read, other) == encode_result(decode_result(encode_result(FULL, version), "x"), other)
    assert [str(ip.address) for ip in read.ips] == ["10.0.0.1/32", "fd00::1/128"]
    assert encode_result(decode_result(encode_result(FULL, version), "x"), version) == encode_result(FULL, version)


WIRE_KEYS = st.sampled_from(
    ["cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6", "address", "dst", "ip", "name"]
)


@given(
    raw=st.dictionaries(
        WIRE_KEYS, JSON | st.lists(st.dictionaries(WIRE_KEYS, JSON, max_size=3), max_size=2), max_size=4
    )
)
def test_a_result_is_read_or_refused(raw: dict[str, Any]) -> None:
    refused = []
    try:
        made = decode_result(raw, "prevResult")
    except CniError as error:
        refused.append(error.code)
    else:
        for version in VERSIONS:
            json.dumps(encode_result(made, version))
    assert refused in ([], [Code.INVALID_CONFIG])


def test_what_other_plugins_of_the_chain_made_comes_first_and_stays() -> None:
    before = {
        "cniVersion": "0.4.0",
        "interfaces": [{"name": "lo", "sandbox": NETNS}],
        "ips": [{"version": "4", "address": "127.0.0.1/8", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24", "gw": "192.0.2.1"}],
        "dns": {"domain": "example.org"},
    }
    made = request(prevResult=before)
    given_ = Given((ip_interface("10.0.0.1/26"),))
    answer = encode_result(result_of(made, pod_link(made, "cali1", given_, "02:00:00:00:00:01", 1450), given_), "1.0.0")
    assert [one["name"] for one in answer["interfaces"]] == ["lo", "cali1", "eth0"]
    assert answer["ips"] == [
        {"address": "127.0.0.1/8", "interface": 0},
        {"address": "10.0.0.1/32", "interface": 2},
    ]
    assert answer["routes"] == [{"dst": "192.0.2.0/24", "gw": "192.0.2.1"}]
    assert answer["dns"] == {"domain": "example.org"}


def test_routes_to_a_new_pod_are_written_as_felix_will_want_them() -> None:
    """So that they need not be written again when its endpoint is known."""
    addresses = Given((ip_interface("10.0.0.1/26"), ip_interface("fd00::1/122")))
    settings = RouteSettings(protocol=90, priorities={4: 7, 6: 8})
    for routes, expected in ((None, [(3, 1024), (3, 1024)]), (settings, [(90, 7), (90, 8)])):
        link = pod_link(request(), "cali1", addresses, "", 0, routes)
        assert [(one.protocol, one.metric) for one in pod_routes(link, 5)] == expected


def test_dns_of_the_configuration_comes_before_that_of_a_plugin_for_addresses() -> None:
    given_ = Given((ip_interface("10.0.0.1/26"),), dns=Dns(domain="ipam"))
    for config, expected in (({}, "ipam"), ({"dns": {"domain": "conf", "options": ["x"]}}, "conf")):
        made = request(**config)
        assert result_of(made, pod_link(made, "cali1", given_, "", 0), given_).dns.domain == expected
