"""Tokens, proxies' headers and impersonation, as text (row A12)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.apiserver.core.identity import (
    HeaderNames,
    TokenFileError,
    authenticated,
    bearer,
    impersonated,
    parse_tokens,
    printable,
)  # fmt: skip
from services.apiserver.core.request import User
from services.apiserver.core.status import ApiError

KEY = b"k" * 32


def test_a_token_file_as_kubernetes_has_it() -> None:
    found = parse_tokens('t1,jane,1,"a,b"\n\nt2,joe,2\nt3,jim,3,one\n t4 , ann , 4 , "x" \n', KEY)
    assert found.user(KEY, "t1") == User("jane", ("a", "b"), "1")
    assert found.user(KEY, "t2") == User("joe", (), "2")
    assert found.user(KEY, "t3") == User("jim", ("one",), "3")
    assert found.user(KEY, "t") is None
    assert found.user(KEY, "t1,jane") is None
    assert found.user(b"other" * 8, "t1") is None
    assert "t1" not in repr(found)
    assert found.twice == ()


def test_a_repeated_token_is_told_and_the_later_line_counts() -> None:
    found = parse_tokens("t,a,1\nt,b,2\n", KEY)
    assert found.user(KEY, "t") == User("b", (), "2")
    assert found.twice == (2,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secret-token,jane", "line 1: .* there are 2 columns"), (",jane,1", "line 1: the token is empty"),
        ("good,a,1\nsecret-token,,1", "line 2: the user is empty"), ('secret-token,"jane', "line 1"),
    ],
)  # fmt: skip
def test_a_bad_token_file_names_lines_and_no_tokens(text: str, words: str) -> None:
    with pytest.raises(TokenFileError, match=words) as caught:
        parse_tokens(text, KEY)
    assert "secret-token" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_token_file_or_an_error(text: str) -> None:
    with contextlib.suppress(TokenFileError):
        assert len(parse_tokens(text, KEY).users) <= text.count("\n") + text.count("\r") + 1


def test_headers_of_the_proxy() -> None:
    names = HeaderNames(("X-User", "X-Remote-User"), ("X-Remote-Group",), ("X-Remote-Extra-",), ("X-Remote-Uid",))
    headers = [
        ("x-remote-user", "second"), ("X-User", ""), ("X-REMOTE-GROUP", "a"), ("x-remote-group", "b"),
        ("X-Remote-Extra-Acme.com%2FProject", "1"), ("x-remote-extra-acme.com%2fproject", "%32"), ("Other", "x"),
    ]  # fmt: skip
    found = names.user(headers)
    assert found == User("second", ("a", "b"), "", {"acme.com/project": ("1", "%32")})
    assert names.user([("X-User", "first"), *headers]).name == "first"  # type: ignore[union-attr]
    assert names.user([("X-Remote-Group", "system:masters")]) is None
    assert names.matches("x-remote-extra-anything")
    assert not names.matches("X-Other")


def test_everybody_who_is_known_is_in_one_group() -> None:
    assert authenticated(User("a", ("b",))).groups == ("b", "system:authenticated")
    assert authenticated(User("a", ("system:authenticated",))).groups == ("system:authenticated",)
    assert authenticated(User("system:anonymous")).groups == ()


@pytest.mark.parametrize(
    ("user", "good"),
    [
        (User("jane"), True), (User("jänë", ("gröup",)), True), (User("a\nb"), False), (User("a", ("b\x7f",)), False),
        (User("a\udcff"), False), (User("a", extra={"k": ("v\r",)}), False), (User("a", uid="\x00"), False),
    ],
)  # fmt: skip
def test_names_that_can_be_told(user: User, good: bool) -> None:
    assert printable(user) is good


def test_impersonation_asks_for_each_part() -> None:
    assert impersonated([("X", "y")]) is None
    found = impersonated(
        [
            ("Impersonate-User", "carl"),
            ("impersonate-group", "g"),
            ("Impersonate-Uid", "7"),
            ("Impersonate-Extra-A%2Fb", "v"),
        ]
    )
    assert found is not None
    user, asked = found
    assert user == User("carl", ("g", "system:authenticated"), "7", {"a/b": ("v",)})
    assert [(one.group, one.full_resource, one.name) for one in asked] == [
        ("", "users", "carl"), ("", "groups", "g"), ("authentication.k8s.io", "userextras/a/b", "v"),
        ("authentication.k8s.io", "uids", "7"),
    ]  # fmt: skip
    assert {one.verb for one in asked} == {"impersonate"}


def test_impersonation_of_a_service_account_and_of_nobody() -> None:
    user, asked = impersonated([("Impersonate-User", "system:serviceaccount:ns:sa")])  # type: ignore[misc]
    assert (asked[0].resource, asked[0].namespace, asked[0].name) == ("serviceaccounts", "ns", "sa")
    assert user.groups == ("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated")
    user, asked = impersonated([("Impersonate-User", "system:serviceaccount:ns:")])  # type: ignore[misc]
    assert asked[0].resource == "users"
    user, _ = impersonated([("Impersonate-User", "system:anonymous")])  # type: ignore[misc]
    assert user.groups == ("system:unauthenticated",)
    for header in ("Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-x"):
        with pytest.raises(ApiError, match="Impersonate-User"):
            impersonated([(header, "x")])


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
    ],
)
def test_bearer(header: str, token: str | None) -> None:
    assert bearer(header) == token
