"""What users ask about themselves (row A12)."""

from __future__ import annotations

import pytest

from services.apiserver.core import protobuf, reviews
from services.apiserver.core.attributes import Attributes
from services.apiserver.core.rbac import Rule
from services.apiserver.core.request import User
from services.apiserver.core.reviews import Granted
from services.apiserver.core.status import ApiError


def test_question_about_a_resource() -> None:
    attributes = {"verb": "get", "group": "projectcalico.org", "resource": "ippools", "subresource": "status",
                  "namespace": "n", "name": "a", "version": "*", "labelSelector": {}}  # fmt: skip
    found = reviews.asked({"spec": {"resourceAttributes": attributes}})
    assert found == Attributes("get", "projectcalico.org", "*", "ippools", "status", "n", "a")


def test_question_about_a_path() -> None:
    spec = {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}
    assert reviews.asked({"spec": spec}) == Attributes("get", path="/metrics")


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({}, 422),
        (None, 422),
        ({"resourceAttributes": {"resource": "a"}, "nonResourceAttributes": {"path": "/"}}, 422),
        ({"resourceAttributes": {"verb": "get"}}, 400),  # not to be judged as a path
        ({"resourceAttributes": {"verb": 5, "resource": "a"}}, 400),
        ([1], 400),
        ("text", 400),
    ],
)
def test_what_is_no_question_is_refused(spec: object, code: int) -> None:
    with pytest.raises(ApiError) as refused:
        reviews.asked({"spec": spec})
    assert refused.value.code == code


@pytest.mark.parametrize("body", [None, [], "x", {"kind": "Pod"}, {"apiVersion": "v1"}])
def test_another_kind_is_refused(body: object) -> None:
    with pytest.raises(ApiError, match="the body must be a SelfSubjectAccessReview"):
        reviews.checked(body, reviews.ACCESS)


def test_rules_are_told_by_what_they_are_about() -> None:
    rules = (Rule(("get",), ("g",), ("r",), ("n",)), Rule(("get",), nonResourceURLs=("/version",)))
    status = reviews.rules_status(reviews.together([Granted(rules), Granted((), "unknown")]))
    assert status["resourceRules"] == [
        {"verbs": ("get",), "apiGroups": ("g",), "resources": ("r",), "resourceNames": ("n",)}
    ]
    assert status["nonResourceRules"] == [{"verbs": ("get",), "nonResourceURLs": ("/version",)}]
    assert (status["incomplete"], status["evaluationError"]) == (True, "unknown")


def test_rules_need_a_namespace() -> None:
    with pytest.raises(ApiError, match="no namespace"):
        reviews.namespace_of({"spec": {}})


def test_user_is_told_as_it_was_authenticated() -> None:
    user = User("jane", ("devs",), "u1", {"scopes": ("a",)})
    assert reviews.user_status(user)["userInfo"] == {
        "username": "jane", "groups": ("devs",), "uid": "u1", "extra": {"scopes": ("a",)},
    }  # fmt: skip


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field (protobuf's encoding guide): all that these messages have."""
    return bytes([number << 3 | 2, len(content)]) + content


def packed(kind: str, raw: bytes) -> bytes:
    meta = field(1, b"authorization.k8s.io/v1") + field(2, kind.encode())
    return b"k8s\x00" + field(1, meta) + field(2, raw) + field(3, b"") + field(4, b"")


def test_protobuf_form_of_a_question() -> None:
    attributes = field(1, b"red") + field(2, b"create") + field(3, b"g") + field(4, b"v3") + field(5, b"networksets")
    raw = field(1, field(1, b"")) + field(2, field(1, attributes + field(7, b"web"))) + field(3, b"")
    found = protobuf.decode(packed("SelfSubjectAccessReview", raw), "SelfSubjectAccessReview")
    assert found["kind"] == "SelfSubjectAccessReview"
    assert reviews.asked(found) == Attributes("create", "g", "v3", "networksets", "", "red", "web")


def test_protobuf_form_of_a_question_about_a_path() -> None:
    raw = field(2, field(2, field(1, b"/version") + field(2, b"get")))
    found = protobuf.decode(packed("SelfSubjectAccessReview", raw), "SelfSubjectAccessReview")
    assert reviews.asked(found) == Attributes("get", path="/version")


def test_protobuf_of_another_kind_is_refused() -> None:
    found = protobuf.decode(packed("TokenReview", b"\xff"), "SelfSubjectAccessReview")
    with pytest.raises(ApiError, match="TokenReview"):
        reviews.checked(found, reviews.ACCESS)


@pytest.mark.parametrize("raw", [b"", b"k8s", b"k8s\x00\xff", b"{}", packed("SelfSubjectRulesReview", b"\x12\x05a")])
def test_protobuf_that_is_none_is_a_value_error_or_empty(raw: bytes) -> None:
    with pytest.raises(ValueError, match="protobuf"):
        protobuf.decode(raw, "SelfSubjectRulesReview")
