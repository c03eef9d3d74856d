"""Liveness and readiness as the conjunction of named reporters, each of which may have to report regularly.

A reporter that stays silent longer than its timeout counts as neither alive nor ready: a hung loop cannot say that it
hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _State:
    timeout_s: float  # 0: never expires
    for_liveness: bool
    for_readiness: bool
    reported_at: float
    live: bool = True
    ready: bool = False
    detail: str = ""


class Reporter:
    """Handle of one part of a service. Cheap: call `report` on every turn of the loop that it watches."""

    def __init__(self, state: _State, clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock

    def report(self, *, live: bool = True, ready: bool = True, detail: str = "") -> None:
        """Replaces the last report and restarts the timeout. detail: one line that tells why, when it is not good."""
        self._state.live, self._state.ready, self._state.detail = live, ready, detail
        self._state.reported_at = self._clock()


@dataclass(frozen=True, slots=True)
class Summary:
    """Answer to a probe: `ok`, and for each reporter (name, word, detail); the word is "ok", "bad" or "timed out"."""

    ok: bool
    rows: list[tuple[str, str, str]]

    def table(self) -> str:
        """Aligned text, one line for each reporter, ending in a newline."""
        rows = [("COMPONENT", "STATE", "DETAIL"), *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        return "".join(f"{r[0]:<{widths[0]}}  {r[1]:<{widths[1]}}  {r[2]}".rstrip() + "\n" for r in rows)


class Aggregator:
    """All reporters of a process.

    timeout_overrides: reporter -> seconds that replace what the code asked for (HealthTimeoutOverrides in Felix).
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, timeout_overrides: Mapping[str, float] | None = None
    ) -> None:
        self._clock = clock
        self._overrides = dict(timeout_overrides or {})
        self._states: dict[str, _State] = {}

    def register(self, name: str, *, timeout_s: float = 0.0, liveness: bool = True, readiness: bool = True) -> Reporter:
        """A new reporter: alive and not yet ready until it speaks. Registering a name again starts it afresh.

        timeout_s: longest silence, 0 for none. liveness, readiness: which of the two it takes part in.
        """
        state = _State(timeout_s, liveness, readiness, self._clock())
        self._states[name] = state
        return Reporter(state, self._clock)

    def override_timeouts(self, timeouts: Mapping[str, float]) -> None:
        """From now on; of reporters that are not named here, what the code asked for counts again. 0: any silence."""
        self._overrides = dict(timeouts)

    def unregister(self, name: str) -> None:
        self._states.pop(name, None)

    def liveness(self) -> Summary:
        return self._summary({n: (s, s.live) for n, s in self._states.items() if s.for_liveness})

    def readiness(self) -> Summary:
        return self._summary({n: (s, s.ready) for n, s in self._states.items() if s.for_readiness})

    def _summary(self, states: Mapping[str, tuple[_State, bool]]) -> Summary:
        now = self._clock()
        rows: list[tuple[str, str, str]] = []
        for name, (state, good) in sorted(states.items()):
            silent_s = now - state.reported_at
            timeout_s = self._overrides.get(name, state.timeout_s)
            if timeout_s and silent_s > timeout_s:
                last = f" (last: {state.detail})" if state.detail else ""
                rows.append((name, "timed out", f"silent for {silent_s:.1f} s of {timeout_s:g} s{last}"))
            else:
                rows.append((name, "ok" if good else "bad", state.detail))
        return Summary(all(word == "ok" for _, word, _ in rows), rows)
