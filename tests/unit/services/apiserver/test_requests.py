"""Continue tokens, options, forms of answers and bodies: the pure half of the verbs."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.model import kinds
from services.apiserver.core import continuation, documents, negotiation, objects, options
from services.apiserver.core.continuation import Continue
from services.apiserver.core.negotiation import Form, Output
from services.apiserver.core.options import FieldValidation, Match
from services.apiserver.core.request import Target
from services.apiserver.core.status import ApiError, JsonObject
from tests.unit.services.apiserver.test_selectors import code

TIER = kinds.kind("Tier")
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}
META = ";v=v1;g=meta.k8s.io"


# --- continue --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2**63 - 1), st.text(alphabet="abz09-.", min_size=1).filter(lambda text: ".." not in text))
def test_tokens_come_back(revision: int, last: str) -> None:
    assert continuation.decode(continuation.encode(Continue(revision, last))) == Continue(revision, last)


@given(st.text(max_size=60))
def test_any_text_is_a_token_or_a_bad_request(text: str) -> None:
    assert code(lambda: continuation.decode(text)) in (0, 400)


def test_too_old_carries_a_token_without_a_revision() -> None:
    status = continuation.too_old("a").status()
    assert (status["code"], status["reason"]) == (410, "Expired")
    assert continuation.decode(status["metadata"]["continue"]) == Continue(continuation.NO_REVISION, "a")


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "revision", "match"),
    [
        ({}, None, Match.NOT_OLDER),
        ({"resourceVersion": ""}, None, Match.NOT_OLDER),
        ({"resourceVersion": "0"}, 0, Match.NOT_OLDER),
        ({"resourceVersion": "0", "limit": "5"}, 0, Match.NOT_OLDER),
        ({"resourceVersion": "7"}, 7, Match.NOT_OLDER),
        ({"resourceVersion": "7", "limit": "5"}, 7, Match.EXACT),
        ({"resourceVersion": "7", "limit": "5", "resourceVersionMatch": "NotOlderThan"}, 7, Match.NOT_OLDER),
        ({"resourceVersion": "7", "resourceVersionMatch": "Exact"}, 7, Match.EXACT),
    ],
)
def test_which_revision_a_list_wants(query: dict[str, str], revision: int | None, match: Match) -> None:
    found = options.list_options(query, TIER)
    assert (found.revision, found.match) == (revision, match)


def test_continue_and_a_revision_exclude_each_other() -> None:
    token = continuation.encode(Continue(5, "a"))
    assert options.list_options({"continue": token, "resourceVersion": "0"}, TIER).continue_ == Continue(5, "a")
    with pytest.raises(ApiError, match="specifying resource version is not allowed when using continue"):
        options.list_options({"continue": token, "resourceVersion": "5"}, TIER)


def test_managers_come_from_the_query_or_the_user_agent() -> None:
    def manager(agent: str, **query: str) -> str:
        return options.write_query(query, agent, of="CreateOptions").manager

    assert manager("kubectl/v1.34 (linux)") == "kubectl"
    assert manager("kubectl/v1.34", fieldManager="me") == "me"
    assert manager("") == "unknown"
    assert manager("x" * 200) == "x" * 128
    for bad in ("x" * 129, "a\tb"):
        with pytest.raises(ApiError) as refused:
            manager("a", fieldManager=bad)
        assert refused.value.code == 422
    with pytest.raises(ApiError, match="force: Forbidden: may not be specified for non-apply patch"):
        options.write_query({"force": "true"}, "", of="PatchOptions")


def test_delete_options_of_the_body_come_before_the_query() -> None:
    assert options.delete_options({"dryRun": "All"}, None).dry_run
    assert not options.delete_options({"dryRun": "All"}, {}).dry_run
    found = options.delete_options({}, {"preconditions": {"uid": "u"}, "dryRun": ["All"]})
    assert (found.dry_run, found.preconditions and found.preconditions.uid) == (True, "u")


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", Output()),
        ("*/*", Output()),
        ("application/yaml", Output(yaml=True)),
        ("application/yaml;q=0.5, application/json", Output()),
        (f"application/json;as=Table{META},application/json", Output(Form.TABLE)),
        ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Output(Form.TABLE, version="v1beta1")),
        ("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", Output()),
        (f"application/vnd.kubernetes.protobuf,application/json;as=PartialObjectMetadata{META}", Output(Form.METADATA)),
        (f"application/json;as=PartialObjectMetadataList{META},application/json", Output()),
    ],
)
def test_first_acceptable_form(accept: str, wanted: Output) -> None:
    assert negotiation.output(accept) == wanted


@pytest.mark.parametrize("accept", ["text/html", "application/vnd.kubernetes.protobuf", "application/json;q=0", "x"])
def test_nothing_acceptable(accept: str) -> None:
    with pytest.raises(ApiError) as refused:
        negotiation.output(accept)
    assert refused.value.code == 406


def test_metadata_of_lists_has_a_name_of_its_own() -> None:
    accept = f"application/json;as=PartialObjectMetadataList{META}"
    assert negotiation.output(accept, listing=True).form is Form.METADATA
    with pytest.raises(ApiError):
        negotiation.output(f"application/json;as=PartialObjectMetadata{META}", listing=True)
    assert negotiation.output(f"application/json;as=PartialObjectMetadata{META}", watching=True).form is Form.METADATA


# --- bodies ----------------------------------------------------------------------------------------------------------


def test_unknown_and_double_fields_at_any_depth() -> None:
    raw = b'{"metadata": {"labels": {"a": "1", "a": "2"}, "nam": 1}, "spec": {"order": null, "x": [{"y": 1}]}}'
    value, warnings = documents.read(raw, yaml=False, kind=TIER, validation=FieldValidation.WARN)
    assert warnings == [
        'unknown field "metadata.nam"', 'unknown field "spec.x"', 'duplicate field "metadata.labels.a"',
    ]  # fmt: skip
    assert value["metadata"] == {"labels": {"a": "2"}}
    assert value["spec"] == {}
    same, none = documents.read(raw, yaml=False, kind=TIER, validation=FieldValidation.IGNORE)
    assert (same, none) == (value, [])


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,a1\\u- \n&*!', max_size=60).map(str.encode), st.booleans())
def test_any_body_is_an_object_or_a_bad_request(raw: bytes, yaml: bool) -> None:
    def read() -> None:
        value, _ = documents.read(raw, yaml=yaml, kind=TIER, validation=FieldValidation.WARN)
        json.dumps(value)

    assert code(read) in (0, 400)


def test_warning_headers_are_quoted_and_bounded() -> None:
    assert documents.warning_headers(['a "b" \\ c\r\nX: y']) == ['299 - "a \\"b\\" \\\\ c??X: y"']
    many = documents.warning_headers([f'unknown field "f{number}{"x" * 50}"' for number in range(1000)])
    assert 10 < len(many) < 100


@pytest.mark.parametrize(
    ("metadata", "fields"),
    [
        ({"finalizers": ["bad finalizer", "a.b/c"]}, {"metadata.finalizers[0]"}),
        ({"finalizers": ["a/b/c"]}, {"metadata.finalizers[0]"}),
        ({"ownerReferences": [{"x": 1}]}, {f"metadata.ownerReferences[0].{n}" for n in OWNER}),
        ({"ownerReferences": [OWNER, OWNER | {"uid": ""}]}, {"metadata.ownerReferences[1].uid"}),
    ],
)
def test_finalizers_and_owners_must_be_such_that_somebody_can_find_them(
    metadata: dict[str, object], fields: set[str]
) -> None:
    target = Target(TIER, name="a")
    live: JsonObject = {"metadata": {"name": "a", "uid": "u"}}
    for write in (
        lambda value: objects.for_create(value, target, Random(1)),
        lambda value: objects.for_update(value, live, target),
    ):
        with pytest.raises(ApiError) as refused:
            write({"metadata": {"name": "a", **metadata}})
        assert refused.value.code == 422
        assert {cause.field for cause in refused.value.causes} == fields


def test_good_finalizers_and_owners_stay() -> None:
    metadata = {"name": "a", "finalizers": ["plain", "example.com/cleanup"], "ownerReferences": [OWNER]}
    assert objects.for_create({"metadata": metadata}, Target(TIER), Random(1))["metadata"] == metadata
