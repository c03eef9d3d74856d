"""Label selectors: text in; a tree, a canonical text, an IP set id and a fast matcher out.

The grammar (facts of the v3 API, section "Selector language"; precedence `!` over `&&` over `||`):

    selector  := or | nothing                       nothing means all()
    or        := and ("||" and)*
    and       := term ("&&" term)*
    term      := "!" term | "(" or ")" | "all()" | "global()" | "has(" label ")" | label operator
    operator  := ("==" | "!=") string | ("in" | "not in" | "notin") "{" [string ("," string)* [","]] "}"
               | ("contains" | "starts with" | "startswith" | "ends with" | "endswith") string
    label     := [A-Za-z0-9_./-]{1,512}
    string    := '"' any but '"' '"' | "'" any but "'" "'"        no escape sequences
    white space is space and tab, anywhere between tokens

Keywords are keywords only in position: `in in {'a'}` asks for a label called "in". Equal canonical texts are equal
selectors, and the id derived from the canonical text is what names the IP set on every node, so both must agree with
Calico to the byte.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NoReturn

Labels = Mapping[str, str]
Matcher = Callable[[Labels], bool]

MAX_LABEL_CHARS = 512
NAMESPACE_PREFIX = "pcns."
SERVICE_ACCOUNT_PREFIX = "pcsa."


class SelectorError(ValueError):
    """A selector that does not parse. `position` counts characters from 0 in `text`."""

    def __init__(self, message: str, text: str, position: int) -> None:
        super().__init__(f"{message} at position {position} of selector {text!r}")
        self.reason = message
        self.text = text
        self.position = position


# --- the tree ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class All:
    def __str__(self) -> str:
        return "all()"


@dataclass(frozen=True, slots=True)
class Global:
    """True like all(); only a rule's namespaceSelector gives it a meaning of its own."""

    def __str__(self) -> str:
        return "global()"


@dataclass(frozen=True, slots=True)
class Has:
    key: str

    def __str__(self) -> str:
        return f"has({self.key})"


@dataclass(frozen=True, slots=True)
class Equal:
    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} == {quote(self.value)}"


@dataclass(frozen=True, slots=True)
class NotEqual:
    """True for an absent label too."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} != {quote(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    key: str
    values: tuple[str, ...]  # sorted by code point as UTF-8, no duplicates

    def __str__(self) -> str:
        return f"{self.key} in {{{', '.join(map(quote, self.values))}}}"


@dataclass(frozen=True, slots=True)
class NotIn:
    """True for an absent label too."""

    key: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key} not in {{{', '.join(map(quote, self.values))}}}"


@dataclass(frozen=True, slots=True)
class Contains:
    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} contains {quote(self.value)}"


@dataclass(frozen=True, slots=True)
class StartsWith:
    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} starts with {quote(self.value)}"


@dataclass(frozen=True, slots=True)
class EndsWith:
    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} ends with {quote(self.value)}"


@dataclass(frozen=True, slots=True)
class Not:
    operand: Node

    def __str__(self) -> str:
        return f"!{self.operand}"


@dataclass(frozen=True, slots=True)
class And:
    operands: tuple[Node, ...]  # two or more

    def __str__(self) -> str:
        return f"({' && '.join(map(str, self.operands))})"


@dataclass(frozen=True, slots=True)
class Or:
    operands: tuple[Node, ...]  # two or more

    def __str__(self) -> str:
        return f"({' || '.join(map(str, self.operands))})"


Substring = Contains | StartsWith | EndsWith
Node = All | Global | Has | Equal | NotEqual | In | NotIn | Contains | StartsWith | EndsWith | Not | And | Or


def quote(value: str) -> str:
    """A string literal: double quotes, unless the value holds one (then it cannot hold a single quote)."""
    return f"'{value}'" if '"' in value else f'"{value}"'


@dataclass(frozen=True, slots=True)
class Restriction:
    """What every label set that matches must satisfy for one key. `values` None: any value.

    `absent` means that the key must not be there. A selector that nothing can match has `values` of ().
    """

    values: tuple[str, ...] | None = None
    absent: bool = False


class Selector:
    """A parsed selector. Immutable; compared and hashed by its canonical text.

    canonical: AND and OR always in parentheses, double quotes, set values sorted and unique.
    id: "s:" + base64url(SHA-224("s:" + canonical)), the IP set id.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self.canonical = str(root)
        self.matches: Matcher = compile_matcher(root)

    @cached_property
    def id(self) -> str:
        return unique_id("s", self.canonical)

    @cached_property
    def restrictions(self) -> Mapping[str, Restriction]:
        """Label key -> what a match requires of it. Keys that do not restrict are left out."""
        return restrictions_of(self.root)

    def prefixed(self, prefix: str) -> Selector:
        """The same selector over labels whose keys carry `prefix` (pcns. or pcsa.): how namespaces' labels are asked
        for.
        """
        return Selector(prefix_keys(self.root, prefix))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __str__(self) -> str:
        return self.canonical

    def __repr__(self) -> str:
        return f"Selector({self.canonical!r})"


