"""NATS subjects: which are well formed, and which pattern matches which (https://docs.nats.io/nats-concepts/subjects)."""

from __future__ import annotations

from functools import lru_cache

_FORBIDDEN = frozenset(" \t\r\n\0")


@lru_cache(maxsize=8192)  # most messages go to subjects seen before
def check_publish_subject(subject: str) -> None:
    """Raises ValueError unless `subject` is non-empty tokens without white space or wildcards."""
    tokens = subject.split(".")
    if not all(tokens) or "*" in tokens or ">" in tokens or not _FORBIDDEN.isdisjoint(subject):
        raise ValueError(f"{subject!r} is not a subject to publish on")


def check_subscribe_subject(pattern: str) -> None:
    """As above, but a token may be `*`, and the last one `>`."""
    tokens = pattern.split(".")
    bad = (
        not all(tokens)
        or not _FORBIDDEN.isdisjoint(pattern)
        or ">" in tokens[:-1]
        or any(("*" in token or ">" in token) and len(token) > 1 for token in tokens)
    )
    if bad:
        raise ValueError(f"{pattern!r} is not a subject to subscribe to")


def matches(pattern: str, subject: str) -> bool:
    """`*` stands for one token, a final `>` for one or more."""
    if pattern == subject:
        return True
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(w in ("*", t) for w, t in zip(wanted, tokens, strict=True))
