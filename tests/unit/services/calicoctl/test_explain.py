"""trace, what-if and status on a datastore in memory: what ends mean, packets, files, errors that help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from libs.bus import wire
from libs.bus.apiserver import ApiserverBeat
from libs.bus.bgp import State as BgpState
from libs.bus.explain import Setting, State, Verb, subject
from libs.bus.memory import MemoryBroker
from services.calicoctl.explain import system
from tests.unit.libs.policy import build
from tests.unit.services.calicoctl.ctl import Ctl

POLICY = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: ns1}
spec:
  selector: app == 'web'
  types: [Ingress]
  ingress: [{action: Allow, protocol: TCP, source: {selector: app == 'client'}, destination: {ports: [http]}}]
"""


@pytest.fixture
def ctl() -> Ctl:
    made = Ctl()
    open_, mine = [build.rule()], ("kns.ns1",)
    nodes = [build.node("n1", "192.0.2.1/24", "2001:db8::1/64"), build.node("n2", "192.0.2.2/24")]
    pods = [
        build.wep("web", "n1", labels={"app": "web"}, nets=("10.0.0.1/32", "fd00::1/128"), profiles=mine,
                  ports=(("http", "TCP", 8080),)),
        build.wep("client", "n2", labels={"app": "client"}, nets=("10.0.1.1/32", "fd00:1::1/128"), profiles=mine),
        build.wep("other", "n2", "ns2", labels={"app": "client"}, nets=("10.0.1.2/32",), profiles=("kns.ns2",)),
        build.wep("starting", "n2", nets=()),
    ]  # fmt: skip
    profiles = [build.profile(f"kns.{one}", ingress=open_, egress=open_) for one in ("ns1", "ns2")]
    extra = [
        build.tier("default", 1_000_000),
        build.gns("known", {"known": "yes"}, ("198.51.100.0/24",)),
        build.pool("pool", "10.0.0.0/16", nat_outgoing=True),
        build.hep("web", "n1", interface="eth0"),
    ]
    for resource in (*nodes, *pods, *profiles, *extra):
        made.store(resource)
    return made


def trace(ctl: Ctl, *arguments: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(ctl.good("trace", *arguments, "--datastore-only", "-o", "json"))
    return found


def test_trace_of_both_families_and_of_a_named_port(ctl: Ctl) -> None:
    ctl.good("apply", "-f", "-", stdin=POLICY)
    four, six = trace(ctl, "ns1/client", "pod:ns1/web", "--port", "http")
    assert (four["verdict"], six["verdict"]) == ("allow", "allow")
    assert [hop["node"] for hop in four["hops"]] == ["n2", "n1"]
    wanted = {"src": "fd00:1::1", "dst": "fd00::1", "protocol": "tcp", "src_port": 40000, "dst_port": 8080}
    assert {name: six["packet"][name] for name in wanted} == wanted
    (only,) = trace(ctl, "ns2/other", "10.0.0.1", "--port", "8080")
    assert only["verdict"] == "deny"
    text = ctl.good("trace", "client", "pod:web", "-n", "ns1", "--protocol", "udp", "--port", "53", "--datastore-only")
    assert "DENIED" in text
    assert "at the end of tier default: none of its 1 policy matched" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ns1/wep", "ns1/client", "--port", "1"), "no pod, node, network set or address 'ns1/wep'; did you mean"),
        (("web", "n2", "-n", "ns1", "--port", "1"), "'web' may be several things: write one of pod:web"),
        (("ns1/starting", "n2", "--port", "1"), "pod ns1/starting has an endpoint on n2 but no address yet"),
        (("198.51.100.1", "198.51.100.2", "--port", "1"), "neither end is in the cluster"),
        (("n1", "192.0.2.1", "--port", "1"), "both ends are node n1 itself"),
        (("ns1/client", "ns2/other", "--port", "1", "--family", "6"), "pod ns2/other has no IPv6 address"),
        (("ns1/client", "ns2/other"), "--port: which port?"),
        (("ns1/client", "ns1/web", "--port", "https"), "has no tcp port 'https'; it has http (tcp 8080)"),
        (("ns1/client", "ns1/web", "--port", "70000"), "--port: 70000 is not within 1 to 65535"),
        (("ns1/client", "ns1/web", "--protocol", "icmp", "--port", "1"), "--port: icmp has no ports"),
        (("ns1/client", "ns1/web", "--protocol", "tpc", "--port", "1"), "--protocol: 'tpc' is neither a number"),
        (("ns1/client", "ns1/web", "--port", "1", "--icmp-type", "8", "--protocol", "tcp"), "--icmp-type: tcp is not"),
        (("node:n3", "ns1/web", "--port", "1"), "no node 'n3'; did you mean"),
        (("netset:know", "ns1/web", "--port", "1"), "no network set 'know'; did you mean known?"),
        (("", "ns1/web", "--port", "1"), "an end must not be empty"),
    ],
)
def test_what_cannot_be_traced_is_said(ctl: Ctl, arguments: tuple[str, ...], says: str) -> None:
    assert says in ctl.bad("trace", *arguments, "--datastore-only")


