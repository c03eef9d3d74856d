"""Server-side apply and managed fields, step by step against Kubernetes' own field manager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.model import codec, kinds
from services.apiserver.core import managed
from services.apiserver.core.managed import ApplyConflict, ApplyRefused, apply, settled, update
from services.apiserver.core.merging import same
from services.apiserver.core.owners import seconds
from tests.properties.apply_objects import SPECS, Operation, operations, to_send
from tests.properties.apply_oracle import Oracle, oracle

JsonObject = dict[str, Any]

_LONG_AGO = seconds("2020-01-01T00:00:00Z")


@pytest.fixture(autouse=True)
def values_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our own addition, which looks at values as they will be stored; test_managed.py has that one."""
    monkeypatch.setattr(managed, "_as_stored", lambda value, kind: None)


@pytest.fixture(scope="module")
def kubernetes() -> Iterator[Oracle]:
    with oracle(*SPECS) as found:
        yield found


def ours(live: JsonObject | None, operation: Operation, sent: JsonObject, now: str) -> JsonObject:
    """In the form of the oracle's answers."""
    kind = kinds.kind(sent["kind"])
    subresource = "status" if operation.kind.endswith("status") else ""
    manager = operation.manager
    try:
        if operation.applies:
            force = operation.kind == "force"
            found = apply(live, sent, kind=kind, manager=manager, force=force, now=now, subresource=subresource)
        else:
            found = update(live, sent, kind=kind, manager=manager, now=now, subresource=subresource)
    except ApplyConflict as conflict:
        causes = conflict.api_error().causes
        pairs = sorted((cause.message.removeprefix("conflict with "), cause.field) for cause in causes)
        return {"conflicts": pairs, "message": str(conflict)}
    except ApplyRefused as refused:
        return {"error": refused.message}
    return {"object": found}


def theirs(answer: JsonObject, live: JsonObject | None, sent: JsonObject, operation: Operation, now: str) -> JsonObject:
    """With our clock, and what Kubernetes' server does around the field manager: nulls pruned, status and the rest not
    written through each other's requests, times alone not stored.
    """
    if "object" not in answer:
        return answer
    found = codec.drop_nulls(answer["object"])
    for entry in found.get("metadata", {}).get("managedFields", ()):
        if "time" in entry and seconds(entry["time"]) > _LONG_AGO:
            entry["time"] = now
    if operation.kind == "apply-status" and live is not None:
        status = {"status": found["status"]} if "status" in found else {}
        rest = {name: of for name, of in live.items() if name != "status"}
        found = {**rest, "metadata": _metadata(live, found), **status}
    return {"object": settled(live, found)}


def _metadata(live: JsonObject, found: JsonObject) -> JsonObject:
    kept = {name: of for name, of in live["metadata"].items() if name != "managedFields"}
    managed = found["metadata"].get("managedFields")
    return kept | ({"managedFields": managed} if managed else {})


@pytest.mark.parametrize("kind", list(SPECS))
@given(data=st.data())
def test_every_step_is_as_in_kubernetes(kubernetes: Oracle, kind: str, data: st.DataObject) -> None:
    in_step(kubernetes, kind, data.draw(st.lists(operations(kind), min_size=1, max_size=8)))


NETS = st.lists(st.sampled_from([f"fd00:{number}::/64" for number in range(8)]), min_size=2, unique=True)


@given(st.lists(st.tuples(st.sampled_from(("ann", "bob")), NETS), min_size=2, max_size=5))
def test_lists_are_joined_in_kubernetes_order(kubernetes: Oracle, wanted: list[tuple[str, list[str]]]) -> None:
    """What is wanted in its order, what others have where it stood between."""
    top = {"apiVersion": "projectcalico.org/v3", "kind": "NetworkSet", "metadata": {"name": "n"}}
    steps = [Operation("apply", manager, {**top, "spec": {"nets": nets}}) for manager, nets in wanted]
    in_step(kubernetes, "NetworkSet", steps)


def in_step(kubernetes: Oracle, kind: str, steps: list[Operation]) -> None:
    live: JsonObject | None = None
    for number, operation in enumerate(steps):
        if live is None and operation.kind.endswith("status"):
            continue
        now = f"2001-01-01T00:00:{number:02}Z"
        sent = to_send(live, operation)
        subresource = "status" if operation.kind.endswith("status") else ""
        answer = kubernetes.ask(
            kind,
            "apply" if operation.applies else "update",
            live,
            sent,
            manager=operation.manager,
            force=operation.kind == "force",
            subresource=subresource,
        )
        expected = theirs(answer, live, sent, operation, now)
        found = ours(live, operation, sent, now)
        assert same(found, expected), f"{operation} on {live}:\nours   {found}\ntheirs {expected}"
        if "object" in found:
            live = {**found["object"], "metadata": {**found["object"]["metadata"], "uid": "u"}}
