from __future__ import annotations

import re

import pytest

from libs.nftables.model import NAME_MAX, safe_name

NFT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9/_.\-]*")


@pytest.mark.parametrize("text", ["cali-fw-cali0123", "pi-np/ns1/web", "pi-gnp/sec.block", "_a"])
def test_legal_name_stays(text: str) -> None:
    assert safe_name(text) == text


@pytest.mark.parametrize("text", ["pi-a:b", "pi-é", "1abc", "", "pi a", "pi-a..b", "x" * 256, "-a", 'a"b', "a\nb"])
def test_other_names_become_legal_readable_and_marked(text: str) -> None:
    name = safe_name(text)
    assert NFT_NAME.fullmatch(name)
    assert len(name) <= NAME_MAX
    assert ".." in name
    assert safe_name(text) == name


def test_texts_that_read_alike_get_different_names() -> None:
    names = {safe_name(text) for text in ("pi-a:b", "pi-a;b", "pi-a_b", "pi-a b")}
    assert len(names) == 4


def test_a_made_name_given_as_text_is_not_itself() -> None:
    made = safe_name("pi-a:b")
    assert safe_name(made) != made


def test_cut_names_keep_their_beginning() -> None:
    name = safe_name("cali-pi-" + "y" * 300, 31)
    assert len(name) == 31
    assert name.startswith("cali-pi-yyy")
    assert name != safe_name("cali-pi-" + "y" * 301, 31)


def test_too_small_a_limit_is_an_error() -> None:
    with pytest.raises(ValueError, match="no room"):
        safe_name("x" * 50, 12)
