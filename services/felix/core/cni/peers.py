"""How long ADD waits for the nodes whose policy selects the pod to have its address. Pure.

Not of Calico, which has no such wait. `peers_setup_timeout_seconds` of the network configuration holds for all pods of
the network, the annotation for one pod. Zero, the default, waits for none.
"""

from __future__ import annotations

from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.pod import PodFacts
from services.felix.core.cni.request import Request

ANNOTATION = "cni.projectcalico.org/peersSetupTimeoutSeconds"
LONGEST_S = 60.0  # runtimes give a plugin two to four minutes


def peers_timeout_s(request: Request, facts: PodFacts) -> float:
    """Raises CniError."""
    text = facts.annotation(ANNOTATION)
    where, value = "network configuration: peers_setup_timeout_seconds", request.config.peers_setup_timeout_seconds
    if text:
        where = f"annotation {ANNOTATION}"
        try:
            value = float(text)
        except ValueError:
            raise CniError(Code.INVALID_CONFIG, f"{where}: {text!r} is not a number of seconds") from None
    if not 0 <= value <= LONGEST_S:
        raise CniError(Code.INVALID_CONFIG, f"{where}: {value:g} is not within 0 and {LONGEST_S:g} seconds")
    return value