def test_other_ends(ctl: Ctl) -> None:
    (one,) = trace(ctl, "netset:known", "ns1/web", "--port", "80")
    assert one["packet"]["src"] == "198.51.100.0"
    assert any("the first address is meant" in note for note in one["notes"])
    (one,) = trace(ctl, "ns1/client", "198.51.100.9", "--port", "80")
    assert [hop["role"] for hop in one["hops"]] == ["sender's node"]
    (one,) = trace(ctl, "ns1/client", "n1", "--port", "80", "--family", "4")
    assert any("natOutgoing" in note for note in one["notes"])
    (one,) = trace(ctl, "ns2/other", "ns1/web", "--protocol", "icmp", "--icmp-type", "3", "--icmp-code", "4")
    assert (one["packet"]["icmp_type"], one["packet"]["icmp_code"]) == (3, 4)
    (one,) = trace(ctl, "hep:web", "ns1/client", "--port", "81", "--family", "4")
    assert [hop["role"] for hop in one["hops"]] == ["sender's node", "receiver's node"]


def test_without_a_bus_the_answer_is_the_datastores_and_that_is_said(ctl: Ctl) -> None:
    done = ctl("trace", "ns1/client", "pod:ns1/web", "--port", "80", "--family", "4")
    assert done.exit_code == 0
    assert "ALLOWED" in done.stdout
    assert "kernel: not asked" in done.stdout
    assert done.stderr == "The nodes were not asked: bus: no bus in this test\n"


# --- what-if ---------------------------------------------------------------------------------------------------------


def what_if(ctl: Ctl, *arguments: str, stdin: str | None = None, status: int = 3) -> dict[str, object]:
    done = ctl("what-if", *arguments, "-o", "json", stdin=stdin)
    assert done.exit_code == status, done.output + repr(done.exception)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_what_if_of_a_file_writes_nothing_and_tells_all_that_changes(ctl: Ctl) -> None:
    before = ctl.server.revision
    told = what_if(ctl, "-f", "-", stdin=POLICY)
    assert ctl.server.revision == before
    assert told["compared"] == 6 + 2
    rows = {(tuple(one["from"]), tuple(one["families"])): one["services"] for one in told["changes"]}
    assert rows[("ns2/other",), (4,)] == ["tcp", "udp", "icmp", "other protocols"]
    # By a port of the policy: what is left is all others.
    assert rows[("ns1/client",), (4, 6)] == ["tcp/1-8079", "tcp/8081-65535", "udp", "icmp", "other protocols"]
    assert {one["verdict"] for one in told["changes"]} == {"deny"}
    text = ctl("what-if", "-f", "-", stdin=POLICY).stdout
    assert "then: denied at the end of tier default (ingress)" in text
    assert "now:  allowed by profile kns.ns1, rule 0 (ingress)" in text


