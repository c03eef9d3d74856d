"""InterfaceExclude: interfaces of this host whose addresses and MTU count for nothing. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class InterfaceExclude:
    """names: whole ones. patterns: regular expressions, which may match anywhere in a name, as in Calico."""

    names: frozenset[str] = frozenset({"kube-ipvs0"})
    patterns: tuple[str, ...] = ()

    def excludes(self, name: str) -> bool:
        return name in self.names or any(one.search(name) for one in self._compiled)

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern) for pattern in self.patterns)


NOTHING = InterfaceExclude(frozenset())


def parse(text: str) -> InterfaceExclude:
    """text: "kube-ipvs0,/^docker/"; a comma parts always, also within slashes. Raises ValueError."""
    names, patterns = [], []
    for one in (part.strip() for part in text.split(",")):
        if len(one) > 2 and one.startswith("/") and one.endswith("/"):
            try:
                re.compile(one[1:-1])
            except re.error as error:
                raise ValueError(f"{one!r} is no regular expression: {error}") from None
            patterns.append(one[1:-1])
        elif re.fullmatch(r"[a-zA-Z0-9:._+-]{1,15}", one):
            names.append(one)
        else:
            raise ValueError(f"{one!r} is neither a name of an interface nor a regular expression between slashes")
    return InterfaceExclude(frozenset(names), tuple(patterns))
