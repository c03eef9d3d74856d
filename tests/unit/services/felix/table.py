"""A nftables table in memory that refuses what the kernel would refuse, and the small clusters that the tests
compile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libs.nftables import model as nft
from libs.nftables.model import Chain, Map, Ruleset, Set, Table, Verdict
from libs.policy.output import PolicyKey, Tier, Workload, WorkloadKey
from services.felix.core.ruleset import RulesetBuilder


class MemoryTable:
    """Desired state as RulesetBuilder writes it. Counts the calls, to show what a change costs."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Set] = {}
        self.maps: dict[str, Map] = {}
        self.calls: list[str] = []

    def set_chain(self, chain: Chain) -> None:
        self.calls.append(f"set chain {chain.name}")
        self.chains[chain.name] = chain

    def del_chain(self, name: str) -> None:
        self.calls.append(f"del chain {name}")
        self.chains.pop(name, None)

    def put_set(self, definition: Set) -> None:
        self.calls.append(f"put set {definition.name}")
        assert len(definition.name) <= 31
        self.sets[definition.name] = definition

    def del_set(self, name: str) -> None:
        self.calls.append(f"del set {name}")
        del self.sets[name]

    def add_elements(self, name: str, texts: Iterable[str]) -> None:
        value, more = self.sets[name], set(texts)
        self.calls.append(f"add {len(more)} to {name}")
        assert not more & value.elements, "added twice"
        self.sets[name] = Set(value.name, value.key, value.elements | more, value.interval)

    def remove_elements(self, name: str, texts: Iterable[str]) -> None:
        value, less = self.sets[name], set(texts)
        self.calls.append(f"remove {len(less)} from {name}")
        assert less <= value.elements, "removed what is not there"
        self.sets[name] = Set(value.name, value.key, value.elements - less, value.interval)

    def put_map(self, definition: Map) -> None:
        self.calls.append(f"put map {definition.name}")
        self.maps[definition.name] = definition

    def del_map(self, name: str) -> None:
        self.calls.append(f"del map {name}")
        del self.maps[name]

    def put_verdicts(self, name: str, elements: Mapping[str, Verdict]) -> None:
        value = self.maps[name]
        self.calls.append(f"put {len(elements)} into {name}")
        self.maps[name] = Map(value.name, value.key, value.elements | dict(elements), value.interval)

    def remove_verdicts(self, name: str, texts: Iterable[str]) -> None:
        value, less = self.maps[name], set(texts)
        self.calls.append(f"remove {len(less)} from {name}")
        assert less <= value.elements.keys()
        left = {key: verdict for key, verdict in value.elements.items() if key not in less}
        self.maps[name] = Map(value.name, value.key, left, value.interval)

    def ruleset(self) -> Ruleset:
        """What it holds, sorted by name, checked: every jump, look-up and map element leads to something that
        exists."""
        for chain in self.chains.values():
            for rule in chain.rules:
                assert all(target in self.chains for target in rule.chains()), (chain.name, rule)
                assert all(name in self.sets or name in self.maps for name in rule.sets()), (chain.name, rule)
        for value in self.maps.values():
            assert all(v.chain in self.chains for v in value.elements.values()), value
        return Ruleset(
            self.table,
            tuple(self.chains[name] for name in sorted(self.chains)),
            tuple(self.sets[name] for name in sorted(self.sets)),
            tuple(self.maps[name] for name in sorted(self.maps)),
        )


class Node:
    """A builder with its two tables."""

    def __init__(self, builder: RulesetBuilder | None = None) -> None:
        self.builder = builder or RulesetBuilder()
        self.v4, self.v6 = (MemoryTable(table) for table in RulesetBuilder.tables())

    def flush(self) -> list[str]:
        """Applies what is pending; returns the calls that the IPv4 table saw."""
        self.v4.calls.clear()
        self.v6.calls.clear()
        self.builder.apply_to(self.v4, self.v6)
        return list(self.v4.calls)

    def chain(self, name: str, version: int = 4) -> list[str]:
        """The rules of a chain, in short (see `show`)."""
        table = self.v4 if version == 4 else self.v6
        return [show(rule) for rule in table.chains[name].rules]


def show(rule: nft.Rule) -> str:
    """A rule without counters and comment, close to how nft writes it."""
    return " ".join(_show(expr) for expr in rule.exprs if not isinstance(expr, nft.Counter))


def _show(expr: nft.Expr) -> str:
    match expr:
        case nft.Match(field, value, negate):
            return f"{field} {'!= ' if negate else ''}{value}"
        case nft.InSet(fields, name, negate):
            return f"{' . '.join(fields)} {'!= ' if negate else ''}@{name}"
        case nft.Vmap(fields, name):
            return f"{' . '.join(fields)} vmap @{name}"
        case nft.Verdict():
            return str(expr)
        case nft.Log(prefix):
            return f'log "{prefix}"'
        case nft.SetMark(keep, xor):
            return f"mark & 0x{keep:x} ^ 0x{xor:x}"
        case nft.Bits(field, mask, value, negate):
            return f"{field} & 0x{mask:x} {'!=' if negate else '=='} 0x{value:x}"
        case _:
            return type(expr).__name__.lower()


def np(name: str, namespace: str = "ns1") -> PolicyKey:
    return PolicyKey("NetworkPolicy", name, namespace)


def gnp(name: str) -> PolicyKey:
    return PolicyKey("GlobalNetworkPolicy", name)


def wl(name: str) -> WorkloadKey:
    return WorkloadKey("k8s", f"ns1/{name}", "eth0")


def workload(
    name: str, address: str, *tiers: Tier, profiles: tuple[str, ...] = ("kns.ns1",), state: str = "active"
) -> Workload:
    return Workload(
        name=f"cali{name}",
        state=state,
        profiles=profiles,
        nets4=(f"{address}/32",),
        nets6=(f"fd00::{address.rpartition('.')[2]}/128",),
        tiers=tiers,
    )