def test_what_if_nothing_changes(ctl: Ctl) -> None:
    ctl.good("apply", "-f", "-", stdin=POLICY)
    told = what_if(ctl, "-f", "-", stdin=POLICY, status=0)
    assert (told["changed"], told["changes"]) == (0, [])
    assert what_if(ctl, "--delete", "np/ns1/web")["changed"] == 3
    assert what_if(ctl, "--delete", "np/ns1/web", "--port", "8080", "--in", "ns1", "--selector", "app == 'client'",
                   status=0)["compared"] > 0  # fmt: skip


def test_what_if_of_flows(ctl: Ctl, tmp_path: Path) -> None:
    lines = [
        {"src": "ns2/other", "dst": "10.0.0.1", "proto": "tcp", "port": 8080},
        {"src": "10.0.1.1", "dst": "ns1/web", "port": 8080},
        {"src": "198.51.100.7", "dst": "fd00::1", "proto": 17, "port": 53} | {"src": "2001:db8::7"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "policy.yaml").write_text(POLICY)
    told = what_if(ctl, "-f", str(tmp_path), "--flows", "-", stdin=text)["flows"]
    assert (told["compared"], told["changed"]) == (3, 2)
    assert {one["from"] for one in told["changes"]} == {"ns2/other", "2001:db8::7"}


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (("-f", "-"), POLICY.replace("app == 'web'", "app = 'web'"), "spec.selector"),
        (("--delete", "np/ns1/none"), None, "none"),
        (("--delete", "np"), None, "is not KIND/NAME"),
        (("--delete", "npp/x"), None, "resource type 'npp' is not supported"),
        (("--staged", "--selector", "a ="), None, "--selector:"),
        (("--staged", "--in", "nowhere"), None, "no endpoint is of that namespace"),
        (("--staged", "--with", "10.0.0.1"), None, "only addresses outside can be added"),
        (("--staged", "--flows", "-"), '{"src": 1}', "flows: line 1:"),
        (("--staged", "--protocol", "udp"), None, "give --port as well"),
    ],
)
def test_what_if_says_what_is_wrong(ctl: Ctl, arguments: tuple[str, ...], stdin: str | None, says: str) -> None:
    assert says in ctl.bad("what-if", *arguments, stdin=stdin)


def test_staged_policies_and_staged_deletions(ctl: Ctl) -> None:
    ctl.good("apply", "-f", "-", stdin=POLICY)
    staged = POLICY.replace("kind: NetworkPolicy", "kind: StagedNetworkPolicy")
    ctl.good("apply", "-f", "-", stdin=staged.replace("spec:", "spec:\n  stagedAction: Delete").split("  selector")[0])
    told = what_if(ctl, "--staged")
    assert told["changed"] == 3
    assert any("would delete NetworkPolicy web" in note for note in told["notes"])
    assert {one["verdict"] for one in told["changes"]} == {"allow"}


# --- status ----------------------------------------------------------------------------------------------------------


def beat(instance: str, rev: int, age_s: float = 0.5) -> wire.Beat:
    return wire.Beat(epoch=wire.Epoch(instance, 10**18, 1), rev=rev, etcd_age_s=age_s, head=rev)


