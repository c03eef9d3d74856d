"""Takes secrets out of text that leaves the host: private keys, passwords, tokens, credentials in URLs.

Names of secrets stay (a BGP password's Secret is named in a BGPPeer), values go. It is text that is looked at, not its
meaning, since it works on files and outputs of any kind; what looks like a secret is taken out even where it is none.
"""

from __future__ import annotations

import re

from libs.runtime.redact import MASK, redact

_NAME = (
    r"[\w.\-]*(?:passw(?:or)?d|passphrase|(?<![a-z])secret(?!name|keyref|ref|s\b)|private[ _-]?key|preshared[ _-]?key"
    r"|client-key-data|authorization|credential|bearer|api[_-]?key|(?:^|[^a-z])etcd_?key(?!_?file)"
    r"|token(?!_?file|_?type|_?ttl|s\b))[\w\-]*"
)
_PEM = re.compile(
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----).*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL
)  # fmt: skip
_JWT = re.compile(r"\beyJ[\w\-]{5,}\.eyJ[\w\-]{5,}\.[\w\-]*")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w\-.=+/]{6,}")
_ASSIGNED = re.compile(
    rf"""(?ix)
    (?P<name> (?<![\w.\-]) ["']? {_NAME} ["']? )
    (?P<sign> [ \t]* [:=] [ \t]* )
    (?P<value> "(?:[^"\\]|\\.)*" | '[^']*' | [^\s,;}}\]"'{{\[|>][^\s,;}}\]]* )
    """
)
_ARGUMENT = re.compile(rf"(?i)(--{_NAME})(\s+)(\S+)")
_BLOCK = re.compile(
    rf"(?im)^(?P<indent>[ \t]*)(?P<name>{_NAME}[ \t]*:[ \t]*[|>][+\-0-9]*[ \t]*)\n"
    r"(?P<body>(?:(?P=indent)[ \t]+.*\n?|[ \t]*\n)+)"
)
"""A YAML block scalar: its lines stand deeper than its name."""
_FLAGS = re.compile(r"(?i)^(?:true|false|null|none|yes|no|\"\"|''|\(hidden\)|\(none\)|\*+)$")


def scrub(text: str) -> str:
    text = _PEM.sub(rf"\1\n{MASK}\n\2", text)
    text = _BLOCK.sub(lambda found: f"{found['indent']}{found['name']}\n{found['indent']}  {MASK}\n", text)
    text = _JWT.sub(MASK, text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    text = _ARGUMENT.sub(rf"\1\2{MASK}", text)
    text = _ASSIGNED.sub(_masked, text)
    return redact(text)


def _masked(found: re.Match[str]) -> str:
    value = found["value"]
    if _FLAGS.match(value) or value.startswith(("secretKeyRef", "***")):
        return found[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{found['name']}{found['sign']}{quote}{MASK}{quote}"


def scrub_bytes(data: bytes) -> bytes:
    """Of text in UTF-8 as far as it is; other bytes are kept."""
    return scrub(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
