"""Any name as one token of a NATS subject, and back.

`.` separates tokens, `*` and `>` are wildcards, white space ends a subject: those, control characters and `%` itself
are written `%XX`. The empty name (no namespace) is `_`, so the name `_` is written `%5F`.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(r"[\x00-\x20.*>%\x7f]")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")


def encode_token(name: str) -> str:
    if name in ("", "_"):
        return "%5F" if name else "_"
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", name)


def decode_token(token: str) -> str:
    """Inverse of `encode_token`. Raises ValueError for what it cannot have made: separators, wildcards, a broken
    escape.
    """
    if token == "_":
        return ""
    if not token or any(_UNSAFE.match(char) for char in token if char != "%"):
        raise ValueError(f"{token!r} is not one token of a subject")
    return _ESCAPE.sub(_unescape, token)


def _unescape(match: re.Match[str]) -> str:
    if match[1] is None:
        raise ValueError(f"{match.string!r} has a % without two hexadecimal digits")
    return chr(int(match[1], 16))