def unique_id(prefix: str, content: str) -> str:
    """`prefix:` + unpadded base64url of SHA-224 over "prefix:content": the form of every IP set id."""
    digest = hashlib.sha224(f"{prefix}:{content}".encode()).digest()
    return f"{prefix}:{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


@lru_cache(maxsize=65536)
def parse(text: str) -> Selector:
    """The selector of `text`; empty or blank text means all(). Raises SelectorError."""
    try:
        return Selector(_Parser(text).parse())
    except RecursionError:
        raise SelectorError("selector is nested too deeply", text, 0) from None


def combine(*selectors: Selector) -> Selector:
    """All of them: what `(a) && (b)` parses to; one alone stays as it is."""
    if len(selectors) == 1:
        return selectors[0]
    return Selector(And(tuple(selector.root for selector in selectors)))


# --- the parser -------------------------------------------------------------------------------------------------------

_BLANK = re.compile(r"[ \t]*")
_LABEL = re.compile(r"[A-Za-z0-9_./-]+")
# An operator word ends where a label character does not follow: `a in{'x'}` is fine, `a inside` is not.
_OPERATOR = re.compile(
    r"==|!=|(?:contains|starts[ \t]*with|ends[ \t]*with|not[ \t]*in|in)(?![A-Za-z0-9_])",
)
_WORD_OPERATORS: dict[str, type[Substring]] = {"contains": Contains, "startswith": StartsWith, "endswith": EndsWith}


class _Parser:
    """Recursive descent over one text. `at` is the position of the next unread character, blanks already skipped."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._skip_blanks()

    def parse(self) -> Node:
        if self.at == len(self.text):
            return All()
        node = self._or()
        if self.at < len(self.text):
            self._fail("unexpected content at end of selector")
        return node

    def _or(self) -> Node:
        operands = [self._and()]
        while self._operator("||"):
            operands.append(self._and())
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _and(self) -> Node:
        operands = [self._term()]
        while self._operator("&&"):
            operands.append(self._term())
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _term(self) -> Node:
        """Two `!` in a row cancel each other; `!(!a)` keeps both, and its canonical text says so."""
        negated = False
        while self._take("!"):
            negated = not negated
        node = self._operand()
        return Not(node) if negated else node

    def _operand(self) -> Node:
        if self._take("("):
            node = self._or()
            if not self._take(")"):
                self._fail("expected )")
            return node
        for word, leaf in (("all", All()), ("global", Global())):
            if self._take(f"{word}("):
                if not self._take(")"):
                    self._fail(f"no closing ')' after {word}(")
                return leaf
        if self._take("has("):
            key = self._label()
            if not self._take(")"):
                self._fail("no closing ')' after has(")
            return Has(key)
        key = self._label()
        return self._comparison(key)

    def _comparison(self, key: str) -> Node:
        match = _OPERATOR.match(self.text, self.at)
        if match is None:
            self._fail(f"expected operator after label {key!r}")
        self._move(match.end())
        word = match[0].replace(" ", "").replace("\t", "")
        if word == "==":
            return Equal(key, self._string())
        if word == "!=":
            return NotEqual(key, self._string())
        if word == "in":
            return In(key, self._set())
        if word == "notin":
            return NotIn(key, self._set())
        return _WORD_OPERATORS[word](key, self._string())

    def _label(self) -> str:
        match = _LABEL.match(self.text, self.at)
        if match is None:
            self._fail("expected a label name" if self.at < len(self.text) else "unexpected end of selector")
        if match.end() - match.start() > MAX_LABEL_CHARS:
            self._fail(f"label name is longer than {MAX_LABEL_CHARS} characters")
        self._move(match.end())
        return match[0]

    def _string(self) -> str:
        mark = self.text[self.at : self.at + 1]
        if mark not in ("'", '"'):
            self._fail("expected a string in quotes")
        end = self.text.find(mark, self.at + 1)
        if end < 0:
            self._fail("unterminated string")
        value = self.text[self.at + 1 : end]
        self._move(end + 1)
        return value

    def _set(self) -> tuple[str, ...]:
        if not self._take("{"):
            self._fail("expected a set in braces")
        values: set[str] = set()
        while not self._take("}"):
            values.add(self._string())
            if not self._take(","):
                if not self._take("}"):
                    self._fail("expected , or } in set")
                break
        return tuple(sorted(values))  # code point order is also UTF-8 byte order

    def _operator(self, symbol: str) -> bool:
        if self.text.startswith(symbol, self.at):
            self._move(self.at + len(symbol))
            return True
        if self.text.startswith(symbol[0], self.at):
            self._fail(f"expected {symbol}")
        return False

    def _take(self, token: str) -> bool:
        if not self.text.startswith(token, self.at):
            return False
        self._move(self.at + len(token))
        return True

    def _move(self, at: int) -> None:
        self.at = at
        self._skip_blanks()

    def _skip_blanks(self) -> None:
        match = _BLANK.match(self.text, self.at)
        if match is not None:
            self.at = match.end()

    def _fail(self, message: str) -> NoReturn:
        raise SelectorError(message, self.text, self.at)


# --- what the tree is used for ----------------------------------------------------------------------------------------


def compile_matcher(node: Node) -> Matcher:
    """A closure per node: an order of magnitude cheaper to build than generated code, and a tenth slower to run."""
    match node:
        case All() | Global():
            return lambda labels: True
        case Has(key):
            return lambda labels: key in labels
        case Equal(key, value):
            return lambda labels: labels.get(key) == value
        case NotEqual(key, value):
            return lambda labels: labels.get(key) != value
        case In(key, values):
            wanted = frozenset(values)
            return lambda labels: labels.get(key) in wanted
        case NotIn(key, values):
            unwanted = frozenset(values)
            return lambda labels: labels.get(key) not in unwanted
        case Contains(key, value) | StartsWith(key, value) | EndsWith(key, value):
            test = text_test(node)

            def matches_text(labels: Labels) -> bool:
                have = labels.get(key)
                return have is not None and test(have)

            return matches_text
        case Not(operand):
            inner = compile_matcher(operand)
            return lambda labels: not inner(labels)
        case And(operands):
            return _all_of(tuple(map(compile_matcher, operands)))
        case Or(operands):
            return _any_of(tuple(map(compile_matcher, operands)))


def _all_of(matchers: tuple[Matcher, ...]) -> Matcher:
    if len(matchers) == 2:
        first, second = matchers
        return lambda labels: first(labels) and second(labels)
    return lambda labels: all(matcher(labels) for matcher in matchers)


def _any_of(matchers: tuple[Matcher, ...]) -> Matcher:
    if len(matchers) == 2:
        first, second = matchers
        return lambda labels: first(labels) or second(labels)
    return lambda labels: any(matcher(labels) for matcher in matchers)


def text_test(node: Substring) -> Callable[[str], bool]:
    """The test that a substring operator makes on a label's value."""
    value = node.value
    match node:
        case Contains():
            return lambda have: value in have
        case StartsWith():
            return lambda have: have.startswith(value)
        case EndsWith():
            return lambda have: have.endswith(value)


