"""Fields that no struct of the model has: found and taken out, for who is told to bear them.

`libs.model.validation.strict` refuses them; a Kubernetes API server warns of them, or drops them without a word
(`fieldValidation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import inspect

from libs.model.base import Resource
from libs.model.kinds import Kind
from libs.model.validation.strict import OUTER_FIELDS, type_of


def without_unknown(value: Mapping[str, Any], kind: Kind) -> tuple[dict[str, Any], list[str]]:
    """A copy that has known fields alone, and the paths of the others: `spec.ingress[0].sorce`. Values of a wrong type
    stay as they are.
    """
    unknown: list[str] = []
    kept: dict[str, Any] = _kept(value, type_of(kind.struct), "", unknown)
    return kept, unknown


def _kept(value: Any, wanted: inspect.Type, path: str, unknown: list[str]) -> Any:
    match wanted:
        case inspect.StructType() if isinstance(value, Mapping):
            known = {field.encode_name: field.type for field in wanted.fields}
            outer = OUTER_FIELDS if issubclass(wanted.cls, Resource) else ()
            result = {}
            for name, member in value.items():
                here = f"{path}.{name}" if path else str(name)
                if name in known:
                    result[name] = _kept(member, known[name], here, unknown)
                elif name in outer:
                    result[name] = member
                else:
                    unknown.append(here)
            return result
        case inspect.ListType() if isinstance(value, list):
            return [_kept(item, wanted.item_type, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
        case inspect.DictType() if isinstance(value, Mapping):
            return {name: _kept(member, wanted.value_type, f"{path}.{name}", unknown) for name, member in value.items()}
        case inspect.UnionType():
            options = [option for option in wanted.types if not isinstance(option, inspect.NoneType)]
            return _kept(value, options[0], path, unknown) if len(options) == 1 else value
    return value
