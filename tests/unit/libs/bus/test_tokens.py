from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.bus import decode_token, encode_token
from libs.bus.subject_match import check_publish_subject, matches

NASTY = st.text(alphabet=st.sampled_from(list("._*>% \t\n%5FaA0é/名")), max_size=12) | st.text(max_size=20)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("", "_"),
        ("_", "%5F"),
        ("__", "__"),
        ("web-0", "web-0"),
        ("a.b", "a%2Eb"),
        ("*", "%2A"),
        (">", "%3E"),
        ("50% off", "50%25%20off"),
        ("np/ns1/web", "np/ns1/web"),
        ("名前", "名前"),
        ("a\r\n", "a%0D%0A"),
    ],
)
def test_known_tokens(name: str, token: str) -> None:
    assert encode_token(name) == token
    assert decode_token(token) == name


@given(NASTY)
def test_any_name_survives_the_round_trip_as_one_token(name: str) -> None:
    token = encode_token(name)
    assert decode_token(token) == name
    check_publish_subject(f"calico.{token}.x")
    assert matches("calico.*.x", f"calico.{token}.x")


@given(NASTY, NASTY)
def test_different_names_have_different_tokens(one: str, other: str) -> None:
    assert (encode_token(one) == encode_token(other)) == (one == other)


@given(NASTY)
def test_decoding_anything_is_a_name_or_a_value_error(text: str) -> None:
    try:
        name = decode_token(text)
    except ValueError:
        return
    assert decode_token(encode_token(name)) == name


@pytest.mark.parametrize("token", ["", "a.b", "*", ">", "a b", "%", "%2", "%zz", "a%"])
def test_what_encoding_cannot_have_made_is_refused(token: str) -> None:
    with pytest.raises(ValueError):
        decode_token(token)
