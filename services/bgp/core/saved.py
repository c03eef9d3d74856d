"""The last good input, as bytes for the disk: a speaker starts from it when neither typha nor NATS can be reached.

One JSON object; secrets are named in it, never held. A file of another version or node is refused: starting with
nothing is better than with another node's sessions. It names the cluster, too, by etcd's cluster id; which one we are
in only typha can tell.
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


class Saved(msgspec.Struct, kw_only=True):
    """rev: etcd's revision that the tables reflect. cluster: etcd's cluster id; 0: not known, as in older files."""

    version: int = VERSION
    node: str
    rev: int
    cluster: int = 0
    tables: Tables


_decoder = msgspec.json.Decoder(Saved)


def encode(saved: Saved) -> bytes:
    return msgspec.json.encode(saved)


def decode(node: str, data: bytes) -> Saved:
    """Raises SavedError."""
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.version != VERSION:
            raise SavedError(f"is of version {head.version}, not {VERSION}")
        if head.node != node:
            raise SavedError(f"is of node {head.node!r}, not {node!r}")
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise SavedError(f"cannot be read: {error}") from error
