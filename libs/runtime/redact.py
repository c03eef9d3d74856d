"""Secrets that do not print, and the filter that keeps them out of logs even when someone formats one by mistake."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"
# Shorter values would blank out ordinary words ("calico", "node"); they are still masked where they are a Secret.
_SHORTEST_HIDDEN: Final = 8
_hidden: set[str] = set()

# scheme://user:password@host and scheme://token@host, as NATS and etcd URLs carry credentials.
_URL_CREDENTIALS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s\"']+@")
_SECRET_KEY = re.compile(r"passw(or)?d|secret|private_?key|authorization|credential|bearer|(^|_)token$", re.IGNORECASE)


class Secret:
    """A value that prints as ***. Only `reveal()` gives it away, so a search for that word finds every use."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        hide(value)

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return f"Secret({MASK!r})" if self._value else "Secret('')"

    def __str__(self) -> str:
        return MASK if self._value else ""

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled: pickles end up in files and on the wire")


def hide(value: str) -> None:
    """From now on `redact` masks this text wherever it appears (values of fewer than 8 characters are left alone)."""
    if len(value) >= _SHORTEST_HIDDEN:
        _hidden.add(value)


def redact(text: str) -> str:
    """The text with known secrets and the credentials of URLs masked."""
    if "://" in text:
        text = _URL_CREDENTIALS.sub(rf"\1{MASK}@", text)
    for value in _hidden:
        if value in text:
            text = text.replace(value, MASK)
    return text


def is_secret_name(name: str) -> bool:
    """Whether a log field or configuration key of this name is masked whatever its value."""
    return _SECRET_KEY.search(name) is not None
