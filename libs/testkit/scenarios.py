"""Random histories of a cluster's datastore, in the form of the recorded ones, any number of them and always the same:

    {"seed": 7, "hostname": "n1", "steps": [{"ops": [{"op": "put", "key": …, "value": …} | {"op": "del", "key": …}]}]}

`python -m libs.testkit.scenarios FIRST COUNT` prints one a line. What happens from step to step: objects come, change,
go, come back as they were before, and are spoilt; keys that never were are deleted. A spoilt value is no JSON, or JSON
of which a part means nothing: what an API refuses and a raw write lets through.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

from libs.testkit.scenario_cluster import MAKERS
from libs.testkit.scenario_objects import Json

Op = dict[str, str]
Scenario = dict[str, Any]

HOSTNAME = "n1"
_WEIGHTS = [weight for _, weight in MAKERS]
_GARBAGE = ("", "{", "[]", "null", "7", '"text"', '{"spec": 7}', '{"kind": "Tier", "metadata": [], "spec": {}}')
# Takes the place of some part of a document.
_NONSENSE: tuple[Any, ...] = (
    *("", "all(", "a = b", "!!", "10.65.0.300", "10.65.0.0/33", "10.65.0.0/255.255.0.0", "fe80::1%eth0", "::/0"),
    *("Allowed", "tcp", "-1", "70000", 70000, -1, -9, 0, 1.5, True, None, "x" * 300, "default", "ingress"),
    *(10**30, 10**400, "\u0000", "a b", "\N{SNOWMAN}"),
    *([], {}, [""], ["10.65.0.1"], {"app": "a"}),
)


def scenario(seed: int) -> Scenario:
    return _History(seed).scenario()


class _History:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = Random(seed)
        self._now: dict[str, str] = {}
        self._past: dict[str, list[str]] = {}
        # Some clusters hold only what the API would have taken.
        self._spoilt = self._random.choice((0.0, 0.0, 0.05, 0.15))

    def scenario(self) -> Scenario:
        first = [self._put() for _ in range(self._random.randint(10, 40))]
        later = [
            [self._change() for _ in range(self._random.randint(1, 12))] for _ in range(self._random.randint(1, 5))
        ]
        steps = [{"ops": ops} for ops in (first, *later)]
        return {"seed": self._seed, "hostname": HOSTNAME, "steps": steps}

    def _change(self) -> Op:
        kind = self._random.random()
        if self._now and kind < 0.3:
            return self._delete(self._random.choice(sorted(self._now)))
        if kind < 0.45:
            key = self._random.choice(sorted(self._past))
            return self._store(key, self._random.choice(self._past[key]))
        if kind < 0.48:
            key, _ = self._make()
            return self._delete(key)
        if self._now and kind < 0.65:
            return self._edit(self._random.choice(sorted(self._now)))
        return self._put()

    def _make(self) -> tuple[str, Json]:
        (maker,) = self._random.choices([maker for maker, _ in MAKERS], _WEIGHTS)
        return maker(self._random)

    def _put(self) -> Op:
        key, document = self._make()
        return self._store(key, self._text(document))

    def _edit(self, key: str) -> Op:
        """The object under a key takes over one field of another of its kind."""
        try:
            document = json.loads(self._now[key])
        except ValueError:
            return self._put()
        if not isinstance(document, dict) or not isinstance(document.get("spec"), dict):
            return self._put()
        for _ in range(20):
            other_key, other = self._make()
            if other_key.rpartition("/")[0] == key.rpartition("/")[0] and "spec" in other:
                field = self._random.choice(sorted({*document["spec"], *other["spec"]}) or ["none"])
                if field in other["spec"]:
                    document["spec"][field] = other["spec"][field]
                else:
                    document["spec"].pop(field, None)
                return self._store(key, self._text(document))
        return self._put()

    def _text(self, document: Json) -> str:
        if self._random.random() >= self._spoilt:
            return json.dumps(document)
        if self._random.random() < 0.15:
            return self._random.choice(_GARBAGE)
        spoilt = copy.deepcopy(document)
        _spoil(self._random, spoilt)
        return json.dumps(spoilt)

    def _store(self, key: str, value: str) -> Op:
        self._now[key] = value
        known = self._past.setdefault(key, [])
        if value not in known:
            known.append(value)
        return {"op": "put", "key": key, "value": value}

    def _delete(self, key: str) -> Op:
        self._now.pop(key, None)
        return {"op": "del", "key": key}


def _spoil(random: Random, document: Json) -> None:
    """Put nonsense in the place of one part, the deeper the likelier a small one; kind and name stay."""
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for at in list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, at))
            walk(part[at])

    walk({field: value for field, value in document.items() if field not in ("kind", "apiVersion")})
    inner = [(part, at) for part, at in places if at not in ("metadata", "spec", "name", "kind")]
    if inner:
        part, at = random.choice(inner)
        part[at] = copy.deepcopy(random.choice(_NONSENSE))


def main() -> None:
    first, count = int(sys.argv[1]), int(sys.argv[2])
    for line in _lines(first, count):
        print(line)


def _lines(first: int, count: int) -> Iterator[str]:
    return (json.dumps(scenario(seed)) for seed in range(first, first + count))


if __name__ == "__main__":
    main()
