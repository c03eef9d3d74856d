"""Which interfaces are not looked at."""

from __future__ import annotations

import pytest

from services.felix.core.interface_exclude import NOTHING, InterfaceExclude, parse


@pytest.mark.parametrize(
    ("text", "excluded", "others"),
    [
        ("kube-ipvs0", {"kube-ipvs0"}, {"kube-ipvs", "kube-ipvs01", "xkube-ipvs0", "eth0"}),
        ("eth.0, br+", {"eth.0", "br+"}, {"eth00", "br0"}),
        ("/^docker[0-9]+$/,lo", {"docker0", "docker17", "lo"}, {"dockerx", "mydocker0", "lo0"}),
        ("/veth/", {"veth1", "myveth"}, {"eth0"}),
    ],
)
def test_names_are_whole_and_expressions_match_anywhere(text: str, excluded: set[str], others: set[str]) -> None:
    found = parse(text)
    assert {name for name in excluded | others if found.excludes(name)} == excluded


@pytest.mark.parametrize("text", ["", ",", "a,,b", "/[/", "/", "//", "eth 0", "a/b", "sixteen-letters-"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is n"):
        parse(text)


def test_equal_texts_give_equal_values_also_after_use() -> None:
    first = parse("a,/b/")
    assert first.excludes("b")
    assert first == parse("/b/,a")
    assert InterfaceExclude().excludes("kube-ipvs0")
    assert not NOTHING.excludes("kube-ipvs0")
