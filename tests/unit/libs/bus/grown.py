"""Messages as a later release of the same protocol would send them: every struct has fields that we do not know."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

STRANGE: tuple[Any, ...] = (None, 7, "text", [1, {"a": None}], {"kind": "policy", "seq": 1}, -1.5, True)


def grown(message: msgspec.Struct, random: Random) -> bytes:
    return msgspec.json.encode(_grown(message, random))


def _grown(value: Any, random: Random) -> Any:
    match value:
        case msgspec.Raw():
            return value
        case msgspec.Struct():
            config = value.__struct_config__
            told = {field.encode_name: getattr(value, field.name) for field in msgspec.structs.fields(value)}
            if config.array_like:
                more = [random.choice(STRANGE) for _ in range(random.randint(1, 3))]
                return [*(_grown(one, random) for one in told.values()), *more]
            fields = {name: _grown(one, random) for name, one in told.items()}
            if config.tag_field is not None:
                fields[config.tag_field] = config.tag
            fields |= {f"later{number}": random.choice(STRANGE) for number in range(random.randint(1, 3))}
            names = list(fields)
            random.shuffle(names)
            return {name: fields[name] for name in names}
        case dict():
            return {str(msgspec.to_builtins(key)): _grown(one, random) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_grown(one, random) for one in value]
        case _:
            return value