def prefix_keys(node: Node, prefix: str) -> Node:
    match node:
        case All() | Global():
            return node
        case Has(key):
            return Has(prefix + key)
        case In(key, values) | NotIn(key, values):
            return type(node)(prefix + key, values)
        case Not(operand):
            return Not(prefix_keys(operand, prefix))
        case And(operands) | Or(operands):
            return type(node)(tuple(prefix_keys(operand, prefix) for operand in operands))
        case _:
            return type(node)(prefix + node.key, node.value)


_PRESENT = Restriction()


def restrictions_of(node: Node) -> dict[str, Restriction]:
    """Necessary conditions of a match, by label key; never sufficient ones.

    An AND needs all that any operand needs; an OR needs of a key what all its operands need of it, values united.
    Negation is followed only where it says presence or absence: has() and the operators that an absent label fulfils.
    """
    match node:
        case Has(key) | Contains(key) | StartsWith(key) | EndsWith(key):
            return {key: _PRESENT}
        case Equal(key, value):
            return {key: Restriction((value,))}
        case In(key, values):
            return {key: Restriction(values)}
        case Not(Has(key)):
            return {key: Restriction(absent=True)}
        case Not(Not(operand)):
            return restrictions_of(operand)
        case Not(NotEqual(key, value)):
            return {key: Restriction((value,))}
        case Not(NotIn(key, values)):
            return {key: Restriction(values)}
        case And(operands):
            merged: dict[str, Restriction] = {}
            for operand in operands:
                for key, restriction in restrictions_of(operand).items():
                    merged[key] = _both(merged[key], restriction) if key in merged else restriction
            return merged
        case Or(operands):
            first, *others = map(restrictions_of, operands)
            for other in others:
                united = {key: _either(first[key], other[key]) for key in first.keys() & other.keys()}
                first = {key: restriction for key, restriction in united.items() if restriction is not None}
            return first
        case _:
            return {}


def _both(one: Restriction, two: Restriction) -> Restriction:
    if one.absent != two.absent:
        return Restriction(())  # present and absent at once: matches nothing
    if one.values is None or two.values is None:
        return Restriction(one.values if two.values is None else two.values, one.absent)
    return Restriction(tuple(value for value in one.values if value in two.values))


def _either(one: Restriction, two: Restriction) -> Restriction | None:
    if one.absent or two.absent:
        return one if one == two else None
    if one.values is None or two.values is None:
        return _PRESENT
    return Restriction(tuple(sorted({*one.values, *two.values})))
