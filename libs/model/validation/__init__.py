"""Is this resource acceptable, and if not, which fields are wrong and what was expected?

    decode_user(value) -> Resource            strict: unknown fields and wrong types are refused, with their paths
    validate(resource) -> list[Problem]       every rule of the v3 API that one resource alone can break
    validate_update(old, new)                 what must not change
    check(resource)                           `validate`, raised as ValidationError
    validate_typed("v3.Rule", value)          parts alone, by their name in Go

Rules that need other resources (overlapping pools, missing tiers) are in `libs.model.conflicts`. Run
`libs.model.defaults` first: absent fields are acceptable here, but the defaults may clash with what is there.
"""

from __future__ import annotations

from libs.model.base import Resource
from libs.model.pools import IPPool
from libs.model.problems import At, Problem, ValidationError
from libs.model.validation import checks
from libs.model.validation.registry import check_identity, check_resource
from libs.model.validation.strict import decode_part, decode_user
from libs.model.validation.typed import UnknownType, validate_typed


def validate(resource: Resource) -> list[Problem]:
    """Everything wrong with it, in the order of its fields; empty when it may be stored."""
    at = At()
    check_identity(at, resource)
    check_resource(at, resource)
    return at.problems


def check(resource: Resource) -> None:
    """Raises ValidationError."""
    if problems := validate(resource):
        raise ValidationError(problems)


def validate_update(old: Resource, new: Resource) -> list[Problem]:
    """What an update must leave as it is. Says nothing of `new` alone: see `validate`."""
    at = At()
    for name in ("name", "namespace", "uid", "creation_timestamp"):
        before, after = getattr(old.metadata, name), getattr(new.metadata, name)
        if after and before and before != after:
            field = "creationTimestamp" if name == "creation_timestamp" else name
            at.field("metadata", field).refuse(f"cannot change; it was {before!r}", after)
    if type(old) is not type(new):
        at.field("kind").refuse(f"cannot change; it was {old.kind}", new.kind)
    elif isinstance(old, IPPool) and isinstance(new, IPPool):
        _pool_update(at.field("spec"), old, new)
    return at.problems


def _pool_update(at: At, old: IPPool, new: IPPool) -> None:
    if checks.parse_cidr(old.spec.cidr) != checks.parse_cidr(new.spec.cidr):
        at.field("cidr").refuse(f"cannot change; it was {old.spec.cidr}", new.spec.cidr)
    if new.spec.block_size != old.spec.block_size:
        at.field("blockSize").refuse(f"cannot change; it was {old.spec.block_size}", new.spec.block_size)
    balanced = "LoadBalancer" in old.spec.allowed_uses
    if balanced and set(new.spec.allowed_uses) & {"Workload", "Tunnel"}:
        at.field("allowedUses").refuse("a LoadBalancer pool cannot become one for Workload or Tunnel")


__all__ = [
    "Problem",
    "UnknownType",
    "ValidationError",
    "check",
    "decode_part",
    "decode_user",
    "validate",
    "validate_typed",
    "validate_update",
]
