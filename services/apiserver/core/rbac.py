"""RBAC as Kubernetes decides it, for a server that stands alone: roles and bindings in, yes or no out.

Rules of matching: k8s.io/kubernetes, pkg/apis/rbac/v1/evaluation_helpers.go. Objects come as decoded YAML documents
(`shell/rolefile.py` reads the file). Two roles are built in, under Kubernetes' names: everybody may see health and
version (`system:public-info-viewer`), who is authenticated may see what is served (`system:discovery`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from services.apiserver.core.attributes import Attributes
from services.apiserver.core.ports import Decision
from services.apiserver.core.request import User

GROUP = "rbac.authorization.k8s.io"
ALL = "*"
AUTHENTICATED, UNAUTHENTICATED = "system:authenticated", "system:unauthenticated"
ANONYMOUS = "system:anonymous"
MASTERS = "system:masters"
SERVICE_ACCOUNT = "system:serviceaccount:"


class RoleError(ValueError):
    """Role documents that cannot be used; `problems` has one line each, naming document and field."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PolicyRule of rbac.authorization.k8s.io/v1."""

    verbs: tuple[str, ...]
    apiGroups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    resourceNames: tuple[str, ...] = ()
    nonResourceURLs: tuple[str, ...] = ()

    def allows(self, asked: Attributes) -> bool:
        if ALL not in self.verbs and asked.verb not in self.verbs:
            return False
        if not asked.resource:
            return any(_url_matches(url, asked.path) for url in self.nonResourceURLs)
        return (
            (ALL in self.apiGroups or asked.group in self.apiGroups)
            and self._has_resource(asked)
            and (not self.resourceNames or asked.name in self.resourceNames)
        )

    def _has_resource(self, asked: Attributes) -> bool:
        if ALL in self.resources or asked.full_resource in self.resources:
            return True
        return bool(asked.subresource) and f"*/{asked.subresource}" in self.resources


def _url_matches(pattern: str, path: str) -> bool:
    if pattern in (ALL, path):
        return True
    return pattern.endswith(ALL) and path.startswith(pattern.rstrip(ALL))


class _Meta(msgspec.Struct):
    name: str
    namespace: str = ""
    labels: dict[str, str] | None = None


