"""Label and field selectors of a request, in Kubernetes' syntax.

Labels (k8s.io/apimachinery, pkg/labels/selector.go): `a`, `!a`, `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`,
`a>1`, `a<1`, joined by commas; absent labels satisfy `!=` and `notin`. Fields (pkg/fields/selector.go): `path=value`,
`path!=value`, joined by commas, with `\\` before a comma, an equals sign or itself. This is not Calico's own selector
language (`libs.model.selector`), which policies use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from libs.model.base import Resource
from libs.model.kinds import Kind
from libs.model.problems import At
from libs.model.storage import TIER_LABEL
from libs.model.validation import checks
from services.apiserver.core.status import ApiError, bad_request

NAME, NAMESPACE, TIER = "metadata.name", "metadata.namespace", "spec.tier"

_TOKEN = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_SPECIAL = frozenset({"==", "!=", "=", "!", "(", ")", ",", "<", ">"})
_END = ""


@dataclass(frozen=True, slots=True)
class Requirement:
    """operator: `in` (also =), `notin` (also !=), `exists`, `!`, `gt`, `lt`."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "exists":
                return value is not None
            case "!":
                return value is None
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
        if value is None or not re.fullmatch(r"[-+]?[0-9]+", value):
            return False
        limit = int(self.values[0])
        return int(value) > limit if self.operator == "gt" else int(value) < limit


LabelSelector: TypeAlias = tuple[Requirement, ...]


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        self._at = 0

    def peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else _END

    def take(self) -> str:
        token = self.peek()
        self._at += 1
        return token

    def requirement(self) -> Requirement:
        if self.peek() == "!":
            self.take()
            return Requirement(self._key(), "!")
        key = self._key()
        match self.peek():
            case "" | ",":
                return Requirement(key, "exists")
            case "=" | "==" | "!=":
                operator = "notin" if self.take() == "!=" else "in"
                return Requirement(key, operator, (self._value(),))
            case "<" | ">":
                operator = "gt" if self.take() == ">" else "lt"
                value = self._value()
                if not re.fullmatch(r"[-+]?[0-9]+", value):
                    raise _unparsable(f"for 'Gt', 'Lt' operators, the value must be an integer, found '{value}'")
                return Requirement(key, operator, (value,))
            case "in" | "notin":
                return Requirement(key, self.take(), self._values())
            case other:
                raise _unparsable(f"found '{other}', expected: in, notin, =, ==, !=, gt, lt")

    def _key(self) -> str:
        token = self.take()
        if token == _END or token in _SPECIAL:
            raise _unparsable(f"found '{token}', expected: identifier")
        if _faulty({token: ""}):
            raise _unparsable(f'key: Invalid value: "{token}": must be a qualified name, as in app or example.com/app')
        return token

    def _value(self) -> str:
        """Nothing at all is the empty value."""
        if self.peek() in (_END, ","):
            return ""
        token = self.take()
        if token in _SPECIAL:
            raise _unparsable(f"found '{token}', expected: identifier")
        return _valid_value(token)

    def _values(self) -> tuple[str, ...]:
        if (token := self.take()) != "(":
            raise _unparsable(f"found '{token}', expected: '('")
        values: list[str] = []
        expecting = True
        while True:
            match token := self.take():
                case ",":
                    if expecting:
                        values.append("")
                    expecting = True
                case ")":
                    if expecting:
                        values.append("")
                    return tuple(dict.fromkeys(values))
                case _ if token == _END or token in _SPECIAL or not expecting:
                    raise _unparsable(f"found '{token}', expected: ',', or identifier")
                case _:
                    values.append(_valid_value(token))
                    expecting = False


def parse_labels(text: str) -> LabelSelector:
    """Raises ApiError 400."""
    parser = _Parser(text)
    found: list[Requirement] = []
    if parser.peek() == _END:
        return ()
    while True:
        found.append(parser.requirement())
        token = parser.take()
        if token == _END:
            return tuple(found)
        if token != ",":
            raise bad_request(f"found '{token}', expected: ',' or 'end of string'")
        if parser.peek() == _END or (parser.peek() in _SPECIAL and parser.peek() != "!"):
            raise bad_request(f"found '{parser.peek()}', expected: identifier after ','")


def _faulty(labels: Mapping[str, str]) -> bool:
    at = At()
    checks.label_map(at, labels)
    return bool(at.problems)


def _valid_value(token: str) -> str:
    if _faulty({"key": token}):
        raise _unparsable(f'values[0]: Invalid value: "{token}": must be a label value of at most 63 characters')
    return token


def _unparsable(message: str) -> ApiError:
    return bad_request(f"unable to parse requirement: {message}")


# --- fields ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldTerm:
    path: str
    value: str
    negated: bool = False


FieldSelector: TypeAlias = tuple[FieldTerm, ...]


def parse_fields(text: str, kind: Kind) -> FieldSelector:
    """Raises ApiError 400, also for a field that this kind cannot be selected by."""
    supported = {NAME} | ({NAMESPACE} if kind.namespaced else set()) | ({TIER} if kind.policy else set())
    found = []
    for part in re.findall(r"(?:[^\\,]|\\.|\\$)+", text):
        shape = re.fullmatch(r"([^=!]+)(==|!=|=)((?:[^\\,=]|\\[\\,=])*)", part)
        if shape is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        path = shape[1].strip()
        if path not in supported:
            raise bad_request(f"field label not supported: {path}")
        found.append(FieldTerm(path, re.sub(r"\\(.)", r"\1", shape[3]), shape[2] == "!="))
    return tuple(found)


def tier_of(resource: Resource) -> str:
    """Of a policy: its tier; "" for other kinds."""
    return str(getattr(resource.spec, "tier", "") or "default")


_READ: dict[str, Callable[[Resource], str]] = {
    NAME: lambda resource: resource.metadata.name,
    NAMESPACE: lambda resource: resource.metadata.namespace,
    TIER: tier_of,
}


# --- together --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a collection a request wants. tiers None: of all tiers."""

    labels: LabelSelector = ()
    fields: FieldSelector = ()
    namespace: str = ""
    tiers: frozenset[str] | None = None

    @property
    def selective(self) -> bool:
        """Whether selectors were given: how many objects remain cannot be told then."""
        return bool(self.labels or self.fields)

    @property
    def takes_all(self) -> bool:
        return not (self.labels or self.fields or self.namespace) and self.tiers is None

    def keep(self, resource: Resource) -> bool:
        metadata = resource.metadata
        if self.namespace and metadata.namespace != self.namespace:
            return False
        if self.tiers is not None and tier_of(resource) not in self.tiers:
            return False
        if not all((_READ[term.path](resource) == term.value) != term.negated for term in self.fields):
            return False
        return all(requirement.matches(metadata.labels) for requirement in self.labels)

    @property
    def name(self) -> str:
        """The only name that can match; "" when there may be several."""
        return next((term.value for term in self.fields if term.path == NAME and not term.negated), "")


def tiers_named(labels: LabelSelector, fields: FieldSelector) -> Sequence[str] | None:
    """Tiers that the selectors ask for by name (facts/cni-typha-node-bgp-ctl.md section 6.3): by label before field;
    None when they name none.
    """
    for requirement in labels:
        if requirement.key == TIER_LABEL and requirement.operator == "in":
            return requirement.values
    for term in fields:
        if term.path == TIER and not term.negated:
            return (term.value,)
    return None
