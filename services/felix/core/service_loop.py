"""What is sent to a service's address that nobody serves must not go back to the router it came from, and round again.

A packet that is still on its way to such an address when it is forwarded was not taken up by a service: it is dropped
(facts/felix.md section 4.15). After all policy, in a hook of its own that exists while services have networks.
"""

from __future__ import annotations

from collections.abc import Iterable

from libs.nftables import model as nft
from libs.nftables.model import Base, Chain, Hook, Rule, Set
from services.felix.core.dispatch import ESTABLISHED
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.rules import reject
from services.felix.core.sink import Section, TableSink

SERVICES = "service-cidrs"
AFTER_POLICY = 2


class ServiceLoop:
    def __init__(self, family: Family, options: RulesetOptions) -> None:
        self._family = family
        self._action = options.loop_prevention
        self._section = Section()

    def flush(self, cidrs: Iterable[str], sink: TableSink) -> None:
        """cidrs: of both families."""
        mine = self._family.mine(cidrs)
        if not mine or self._action == "Disabled":
            self._section.write(sink, ())
            return
        match = nft.InSet((self._family.daddr,), SERVICES)
        end = nft.DROP if self._action == "Drop" else reject(self._family)
        rules = (ESTABLISHED, Rule((match, nft.COUNTER, end), "no such service: would loop"))
        chain = Chain("hook-service-loop", rules, Base(Hook.FORWARD, priority=AFTER_POLICY))
        self._section.write(sink, (chain,), (Set(SERVICES, (self._family.address,), mine, interval=True),))
