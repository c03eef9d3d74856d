"""What a controller is: something that brings one part of the datastore to what other parts of it ask for.

A controller is level-triggered. It keeps nothing that a restart would have to bring back: a round looks at everything,
writes what differs, and may be repeated, cut short and started anew elsewhere at any time. Whoever runs it
(`shell/runner.py`) calls a round after changes of the kinds that it reads, one at a time, again after a failure, and
only while we are leader and the controller is switched on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from libs.kube.objects import Source
from services.kube_controllers.core.settings import Running


@dataclass(frozen=True, slots=True)
class Round:
    """What came of a round. detail: one line for the health page. failures: what could not be done, by object; the
    round is then tried again. again_s: after so long another round is due although nothing changed; None: never.
    """

    detail: str = ""
    writes: Mapping[str, int] = field(default_factory=dict)  # "create", "update", "delete" -> how many
    failures: Mapping[str, str] = field(default_factory=dict)
    again_s: float | None = None


class Controller(Protocol):
    @property
    def name(self) -> str:
        """In logs, metrics and health."""
        ...

    @property
    def reads(self) -> frozenset[str]:
        """Kinds of which a change calls for a round. A change of the settings does so as well."""
        ...

    def wanted(self, settings: Running) -> bool:
        """Does it run under these settings?"""
        ...

    async def round(self, settings: Running) -> Round:
        """Raises FenceLost when we are not leader any more; of what else it raises, StoreError and ResourceError are
        failures of the round, anything other ends the service.
        """
        ...


@runtime_checkable
class Observer(Protocol):
    """A controller that reads Kubernetes' objects besides."""

    @property
    def sources(self) -> tuple[Source[Any], ...]:
        """Kinds of which a change calls for a round, too. No round is made before all of them are in sync; without
        access to a Kubernetes API the controller does not run.
        """
        ...
