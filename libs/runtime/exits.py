"""How a service ends on purpose. Apart from `service.py`, whose server and metrics a command line need not load."""

from __future__ import annotations


class ServiceExit(Exception):
    """Raised by any task to end the service on purpose, with this status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
