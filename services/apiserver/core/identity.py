"""Who asks, from what a request carries: tokens of a file, headers of a trusted proxy, impersonation. Pure.

Forms are Kubernetes': static token file (token,user,uid,"group1,group2"), request headers of the front proxy
(k8s.io/apiserver, pkg/authentication/request/headerrequest), impersonation (pkg/endpoints/filters/impersonation.go).
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from services.apiserver.core.attributes import Attributes
from services.apiserver.core.rbac import ANONYMOUS, AUTHENTICATED, SERVICE_ACCOUNT, UNAUTHENTICATED
from services.apiserver.core.request import User
from services.apiserver.core.status import bad_request

Headers = Iterable[tuple[str, str]]
NOBODY = User(ANONYMOUS, (UNAUTHENTICATED,))
_AUTHENTICATION = "authentication.k8s.io"


class TokenFileError(ValueError):
    """A token file that cannot be used. The text names lines, never tokens."""


def fingerprint(key: bytes, token: str) -> bytes:
    """What a token is known by in memory. key: random, of this process: who can time the look-up learns nothing of the
    token, and a dump of memory holds none that works elsewhere.
    """
    return hmac.digest(key, token.encode("utf-8", "surrogateescape"), hashlib.sha256)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Those of a file, by fingerprint. twice: lines that repeat an earlier token; the later wins, as in Kubernetes."""

    users: dict[bytes, User] = field(default_factory=dict, repr=False)
    twice: tuple[int, ...] = ()

    def user(self, key: bytes, token: str) -> User | None:
        return self.users.get(fingerprint(key, token))


def parse_tokens(text: str, key: bytes) -> Tokens:
    """Raises TokenFileError with all lines that are wrong."""
    users: dict[bytes, User] = {}
    problems, twice = [], []
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if len(cells) < 3:
                problems.append(
                    f"line {reader.line_num}: token, user and uid are needed, there are {len(cells)} columns"
                )
            elif not cells[0]:
                problems.append(f"line {reader.line_num}: the token is empty")
            elif not cells[1]:
                problems.append(f"line {reader.line_num}: the user is empty")
            else:
                groups = [group.strip() for group in cells[3].split(",")] if len(cells) > 3 else []
                known = fingerprint(key, cells[0])
                if known in users:
                    twice.append(reader.line_num)
                users[known] = User(cells[1], tuple(group for group in groups if group), cells[2])
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
    if problems:
        raise TokenFileError("; ".join(problems))
    return Tokens(users, tuple(twice))


def authenticated(user: User) -> User:
    """With the group of everybody who is known."""
    if AUTHENTICATED in user.groups or user.name == ANONYMOUS:
        return user
    return replace(user, groups=(*user.groups, AUTHENTICATED))


def printable(user: User) -> bool:
    """Whether names can be told to others: bytes that are no UTF-8 cannot, and control characters forge logs."""
    extras = [value for values in user.extra.values() for value in values]
    return not any(map(_odd, [user.name, user.uid, *user.groups, *user.extra, *extras]))


def _odd(text: str) -> bool:
    return any(ord(char) < 0x20 or char == "\x7f" or 0xD800 <= ord(char) < 0xE000 for char in text)


@dataclass(frozen=True, slots=True)
class HeaderNames:
    """In which headers the front proxy says who asks; the first that is there wins. allowed: common names of its
    certificate, empty for any that its authority signed.
    """

    usernames: tuple[str, ...] = ("X-Remote-User",)
    groups: tuple[str, ...] = ("X-Remote-Group",)
    extra_prefixes: tuple[str, ...] = ("X-Remote-Extra-",)
    uids: tuple[str, ...] = ("X-Remote-Uid",)
    allowed: tuple[str, ...] = ()

    def matches(self, header: str) -> bool:
        """Whether it is one of these; such a header of anybody else means nothing."""
        name = header.lower()
        exact = (*self.usernames, *self.groups, *self.uids)
        return name in map(str.lower, exact) or name.startswith(tuple(p.lower() for p in self.extra_prefixes))

    def user(self, headers: Headers) -> User | None:
        """None without a user name. Keys of extras are percent-decoded, values are taken as they are."""
        pairs = [(name.lower(), value.strip()) for name, value in headers]
        name = next(iter(_values(pairs, self.usernames)), "")
        if not name:
            return None
        extra: dict[str, tuple[str, ...]] = {}
        for prefix in map(str.lower, self.extra_prefixes):
            for header, value in pairs:
                if header.startswith(prefix):
                    found = unquote(header[len(prefix) :]).lower()
                    extra[found] = (*extra.get(found, ()), value)
        return User(name, tuple(_values(pairs, self.groups)), next(iter(_values(pairs, self.uids)), ""), extra)


def _values(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> list[str]:
    return [value for wanted in names for header, value in pairs if header == wanted.lower() and value]


_USER, _GROUP, _UID, _EXTRA = "impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-"


def impersonated(headers: Headers) -> tuple[User, list[Attributes]] | None:
    """Whom the request wants to be, and all that its sender must be allowed for that; None when it wants nothing.

    Raises ApiError 400 for groups, a uid or extras without a user.
    """
    pairs = [(name.lower(), value.strip()) for name, value in headers if name.lower().startswith("impersonate-")]
    if not pairs:
        return None
    name = next((value for header, value in pairs if header == _USER and value), "")
    groups = tuple(value for header, value in pairs if header == _GROUP and value)
    uid = next((value for header, value in pairs if header == _UID), "")
    extra: dict[str, tuple[str, ...]] = {}
    for header, value in pairs:
        if header.startswith(_EXTRA):
            key = unquote(header[len(_EXTRA) :]).lower()
            extra[key] = (*extra.get(key, ()), value)
    if not name:
        raise bad_request("requested impersonation without naming the user: Impersonate-User is missing")
    asked = [_on_user(name)]
    asked += [Attributes("impersonate", resource="groups", name=group, version="v1") for group in groups]
    for key, values in extra.items():
        asked += [_in_authentication("userextras", value, key) for value in values]
    if uid:
        asked.append(_in_authentication("uids", uid))
    implied = () if groups else _implied_groups(name)
    user = User(name, (*groups, *implied), uid, extra)
    return (user if name == ANONYMOUS else authenticated(user)), asked


def _in_authentication(resource: str, name: str, subresource: str = "") -> Attributes:
    return Attributes("impersonate", _AUTHENTICATION, "v1", resource, subresource, name=name)


def _account(name: str) -> tuple[str, str] | None:
    """(namespace, name) of a service account's user name."""
    if not name.startswith(SERVICE_ACCOUNT):
        return None
    namespace, sign, account = name.removeprefix(SERVICE_ACCOUNT).partition(":")
    return (namespace, account) if sign and namespace and account and ":" not in account else None


def _on_user(name: str) -> Attributes:
    account = _account(name)
    if account is None:
        return Attributes("impersonate", resource="users", name=name, version="v1")
    return Attributes("impersonate", resource="serviceaccounts", namespace=account[0], name=account[1], version="v1")


def _implied_groups(name: str) -> tuple[str, ...]:
    account = _account(name)
    if account is not None:
        return ("system:serviceaccounts", f"system:serviceaccounts:{account[0]}")
    return (UNAUTHENTICATED,) if name == ANONYMOUS else ()


def bearer(authorization: str) -> str | None:
    """The token of an Authorization header; None for other schemes, ApiError never."""
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
