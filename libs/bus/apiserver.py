"""What a replica of apiserver says of itself, each second, on `subjects.apiserver_beat`."""

from __future__ import annotations

import msgspec


class ApiserverBeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """rev: of etcd, up to which its cache has followed; 0 before anybody has read anything. problem: why it is not
    ready, "" when it is. started: RFC 3339.
    """

    instance: str
    started: str
    version: str
    rev: int = 0
    problem: str = ""
