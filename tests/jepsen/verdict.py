"""Was what the clients were told true? Their history against what etcd stored; nothing of `libs.ipam` is used.

Ownership is judged by real time: an allocation is certainly owned from the moment its client was told of it until the
first release that may have taken it was asked for, and no address may certainly be two's. An operation
without an answer may have happened, then or a moment later.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.jepsen.audit import Audit, Life, Problem
from tests.jepsen.history import NEVER, History, Instance, Operation


@dataclass(frozen=True, slots=True)
class Owned:
    """Certain ownership in real time; `until` may lie before `since`: then never for certain."""

    instance: Instance
    operation: str
    since: int
    until: int


@dataclass(slots=True)
class Judgement:
    problems: list[Problem] = field(default_factory=list)
    expected: set[Instance] = field(default_factory=set)  # acknowledged, and nobody asked to release it
    collectable: set[Instance] = field(default_factory=set)  # stored, and nobody may know: garbage collection's
    allocations: int = 0  # acknowledged


class Judge:
    def __init__(self, history: History, audit: Audit) -> None:
        self._operations = sorted(history.operations.values(), key=lambda operation: operation.invoked)
        self._by_id = history.operations
        self._bugs = history.bugs
        self._audit = audit
        self._found = Judgement(problems=list(audit.problems))
        self._by_handle: dict[str, list[Operation]] = defaultdict(list)
        self._by_address: dict[tuple[str, int | None], list[Operation]] = defaultdict(list)  # and sequence number
        for operation in self._operations:
            if operation.kind == "release_handle":
                self._by_handle[operation.arguments["handle"]].append(operation)
            elif operation.kind == "release_ips":
                for address, _, sequence in operation.arguments["options"]:
                    self._by_address[address, sequence].append(operation)
        self._born_by: dict[str, list[Life]] = defaultdict(list)
        self._gone: Counter[tuple[str, str]] = Counter()  # allocations of an address to a handle that ended
        for life in audit.lives.values():
            self._born_by[life.pod].append(life)
            if life.died:
                self._gone[life.instance.address, life.instance.handle] += 1

    def judge(self) -> Judgement:
        for text in self._bugs:
            self._say("history", text)
        owned = self._acknowledged()
        self._found.allocations = len(owned)
        self._no_two_owners(owned)
        self._releases_release(owned)
        self._looks(owned)
        self._births()
        self._deaths()
        self._ends(owned)
        return self._found

    def _acknowledged(self) -> list[Owned]:
        """One for every allocation that a client was told of."""
        owned = []
        told: dict[Instance, str] = {}
        for operation in self._operations:
            for instance in self._gained(operation):
                if instance not in self._audit.lives and not self._passed_by(operation, instance):
                    self._say("lost", f"{operation.id} was told of {instance}, which was never stored")
                if instance in told and not operation.arguments.get("once"):
                    self._say("duplicate", f"{operation.id} and {told[instance]} were both told of {instance}")
                told.setdefault(instance, operation.id)
                end = NEVER
                for release in self._covering(instance):
                    if release.returned > operation.invoked and self._may_have_taken(release, instance):
                        end = min(end, release.invoked)
                owned.append(Owned(instance, operation.id, operation.returned, end))
        return owned

    def _passed_by(self, operation: Operation, instance: Instance) -> bool:
        """Given, and released by somebody who asked for that at the same time. In one transaction: nothing is stored of
        it. While the answer was lost: the client found nothing, and tried again.
        """
        return any(
            release.invoked < operation.returned
            and release.returned > operation.invoked
            and _may_have_freed(release, instance)
            for release in self._covering(instance)
        )

    def _gained(self, operation: Operation) -> list[Instance]:
        """As the client knows it; of a particular address the sequence number is looked up."""
        if operation.kind != "assign_ip":
            return operation.gained
        found = []
        for instance in operation.gained:
            born = [life.instance for life in self._born_by[operation.id] if life.instance.address == instance.address]
            if len(born) != 1:
                self._say("lost", f"{operation.id} was told of {instance.address}, stored were {born}")
            found += born
        return found

    def _covering(self, instance: Instance) -> Iterable[Operation]:
        address, handle, sequence = instance
        for key in ((address, sequence), (address, None)):
            for operation in self._by_address.get(key, ()):
                if operation.may_release(instance):
                    yield operation
        yield from self._by_handle.get(handle, ())

    def _may_have_taken(self, release: Operation, instance: Instance) -> bool:
        """An answer names address and handle. When the handle has had the address before, and has it now, it is the
        earlier allocation that was meant.
        """
        life = self._audit.lives.get(instance)
        had_before = self._gone[instance.address, instance.handle] > 0
        if release.outcome == "ok" and life is not None and not life.died and had_before:
            return False
        return _may_have_freed(release, instance)

    def _no_two_owners(self, owned: list[Owned]) -> None:
        by_address: dict[str, list[Owned]] = defaultdict(list)
        for one in owned:
            if one.since < one.until:
                by_address[one.instance.address].append(one)
        for address, ones in by_address.items():
            ones.sort(key=lambda one: one.since)
            last: Owned | None = None
            for one in ones:
                if last is not None and last.instance != one.instance and last.until > one.since:
                    self._say("duplicate", f"{address} was {last.instance} and {one.instance} at the same time")
                if last is None or one.until > last.until:
                    last = one

    def _releases_release(self, owned: list[Owned]) -> None:
        """What was certainly owned before, and was asked to be released, is not left behind by an answer."""
        for one in owned:
            for release in self._covering(one.instance):
                if release.outcome != "info" and one.since < release.invoked and one.until > release.returned:
                    self._say("stray", f"{release.id} {release.outcome} left {one.instance} where it was")
                alone = not any(
                    other is not release and _may_have_freed(other, one.instance)
                    for other in self._covering(one.instance)
                )
                denied = release.outcome == "ok" and one.instance.address in release.result["unallocated"]
                if denied and alone and one.since < release.invoked:
                    self._say("answer", f"{release.id} released {one.instance}, and was told that nobody had it")

    def _looks(self, owned: list[Owned]) -> None:
        """Who asks what a handle has is told of everything it certainly had all the while."""
        by_handle: dict[str, list[Owned]] = defaultdict(list)
        for one in owned:
            by_handle[one.instance.handle].append(one)
        for operation in self._operations:
            if operation.kind == "look" and operation.outcome == "ok":
                seen = {(address, sequence) for address, sequence in operation.result}
                for one in by_handle[operation.arguments["handle"]]:
                    lasted = one.since < operation.invoked and one.until > operation.returned
                    if lasted and (one.instance.address, one.instance.sequence) not in seen:
                        self._say("lost", f"{operation.id} did not see {one.instance}")

    def _births(self) -> None:
        """Nothing is stored in the name of an operation that was not told of it, unless it got no answer."""
        once: dict[str, list[Life]] = defaultdict(list)
        for life in self._audit.lives.values():
            operation = self._by_id.get(life.pod)
            if operation is None or not operation.assigns or operation.arguments["handle"] != life.instance.handle:
                self._say("stray", f"{life.instance}, revision {life.born}, is for {life.pod!r}, who never asked")
            elif operation.outcome == "fail":
                self._say("stray", f"{operation.id} was refused ({operation.result}), and got {life.instance}")
            elif (
                operation.outcome == "ok"
                and life.instance not in self._gained(operation)
                and not (life.died and self._passed_by(operation, life.instance))
            ):
                self._say("stray", f"{operation.id} got {life.instance} at revision {life.born}, and was not told")
            elif operation.arguments.get("once"):
                once[life.instance.handle].append(life)
        for handle, lives in once.items():
            for version in (".", ":"):
                end = 0
                for life in sorted((one for one in lives if version in one.instance.address), key=lambda one: one.born):
                    if life.born < end:
                        self._say("duplicate", f"{handle} got {life.instance} while it had one")
                    end = max(end, life.died or NEVER)

    def _deaths(self) -> None:
        """Nothing goes away that nobody wanted released, or whose release was refused."""
        for life in self._audit.lives.values():
            if not life.died:
                continue
            giver = self._by_id.get(life.pod)
            undone = giver is not None and giver.outcome == "info"  # cancelled, then given back for its caller
            if not undone and not any(_may_have_freed(op, life.instance) for op in self._covering(life.instance)):
                self._say("lost", f"{life.instance} of {life.pod} went at revision {life.died}, released by nobody")

    def _ends(self, owned: list[Owned]) -> None:
        """What has to be there now is there, what was certainly released is gone."""
        self._found.expected = {one.instance for one in owned if one.until == NEVER}
        living = self._audit.living
        for instance in self._found.expected - living.keys():
            self._say("lost", f"{instance} was told to a client, never released, and is not there")
        for instance, life in living.items():
            if instance in self._found.expected:
                continue
            giver = self._by_id.get(life.pod)
            unknown = giver is not None and giver.assigns and giver.outcome == "info"
            pending = any(op.outcome == "info" for op in self._covering(instance))
            if unknown or pending:
                self._found.collectable.add(instance)
            else:
                self._say("stray", f"{instance} of {life.pod} is still there though it was released")

    def _say(self, kind: str, text: str) -> None:
        self._found.problems.append(Problem(kind, text))


def _may_have_freed(release: Operation, instance: Instance) -> bool:
    if release.outcome == "info":
        return True
    if release.outcome == "fail":
        return False
    # Who is told that nobody has the address does not take himself for its owner any more.
    told = release.result
    return [instance.address, instance.handle] in told["freed"] or instance.address in told["unallocated"]


def judge(history: History, audit: Audit) -> Judgement:
    return Judge(history, audit).judge()


def at_the_end(audit: Audit, expected: set[Instance], title: str) -> list[Problem]:
    """After garbage collection, when nothing moves: exactly what clients hold is stored."""
    living = set(audit.living)
    problems = [Problem("lost", f"{title}: {instance} is not there") for instance in expected - living]
    problems += [Problem("stray", f"{title}: {instance} of nobody is there") for instance in living - expected]
    if not expected:
        problems += [Problem("block", f"{title}: block {cidr} is left") for cidr in audit.blocks]
        problems += [Problem("handle", f"{title}: handle {handle} is left") for handle in audit.handles]
        problems += [Problem("affinity", f"{title}: {owner} keeps {cidr}") for owner, cidr in audit.affinities]
    return problems
