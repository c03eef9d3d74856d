"""Errors that a container runtime understands (CNI specification 1.1.0, "Well-known Error Codes"). Pure."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from services.felix.core.cni.versions import FALLBACK


class Code(IntEnum):
    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    CANNOT_DECODE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50  # STATUS: cannot serve ADD
    LIMITED = 51  # STATUS: nor have the containers there are all of their connectivity
    # Above 99 is ours.
    INTERNAL = 100
    CHECK_FAILED = 101
    NO_ADDRESS = 102


class CniError(Exception):
    """Becomes the error object that the runtime shows its user."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details
        self.version = ""  # that of the request, where it is known before the request is

    def object(self, version: str) -> dict[str, Any]:
        version = version or self.version or FALLBACK
        made: dict[str, Any] = {"cniVersion": version, "code": int(self.code), "msg": str(self)}
        return made | ({"details": self.details} if self.details else {})