class _Subject(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    name: str
    namespace: str = ""
    apiGroup: str = ""


class _Ref(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    name: str
    apiGroup: str = GROUP


class _Expression(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] | None = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in (self.values or ())
            case "NotIn":
                return value not in (self.values or ())
            case "Exists":
                return value is not None
        return value is None


class _Selector(msgspec.Struct, forbid_unknown_fields=True):
    """LabelSelector of meta/v1; one without terms selects everything."""

    matchLabels: dict[str, str] | None = None
    matchExpressions: tuple[_Expression, ...] | None = None

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in (self.matchLabels or {}).items()) and all(
            one.matches(labels) for one in self.matchExpressions or ()
        )


class _Aggregation(msgspec.Struct, forbid_unknown_fields=True):
    clusterRoleSelectors: tuple[_Selector, ...] | None = ()


class _Role(msgspec.Struct, forbid_unknown_fields=True):
    apiVersion: str
    kind: str
    metadata: _Meta
    rules: tuple[Rule, ...] | None = ()
    aggregationRule: _Aggregation | None = None


class _Binding(msgspec.Struct, forbid_unknown_fields=True):
    apiVersion: str
    kind: str
    metadata: _Meta
    roleRef: _Ref
    subjects: tuple[_Subject, ...] | None = ()


@dataclass(frozen=True, slots=True)
class _Grant:
    """namespace "": everywhere. why: of the binding, for audit."""

    namespace: str
    rules: tuple[Rule, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Roles:
    """All that was granted, by subject. dangling: bindings whose role does not exist, which grant nothing."""

    users: dict[str, tuple[_Grant, ...]] = field(default_factory=dict)
    groups: dict[str, tuple[_Grant, ...]] = field(default_factory=dict)
    dangling: tuple[str, ...] = ()

    def decide(self, user: User, asked: Attributes) -> Decision:
        for grant in self._of(user):
            if grant.namespace and (grant.namespace != asked.namespace or not asked.resource):
                continue
            if any(rule.allows(asked) for rule in grant.rules):
                return Decision(True, grant.why)
        return Decision(False)

    def rules(self, user: User, namespace: str) -> tuple[Rule, ...]:
        """All that the user was granted in a namespace; of what is everywhere, too."""
        return tuple(rule for grant in self._of(user) if grant.namespace in ("", namespace) for rule in grant.rules)

    def _of(self, user: User) -> Iterable[_Grant]:
        yield from self.users.get(user.name, ())
        for group in user.groups:
            yield from self.groups.get(group, ())


_PUBLIC = Rule(verbs=("get",), nonResourceURLs=("/healthz", "/livez", "/readyz", "/version", "/version/"))
_DISCOVERY = Rule(
    verbs=("get",),
    nonResourceURLs=(
        *("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/healthz", "/livez", "/readyz"),
        *("/version", "/version/"),
    ),
)
_BASIC = Rule(
    verbs=("post",),
    nonResourceURLs=(
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
    ),
)
"""What a user may ask of itself (`core.reviews`): resources in Kubernetes, plain paths here."""
BUILT_IN = Roles(
    groups={
        AUTHENTICATED: (
            _Grant("", (_BASIC,), 'ClusterRoleBinding "system:basic-user"'),
            _Grant("", (_DISCOVERY,), 'ClusterRoleBinding "system:discovery"'),
            _Grant("", (_PUBLIC,), 'ClusterRoleBinding "system:public-info-viewer"'),
        ),
        UNAUTHENTICATED: (_Grant("", (_PUBLIC,), 'ClusterRoleBinding "system:public-info-viewer"'),),
    }
)


def build(documents: Iterable[Any]) -> Roles:
    """documents: of a YAML file, `kind: List` among them. Raises RoleError with all that is wrong."""
    problems: list[str] = []
    written: dict[tuple[str, str], _Role] = {}  # (namespace, "" for a ClusterRole; name)
    bindings: list[tuple[str, _Binding]] = []
    for where, document in _flat(documents):
        try:
            _take(where, document, written, bindings, problems)
        except msgspec.ValidationError as error:
            problems.append(f"{where}: {error}")
    roles = _with_aggregated(written)
    users: dict[str, list[_Grant]] = {}
    groups: dict[str, list[_Grant]] = {}
    dangling = []
    for where, binding in bindings:
        namespace = binding.metadata.namespace
        wanted = (namespace if binding.roleRef.kind == "Role" else "", binding.roleRef.name)
        label = f"{binding.kind} {binding.metadata.name!r}"
        rules = roles.get(wanted)
        if rules is None:
            dangling.append(f"{label}: there is no {binding.roleRef.kind} {binding.roleRef.name!r}")
            continue
        why = f'{binding.kind} "{binding.metadata.name}" of {binding.roleRef.kind} "{binding.roleRef.name}"'
        for number, subject in enumerate(binding.subjects or ()):
            table, name = _subject(f"{where}, subjects[{number}]", subject, namespace, problems)
            (users if table == "User" else groups).setdefault(name, []).append(_Grant(namespace, rules, why))
    if problems:
        raise RoleError(problems)
    return Roles(
        {name: tuple(grants) for name, grants in users.items()},
        _merged({name: tuple(grants) for name, grants in groups.items()}, BUILT_IN.groups),
        tuple(dangling),
    )


def _with_aggregated(written: Mapping[tuple[str, str], _Role]) -> dict[tuple[str, str], tuple[Rule, ...]]:
    """Rules of each role. One with an aggregationRule has those of the ClusterRoles that it selects by their labels, in
    the order of names, in place of its own (as Kubernetes' controller overwrites them), through any number of steps.
    """
    wide = {name: role for (namespace, name), role in sorted(written.items()) if not namespace}
    roles = {key: tuple(role.rules or ()) for key, role in written.items() if role.aggregationRule is None}

    def collected(name: str, seen: set[str]) -> Iterable[Rule]:
        if name in seen:
            return
        seen.add(name)
        rule = wide[name].aggregationRule
        if rule is None:
            yield from roles["", name]
            return
        for other, role in wide.items():
            if any(selector.matches(role.metadata.labels or {}) for selector in rule.clusterRoleSelectors or ()):
                yield from collected(other, seen)

    for name, role in wide.items():
        if role.aggregationRule is not None:
            roles["", name] = tuple(dict.fromkeys(collected(name, set())))
    return roles


def _merged(one: dict[str, tuple[_Grant, ...]], two: dict[str, tuple[_Grant, ...]]) -> dict[str, tuple[_Grant, ...]]:
    return {name: one.get(name, ()) + two.get(name, ()) for name in one.keys() | two.keys()}


def _flat(documents: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    for number, document in enumerate(documents, start=1):
        if document is None:
            continue  # nothing between two separators
        where = f"document {number}"
        if isinstance(document, dict) and str(document.get("kind", "")).endswith("List"):
            for place, item in enumerate(document.get("items") or ()):
                yield f"{where}, items[{place}]", item
        else:
            yield where, document


def _take(
    where: str,
    document: Any,
    roles: dict[tuple[str, str], _Role],
    bindings: list[tuple[str, _Binding]],
    problems: list[str],
) -> None:
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind not in ("ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding"):
        problems.append(f"{where}: kind {kind!r} is not ClusterRole, ClusterRoleBinding, Role or RoleBinding")
        return
    if document.get("apiVersion") != f"{GROUP}/v1":
        problems.append(f"{where}: apiVersion {document.get('apiVersion')!r} is not {GROUP}/v1")
        return
    wide = kind.startswith("Cluster")
    if kind.endswith("Binding"):
        binding = msgspec.convert(document, _Binding)
        label, namespace = f"{where}, {kind} {binding.metadata.name}", binding.metadata.namespace
        if binding.roleRef.kind not in (("ClusterRole",) if wide else ("ClusterRole", "Role")):
            problems.append(f"{label}: roleRef.kind {binding.roleRef.kind!r} cannot be bound here")
        bindings.append((label, binding))
    else:
        role = msgspec.convert(document, _Role)
        label, namespace = f"{where}, {kind} {role.metadata.name}", role.metadata.namespace
        if (namespace, role.metadata.name) in roles:
            problems.append(f"{label}: is there twice")
        if role.aggregationRule is not None and not wide:
            problems.append(f"{label}: aggregationRule: only a ClusterRole can have one")
        roles[namespace, role.metadata.name] = role
        for number, rule in enumerate(role.rules or ()):
            problems += [f"{label}, rules[{number}]: {text}" for text in _faults(rule, wide)]
    if wide == bool(namespace):
        problems.append(f"{label}: metadata.namespace {'does not belong here' if wide else 'is missing'}")


def _faults(rule: Rule, wide: bool) -> Iterable[str]:
    if not rule.verbs:
        yield "verbs: at least one is needed"
    if rule.nonResourceURLs:
        if not wide:
            yield "nonResourceURLs: only a ClusterRole can have them"
        if rule.apiGroups or rule.resources or rule.resourceNames:
            yield "a rule has either resources or nonResourceURLs"
        return
    if not rule.apiGroups:
        yield "apiGroups: at least one is needed"
    if not rule.resources:
        yield "resources: at least one is needed"


def _subject(where: str, subject: _Subject, namespace: str, problems: list[str]) -> tuple[str, str]:
    """("User" or "Group", name)."""
    if subject.kind == "ServiceAccount":
        home = subject.namespace or namespace
        if not home:
            problems.append(f"{where}: a ServiceAccount needs its namespace")
        return "User", f"{SERVICE_ACCOUNT}{home}:{subject.name}"
    if subject.kind not in ("User", "Group"):
        problems.append(f"{where}: kind {subject.kind!r} is not User, Group or ServiceAccount")
    return subject.kind, subject.name
