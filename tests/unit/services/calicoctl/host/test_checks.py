"""checksystem: what counts as there, what fails, what is only told."""

from __future__ import annotations

import pytest

from services.calicoctl.host.checks import FEATURES, Found, Result, good, judge, ruleset
from tests.unit.services.calicoctl.ctl import Ctl

DEP = "kernel/net/netfilter/{0}.ko.xz: kernel/x.ko\n"
CONFIG = "".join(f"{feature.option}=m\n" for feature in FEATURES if feature.needed)


def result(found: Found, name: str) -> Result:
    return next(line.result for line in judge(found)[1] if line.name == name)


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("5.10.0-28-amd64", Result.OK), ("6.1", Result.OK), ("10.2.1", Result.OK), ("5.9.16", Result.FAIL),
        ("4.19.0", Result.FAIL), ("2.6.24", Result.FAIL), ("plan9", Result.FAIL),
    ],
)  # fmt: skip
def test_the_floor_is_5_10(release: str, expected: Result) -> None:
    assert judge(Found(release))[0].result is expected


@pytest.mark.parametrize(
    "found",
    [
        Found("6.1", modules_dep=DEP.format("nf_conntrack")),
        Found("6.1", modules_builtin="kernel/net/netfilter/nf_conntrack.ko\n"),
        Found("6.1", modules_builtin="kernel/net/netfilter/nf-conntrack.ko\n"),
        Found("6.1", loaded="nf_conntrack 172032 6 nf_nat, Live 0x0\n"),
        Found("6.1", config="CONFIG_NF_CONNTRACK=y\n"),
        Found("6.1", config="# x\nCONFIG_NF_CONNTRACK=m\n"),
    ],
)
def test_each_source_counts(found: Found) -> None:
    assert result(found, "nf_conntrack") is Result.OK
    assert result(found, "veth") is Result.FAIL


@pytest.mark.parametrize(
    "found",
    [
        Found("6.1", modules_dep=DEP.format("nf_conntrack_netlink")),
        Found("6.1", loaded="nf_conntrack_netlink 1 0\n"),
        Found("6.1", config="# CONFIG_NF_CONNTRACK is not set\nCONFIG_NF_CONNTRACK_MARK=y\n"),
    ],
)
def test_similar_names_do_not_count(found: Found) -> None:
    assert result(found, "nf_conntrack") is Result.FAIL


def test_the_kernels_own_word_wins() -> None:
    assert result(Found("6.1", asked={"nft_fib_inet": True}), "nft_fib_inet") is Result.OK
    assert result(Found("6.1", config=CONFIG, asked={"nft_fib_inet": False}), "nft_fib_inet") is Result.FAIL


def test_what_only_iptables_needs_is_no_fault() -> None:
    kernel, lines = judge(Found("6.1", config=CONFIG))
    assert good([kernel, *lines])
    assert {line.result for line in lines} == {Result.OK, Result.SKIP}
    assert result(Found("6.1", config=CONFIG), "ip_set") is Result.SKIP
    assert not good(judge(Found("6.1", config=CONFIG.replace("CONFIG_VETH", "CONFIG_X")))[1])


def test_rules_are_put_where_they_belong() -> None:
    by_name = {feature.name: feature for feature in FEATURES}
    assert "hook postrouting" in ruleset(by_name["nft_masq"])
    assert "vmap { lo : accept }" in ruleset(by_name["nft_vmap"])


def test_a_given_configuration_that_cannot_be_read_is_told(ctl: Ctl) -> None:
    assert "cannot read kernel configuration /none" in ctl.bad("node", "checksystem", "-f", "/none")
