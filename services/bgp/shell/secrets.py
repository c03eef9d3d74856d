"""Passwords of peers: looked up by reference, never sent over the bus, never logged, never saved.

A directory holds them as Kubernetes mounts secrets: `<directory>/<name>/<key>`, or `<directory>/<key>` for a volume of
one secret; without one they come from the Kubernetes API (`kubernetes_secrets`). What is missing or cannot be read is a
reason to hold a session down, not to open it without a password.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from services.bgp.core.settings import SecretRef

LONGEST = 4096  # octets of a file that is read; a password has 80 at most


class NotYet(str):
    """Why there is no password so far, where nobody has said that there is none: it may come any moment."""

    __slots__ = ()


class Secrets(Protocol):
    async def read(self, refs: Iterable[SecretRef]) -> Mapping[SecretRef, bytes | str]:
        """For each reference the password, or as text why there is none; `NotYet` while that is not known."""
        ...


def wanted(ref: SecretRef) -> str:
    return f"key {ref.key!r} of secret {ref.name!r}"


def as_password(ref: SecretRef, found: bytes) -> bytes | str:
    """Without the end of the line that editors and `echo` leave."""
    return found.rstrip(b"\r\n") or f"{wanted(ref)} is empty"


class SecretDirectory:
    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    async def read(self, refs: Iterable[SecretRef]) -> Mapping[SecretRef, bytes | str]:
        return await asyncio.to_thread(lambda: {ref: self._one(ref) for ref in refs})

    def _one(self, ref: SecretRef) -> bytes | str:
        told = wanted(ref)
        if self._directory is None:
            return f"{told}: no directory of secrets is configured (CALICO_BGP_SECRETS_DIR), and no Kubernetes API"
        if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in (ref.name, ref.key)):
            return f"{told}: not a name"
        for path in (self._directory / ref.name / ref.key, self._directory / ref.key):
            try:
                with path.open("rb") as file:
                    found = file.read(LONGEST)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                return f"{told}: {error.strerror}"
            return as_password(ref, found)
        return f"{told} is missing"
