"""What `calicoctl tap np pods bgp` means: kinds of messages as people call them, and filters, as subjects of the bus.

A resource's kind, by any of its names, is every change of such resources (`event` of typha; each typha tells them all,
so each change is shown once). The other words are in `WORDS`. Filters are put into the subjects where a subject has the
place for them, so that the server does the work; the rest is looked at here.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import msgspec

from libs.bus.api import Msg
from libs.bus.subject_match import check_subscribe_subject
from libs.bus.tokens import decode_token, encode_token
from libs.model import kinds

REMEMBERED = 10_000  # changes already shown
PODS = "WorkloadEndpoint"


class TapProblem(Exception):
    """A word or filter that means nothing here; says what to write instead."""


@dataclass(frozen=True, slots=True)
class Word:
    """patterns: subjects with {node} where a node's token stands. by: what it can be filtered by."""

    help: str
    patterns: tuple[str, ...]
    by: frozenset[str] = frozenset()


_NODE = frozenset({"node"})
WORDS = {
    "events": Word("every change of a resource", ("calico.typha.*.event.>",)),
    "endpoints": Word(
        "endpoints that come up, go down, fail", ("calico.felix.{node}.status.>",),
        frozenset({"node", "namespace", "name"}),
    ),
    "applied": Word("revisions that nodes have applied, failures", ("calico.*.{node}.applied",), _NODE),
    "bgp": Word("speakers: sessions, learned routes", ("calico.bgp.{node}.>",), _NODE),
    "felix": Word("all that nodes' felixes say", ("calico.felix.{node}.>",), _NODE),
    "flows": Word("flow records", ("calico.flow.{node}",), _NODE),
    "typha": Word("all that typhas say", ("calico.typha.>",)),
    "beats": Word("typhas' beats", ("calico.typha.*.beat",)),
    "commits": Word("what nodes are told", ("calico.typha.*.node.{node}", "calico.typha.*.bgp.{node}"), _NODE),
    "rules": Word("rules of policies", ("calico.typha.*.policy.>",)),
    "sets": Word("members of IP sets", ("calico.typha.*.ipset.>",)),
    "routes": Word("blocks, nodes and pools", ("calico.typha.*.route.>",)),
    "config": Word("configuration", ("calico.typha.*.config.>",)),
    "rpc": Word("questions to services", ("calico.*.{node}.rpc.>",), _NODE),
    "apiserver": Word("all that API servers say", ("calico.apiserver.>",)),
}  # fmt: skip


@dataclass(slots=True)
class Choice:
    """subjects: to subscribe to. `accept` tells which of the messages are meant."""

    subjects: tuple[str, ...]
    namespace: str = ""
    name: str = ""
    node: str = ""
    _shown: OrderedDict[tuple[int, str], None] = field(default_factory=OrderedDict)

    def accept(self, message: Msg) -> bool:
        parts = message.subject.split(".")
        if parts[1:2] == ["typha"] and parts[3:4] == ["event"] and len(parts) == 7:
            return self._event(message, *map(_decoded, parts[4:7]))
        if parts[1:2] == ["felix"] and parts[3:4] == ["status"] and (self.namespace or self.name):
            return self._endpoint(_decoded(".".join(parts[4:])))
        return True

    def _event(self, message: Msg, kind: str, namespace: str, name: str) -> bool:
        if kind == PODS:
            if self.name and name != self.name and _pod(name) != self.name:
                return False
            if self.node and not name.startswith(f"{_dashes(self.node)}-"):
                return False
        elif (kind == "Node" and self.node and name != self.node) or (self.name and name != self.name):
            return False
        if self.namespace and namespace != self.namespace:
            return False
        try:
            told = msgspec.json.decode(message.data, type=_Told)
        except msgspec.MsgspecError:
            return True
        change = told.rev, told.key
        if change in self._shown:
            return False
        self._shown[change] = None
        if len(self._shown) > REMEMBERED:
            self._shown.popitem(last=False)
        return True

    def _endpoint(self, endpoint: str) -> bool:
        """`k8s/ns1/web/eth0`, or the name of a host endpoint."""
        parts = endpoint.split("/")
        namespace, name = (parts[1], parts[2]) if len(parts) == 4 else ("", endpoint)
        return self.namespace in ("", namespace) and self.name in ("", name)


class _Told(msgspec.Struct):
    rev: int = 0
    key: str = ""


def choose(words: Sequence[str], *, namespace: str = "", name: str = "", node: str = "") -> Choice:
    """words: kinds, or subjects as NATS writes them, which have a dot. Raises TapProblem."""
    filters = {filter_: value for filter_, value in (("namespace", namespace), ("name", name), ("node", node)) if value}
    found: list[str] = []
    for word in words:
        if "." in word or word in (">", "*"):
            if filters:
                raise TapProblem(f"--{next(iter(filters))}: {word!r} is a subject, which filters do not fit")
            try:
                check_subscribe_subject(word)
            except ValueError as problem:
                raise TapProblem(str(problem)) from None
            found.append(word)
        else:
            found += _patterns(word, filters)
    if not words and filters:
        raise TapProblem(f"--{next(iter(filters))}: of which kinds? Give some, such as pods or np")
    return Choice(tuple(dict.fromkeys(found)), namespace, name, node)


def _patterns(word: str, filters: dict[str, str]) -> list[str]:
    chosen = WORDS.get(word.lower())
    if chosen is not None:
        if extra := [one for one in filters if one not in chosen.by]:
            fits = ", ".join(f"--{one}" for one in sorted(chosen.by)) or "no filter"
            raise TapProblem(f"--{extra[0]} does not fit {word}, which takes {fits}")
        node = encode_token(filters["node"]) if "node" in filters else "*"
        return [pattern.format(node=node) for pattern in chosen.patterns]
    kind = PODS if word.lower() in ("pod", "pods", "po") else getattr(kinds.lookup(word), "kind", "")
    if not kind:
        known = sorted({*WORDS, "pods", *kinds.names()})
        near = get_close_matches(word.lower(), known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f": give a resource's kind or {', '.join(WORDS)}"
        raise TapProblem(f"no kind of message is called {word!r}{hint}")
    namespaced = kinds.kind(kind).namespaced
    if "namespace" in filters and not namespaced:
        raise TapProblem(f"--namespace does not fit {kind}, which has none")
    if "node" in filters and kind not in (PODS, "Node"):
        raise TapProblem(f"--node does not fit {kind}, which is of the whole cluster")
    namespace = encode_token(filters.get("namespace", "")) if "namespace" in filters or not namespaced else "*"
    exact = "name" in filters and kind != PODS
    return [f"calico.typha.*.event.{kind}.{namespace}.{encode_token(filters['name']) if exact else '*'}"]


def _dashes(text: str) -> str:
    """As in the names of workload endpoints, whose parts are separated by single dashes."""
    return text.replace("-", "--")


def _pod(endpoint: str) -> str:
    """The pod of `node1-k8s-web--1-eth0`; "" for others."""
    match = re.fullmatch(r"(?:[^-]|--)+-k8s-((?:[^-]|--)+)-(?:[^-]|--)+", endpoint)
    return match[1].replace("--", "-") if match else ""


def _decoded(token: str) -> str:
    try:
        return decode_token(token)
    except ValueError:
        return token
