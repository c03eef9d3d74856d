"""Small random objects and random operations of a few managers on them, for the properties of server-side apply.

Values are as the store writes them, and never the ones that it leaves out (false, 0, ""), so that what is applied is
what is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

JsonObject = dict[str, Any]

MANAGERS = ("ann", "bob", "cyd")


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[JsonObject]:
    """An object with any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


def text_map(*keys: str) -> st.SearchStrategy[JsonObject]:
    return st.dictionaries(st.sampled_from(keys), st.sampled_from(("1", "2")), max_size=len(keys))


def subset(*values: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=3)


CONDITION = st.builds(
    lambda type_, rest: {"type": type_, **rest},
    st.sampled_from(("Ready", "Busy")),
    some(status=st.sampled_from(("True", "False")), reason=st.sampled_from(("Good", "Bad"))),
)
CONDITIONS = st.lists(CONDITION, unique_by=lambda condition: condition["type"], max_size=2)
OWNER = st.builds(
    lambda uid, name: {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid},
    st.sampled_from(("u1", "u2")),
    st.sampled_from(("p", "q")),
)
METADATA = some(
    labels=text_map("a", "b", "c"),
    annotations=text_map("x/y", "z"),
    finalizers=subset("f/1", "f/2", "f/3"),
    ownerReferences=st.lists(OWNER, unique_by=lambda owner: owner["uid"], max_size=2),
)
RULES = st.lists(
    some(protocol=st.sampled_from(("TCP", "UDP")), notProtocol=st.just("SCTP")).map(
        lambda rest: {"action": "Allow", **rest}
    ),
    max_size=2,
)
SPECS: dict[str, st.SearchStrategy[JsonObject]] = {
    "Tier": some(order=st.sampled_from((1.5, 10)), defaultAction=st.sampled_from(("Pass", "Deny"))),
    "NetworkPolicy": some(
        order=st.sampled_from((1.5, 10)),
        tier=st.sampled_from(("t", "u")),
        types=subset("Ingress", "Egress"),
        ingress=RULES,
        selector=st.sampled_from(("all()", "a == 'b'")),
    ),
    "BGPPeer": some(
        peerIP=st.sampled_from(("10.0.0.1", "fd00::1")),
        filters=subset("x", "y"),
        password=some(secretKeyRef=some(name=st.sampled_from(("s", "t")), key=st.just("k"))),
    ),
    "NetworkSet": some(nets=subset("10.0.0.0/8", "fd00::/8")),
    "Profile": some(labelsToApply=text_map("a", "b", "c"), egress=RULES),
    "StagedKubernetesNetworkPolicy": some(
        podSelector=some(matchLabels=text_map("a", "b")), policyTypes=subset("Ingress", "Egress")
    ),
}


@dataclass(frozen=True)
class Operation:
    """kind: apply, force, update or status (an update or an apply of the status alone). managed: what an update sends
    as managedFields: `same` as it read, `none`, `reset` or `less` (the first entry left out).
    """

    kind: str
    manager: str
    object: JsonObject
    managed: str = "same"

    @property
    def applies(self) -> bool:
        return self.kind in ("apply", "force", "apply-status")


def _nulls(value: JsonObject, chosen: tuple[str, ...]) -> JsonObject:
    """Null for some fields, in metadata and spec."""
    return {
        name: {field: None if field in chosen else of for field, of in member.items()}
        if isinstance(member, dict)
        else member
        for name, member in value.items()
    }


def _with_elements_twice(value: JsonObject) -> JsonObject:
    """The first element of each set comes again, which only who does not apply can do."""
    sets = ("finalizers", "types", "policyTypes", "nets")
    return {
        name: {field: [*of, *of[:1]] if field in sets else of for field, of in member.items()}
        if isinstance(member, dict)
        else member
        for name, member in value.items()
    }


def objects(kind: str, *, spec: bool = True) -> st.SearchStrategy[JsonObject]:
    """Without a name; the spec may be missing altogether."""
    parts = {"metadata": METADATA} | ({"spec": SPECS[kind]} if spec else {})
    return some(**parts)


def _operation(
    kind: str,
    op: str,
    manager: str,
    body: JsonObject,
    nulls: tuple[str, ...],
    managed: str,
    conditions: list[Any],
    twice: bool,
) -> Operation:
    top = {"apiVersion": "projectcalico.org/v3", "kind": kind}
    if op.endswith("status"):
        if twice and op == "status":
            conditions = [*conditions, *conditions[:1]]
        return Operation(op, manager, {**top, "metadata": {"name": "n"}, "status": {"conditions": conditions}}, managed)
    if op in ("apply", "force"):
        body = _nulls(body, nulls)
    elif twice:
        body = _with_elements_twice(body)
    metadata = {**body.get("metadata", {}), "name": "n"}
    return Operation(op, manager, {**top, **body, "metadata": metadata}, managed)


def operations(
    kind: str, *, managed: tuple[str, ...] = ("same", "none", "reset", "less")
) -> st.SearchStrategy[Operation]:
    ops = ("apply", "apply", "force", "update") + (("status", "apply-status") if kind == "Tier" else ())
    return st.builds(
        _operation,
        st.just(kind),
        st.sampled_from(ops),
        st.sampled_from(MANAGERS),
        objects(kind),
        st.one_of(
            st.just(()), st.sampled_from((("labels",), ("order", "selector"), ("types", "finalizers"), ("filters",)))
        ),
        st.sampled_from(("same", *managed)),
        CONDITIONS,
        st.booleans(),
    )


def to_send(live: JsonObject | None, operation: Operation) -> JsonObject:
    """What the client of an update puts: its object with what it read of metadata, the other half as it is."""
    if operation.applies:
        return operation.object
    if operation.kind == "status":
        assert live is not None
        return {**live, "status": operation.object["status"]}
    new = dict(operation.object)
    if live and "status" in live:
        new["status"] = live["status"]
    entries = (live or {}).get("metadata", {}).get("managedFields")
    sent = {"same": entries, "none": None, "reset": [{}], "less": (entries or [])[1:] or None}[operation.managed]
    # By the uid Kubernetes tells an object that was there before.
    metadata = {**new["metadata"], "uid": live["metadata"]["uid"]} if live else new["metadata"]
    return {**new, "metadata": {**metadata, "managedFields": sent} if sent is not None else metadata}
