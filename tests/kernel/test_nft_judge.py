"""`nft`, which shares no code with us, reads what we wrote, and writes what we read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from libs.nftables.codec import encode_rule
from libs.nftables.fake import FakeRuleset
from libs.nftables.kernel import KernelTransport
from libs.nftables.model import (
    COUNTER,
    Base,
    Chain,
    ChainType,
    Family,
    Field,
    Hook,
    Match,
    Ruleset,
    Table,
    jump,
    rule,
    safe_name,
)
from libs.nftables.reconcile import Applied, TableReconciler
from libs.nftables.text import print_ruleset
from libs.testkit import netns
from tests.kernel.nft_samples import sample

pytestmark = pytest.mark.kernel
FAMILIES = [Family.IP, Family.IP6, Family.INET]


@pytest.fixture
def ns() -> Iterator[netns.Namespace]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("nft") as made:
        yield made


def listing(ns: netns.Namespace) -> str:
    """`nft list ruleset` without what counts by itself, its elements in one order."""
    text = ns.run("nft", "list", "ruleset")
    text = re.sub(r"counter packets \d+ bytes \d+", "counter", text)
    text = re.sub(r" expires \w+", "", text)
    text = re.sub(
        r"elements = \{([^}]*)\}", lambda m: "elements = " + ", ".join(sorted(" ".join(m[1].split()).split(", "))), text
    )
    blocks = re.findall(r"^\t(?:set|map|chain) .*?^\t\}$", text, re.DOTALL | re.MULTILINE)
    return "\n".join(sorted(blocks))


async def write(ns: netns.Namespace, ruleset: Ruleset) -> Applied:
    transport = KernelTransport(ns.path)
    try:
        reconciler = TableReconciler(transport, ruleset.table)
        reconciler.in_sync = True
        reconciler.desired.replace(ruleset)
        return await reconciler.step()
    finally:
        transport.close()


@pytest.mark.parametrize("family", FAMILIES)
async def test_nft_prints_the_same_for_our_netlink_and_for_its_own_reading_of_our_text(
    ns: netns.Namespace, family: Family
) -> None:
    ruleset = sample(family)
    await write(ns, ruleset)
    ours = listing(ns)
    ns.run("nft", "flush", "ruleset")
    ns.run("nft", "-f", "-", text=print_ruleset(ruleset))
    assert ours == listing(ns)


@pytest.mark.parametrize("family", FAMILIES)
async def test_nft_listing_loads_again_and_is_the_same(ns: netns.Namespace, family: Family) -> None:
    await write(ns, sample(family))
    ours = listing(ns)
    dump = ns.run("nft", "-s", "list", "ruleset").replace("code net-unreachable", "code 0")
    ns.run("nft", "flush", "ruleset")
    ns.run("nft", "-f", "-", text=dump)
    assert listing(ns) == ours


@pytest.mark.parametrize("family", FAMILIES)
async def test_kernel_lists_every_expression_in_the_bytes_we_sent(ns: netns.Namespace, family: Family) -> None:
    ruleset = sample(family)
    await write(ns, ruleset)
    transport = KernelTransport(ns.path)
    try:
        found = await transport.read(ruleset.table)
    finally:
        transport.close()
    for chain in ruleset.chains:
        for want, have in zip(chain.rules, found.chains[chain.name].rules, strict=True):
            assert have.wire == encode_rule(family, want), want
        assert found.chains[chain.name].base == chain.base


@pytest.mark.parametrize("family", FAMILIES)
async def test_restart_on_every_expression_writes_nothing(ns: netns.Namespace, family: Family) -> None:
    await write(ns, sample(family))
    assert await write(ns, sample(family)) == Applied()


async def test_counters_that_have_counted_are_no_difference(ns: netns.Namespace) -> None:
    chain = Chain("out", (rule(Match(Field.OIFNAME, "lo"), COUNTER, comment="c"),), Base(Hook.OUTPUT))
    ruleset = Ruleset(Table(Family.IP, "cal"), (chain,))
    await write(ns, ruleset)
    ns.run("ping", "-c1", "-W20", "127.0.0.1")
    counted = json.loads(ns.run("nft", "-j", "list", "chain", "ip", "cal", "out"))
    (found,) = [entry["rule"] for entry in counted["nftables"] if "rule" in entry]
    assert any(expr.get("counter", {}).get("packets", 0) > 0 for expr in found["expr"])
    assert await write(ns, ruleset) == Applied()


async def test_fake_and_kernel_agree_on_the_number_of_messages(ns: netns.Namespace) -> None:
    ruleset = sample(Family.IP)
    fake = TableReconciler(FakeRuleset(), ruleset.table)
    fake.in_sync = True
    fake.desired.replace(ruleset)
    assert await fake.step() == await write(ns, ruleset)


async def test_names_that_are_no_nft_names_are_made_safe(ns: netns.Namespace) -> None:
    texts = ["pi-np/ns1/web:8080", "pi-gnp/ünï", "pi-" + "x" * 400, "pi-a b{c}", "pi-a..b", "pi-gnp/sec.block"]
    names = [safe_name(text) for text in texts]
    chains = tuple(Chain(name, (rule(COUNTER),)) for name in names)
    base = Chain("fwd", tuple(rule(jump(name)) for name in names), Base(Hook.FORWARD, ChainType.FILTER))
    ruleset = Ruleset(Table(Family.IP, "cal"), (Chain("cali-fwd", base.rules, base.base), *chains))
    await write(ns, ruleset)
    dump = ns.run("nft", "list", "ruleset")
    ns.run("nft", "flush", "ruleset")
    ns.run("nft", "-f", "-", text=dump)
    assert await write(ns, ruleset) == Applied()
    assert names[-1] == texts[-1]


async def test_arp_table_drops_proxied_replies(ns: netns.Namespace) -> None:
    drop = rule(Match(Field.ARP_OPERATION, "reply"), Match(Field.ARP_SADDR_IP, "10.0.0.1"), COUNTER)
    ruleset = Ruleset(Table(Family.ARP, "cal-arp"), (Chain("arp-out", (drop,), Base(Hook.OUTPUT)),))
    await write(ns, ruleset)
    assert "arp operation reply arp saddr ip 10.0.0.1 counter" in listing(ns)
    assert await write(ns, ruleset) == Applied()
