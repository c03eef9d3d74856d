"""How long to stay idle after an error: DampPeerOscillations of RFC 4271 section 8.1.1, with Calico's times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Patience:
    """least_s, doubled with each error that follows within forget_s, up to most_s."""

    least_s: float
    most_s: float
    forget_s: float
    _wait_s: float = 0
    _error_at: float | None = None

    def error(self, now: float) -> float:
        """Seconds to wait for after this one."""
        recent = self._error_at is not None and now - self._error_at <= self.forget_s
        self._wait_s = min(self.most_s, self._wait_s * 2) if recent else self.least_s
        self._error_at = now
        return self._wait_s

    def forget(self) -> None:
        self._error_at = None
