"""The last good input, as bytes for the disk: a speaker starts from it when neither typha nor NATS can be reached.

One JSON object; secrets are named in it, never held. A file of another version or node is refused: starting with
nothing is better than with another node's sessions.
"""

from __future__ import annotations

import msgspec

from services.bgp.core.tables import Tables

VERSION = 1


class SavedError(ValueError):
    """The saved input cannot be used."""


class _Head(msgspec.Struct):
    version: int = 0
    node: str = ""


class _Saved(msgspec.Struct, kw_only=True):
    version: int
    node: str
    rev: int
    tables: Tables


_decoder = msgspec.json.Decoder(_Saved)


def encode(node: str, rev: int, tables: Tables) -> bytes:
    """rev: etcd's revision that the tables reflect."""
    return msgspec.json.encode(_Saved(version=VERSION, node=node, rev=rev, tables=tables))


def decode(node: str, data: bytes) -> tuple[int, Tables]:
    """Revision and tables. Raises SavedError."""
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.version != VERSION:
            raise SavedError(f"is of version {head.version}, not {VERSION}")
        if head.node != node:
            raise SavedError(f"is of node {head.node!r}, not {node!r}")
        saved = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise SavedError(f"cannot be read: {error}") from error
    return saved.rev, saved.tables