def test_rows_of_status_say_who_lags_and_who_is_missing() -> None:
    seen = system.Seen(etcd=(120, "3.5.9"), changed=100, beats={"a": beat("a", 100), "b": beat("b", 90)})
    seen.apiservers = {
        "one": ApiserverBeat(instance="one", started="2026-11-28T09:00:00Z", version="v1", rev=99),
        "two": ApiserverBeat(instance="two", started="2026-11-28T09:00:00Z", version="v1", problem="Datastore: away"),
    }
    seen.felix = {
        "n1": State(node="n1", rev=100, phase="following", version="v1"),
        "n2": State(node="n2", rev=95, phase="following"),
        "n3": State(node="n3", rev=100, phase="following", failures={"ipset s:a": "full"}),
        "n4": "its felix did not answer in time",
        "n5": State(node="n5", rev=100, phase="looking for a typha"),
    }
    seen.bgp = {"n1": BgpState(node="n1", ready=False, detail="no settings yet")}
    rows = {(row.component, row.where): row for row in system.rows(seen, ["n1", "n2", "n3", "n4", "n5", "n6"])}
    assert {key: (row.lag, row.status, row.good) for key, row in rows.items() if key[0] == "felix"} == {
        ("felix", "n1"): (0, "up to date", True),
        ("felix", "n2"): (5, "behind", False),
        ("felix", "n3"): (0, "1 failure", False),
        ("felix", "n4"): (None, "its felix did not answer in time", False),
        ("felix", "n5"): (0, "looking for a typha", False),
        ("felix", "n6"): (None, "not asked", False),
    }
    assert (rows["typha", "a"].good, rows["typha", "b"].lag) == (True, 10)
    assert {key[1]: (row.status, row.version, row.revision, row.lag, row.good) for key, row in rows.items()
            if key[0] == "apiserver"} == {
        "one": ("serves", "v1", 99, None, True), "two": ("Datastore: away", "v1", None, None, False),
    }  # fmt: skip
    assert not rows["bgp", "n1"].good
    assert "n3: ipset s:a: full" in system.text(list(rows.values()), seen)


def test_rows_of_status_name_versions_and_who_is_refused() -> None:
    old, new = beat("a", 100), beat("b", 100)
    new.version, new.protocol = "v9.0.0", 2
    seen = system.Seen(changed=100, beats={"a": old, "b": new})
    why = "refused: typha b (v9.0.0) speaks protocol 2, this reader protocol 1: upgrade this reader"
    seen.felix = {"n1": State(node="n1", rev=100, phase=why, version="v0.1.0")}
    seen.bgp = {"n1": BgpState(node="n1", ready=True, version="v0.1.0", problems={"typha": why})}
    rows = {(row.component, row.where): row for row in system.rows(seen, ["n1"])}
    assert (rows["typha", "a"].version, rows["typha", "a"].status) == ("", "beats")  # it does not say
    assert (rows["typha", "b"].version, rows["typha", "b"].status) == ("v9.0.0", "beats, protocol 2")
    assert (rows["felix", "n1"].version, rows["felix", "n1"].status, rows["felix", "n1"].good) == ("v0.1.0", why, False)
    assert (rows["bgp", "n1"].version, rows["bgp", "n1"].good) == ("v0.1.0", False)
    assert why in rows["bgp", "n1"].status


def test_settings_of_a_node_name_their_source(ctl: Ctl) -> None:
    ctl.broker = MemoryBroker()
    felix = ctl.broker.connect("felix")
    state = State(
        node="n1",
        settings={
            "logSeverityScreen": Setting("Debug", "environment"),
            "failsafeInboundHostPorts": Setting('[{"port":22}]', "rack-a"),
        },
        warnings=("bpfEnabled: has no effect in this version",),
    )
    felix.subscribe(subject("n1", Verb.STATE), lambda message: message.respond(wire.encode(state)))
    done = ctl("node", "config", "n1")
    assert done.exit_code == 0, done.output
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    assert cells[1:] == [
        ["n1", "failsafeInboundHostPorts", '[{"port":22}]', "rack-a"],
        ["n1", "logSeverityScreen", "Debug", "environment"],
    ]
    assert "n1: without effect: bpfEnabled" in done.stdout
    done = ctl("node", "config", "-o", "json", "--timeout", "1s")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["n1"]["settings"]["logSeverityScreen"] == {"value": "Debug", "source": "environment"}
    assert told["n2"] == {"error": "its felix does not run, or is of a version that cannot be asked"}


def test_status_without_a_bus_says_so(ctl: Ctl) -> None:
    done = ctl("status")
    assert done.exit_code == 1
    assert "not reached: no bus in this test" in done.stdout
