"""Contents of streams into the node's state, noting what really changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from libs.bus import compat, subjects, wire
from libs.bus.compat import NotUnderstood
from libs.feed.delta import Delta, MutableSet, NodeState
from libs.policy.output import IPSet, Policy, PolicyKey, Profile

V = TypeVar("V")
PROFILE_PREFIX = "pro/"


def followed(stream: str) -> bool:
    """Is this a stream of a family that this release knows?"""
    return stream.partition(".")[0] in compat.FAMILIES


def understood(stream: str, raw: msgspec.Raw) -> wire.Content:
    """raw: an encoded wire.Content of a stream that is `followed`. Raises NotUnderstood: nothing may be applied of what
    holds it, since it may be what forbids something.
    """
    family, _, ident = stream.partition(".")
    try:
        content = wire.decode_content(raw)
        if family == "policy" and not ident.startswith(PROFILE_PREFIX):
            PolicyKey.parse(ident)
            expected: type[wire.Content] = wire.PolicyContent
        elif family == "policy":
            expected = wire.ProfileContent
        else:
            expected = wire.SetContent if family == "ipset" else wire.TableContent
    except (msgspec.DecodeError, KeyError) as error:
        raise NotUnderstood(f"stream {stream} is not understood: {error}") from error
    if not isinstance(content, expected):
        raise NotUnderstood(f"stream {stream} is not understood: it holds {type(content).__name__}")
    return content


def apply_content(state: NodeState, stream: str, content: wire.Content, delta: Delta) -> None:
    """Replace what `stream` stands for."""
    family, _, ident = stream.partition(".")
    match content:
        case wire.PolicyContent():
            _put_policy(state, PolicyKey.parse(ident), content.policy, delta)
        case wire.ProfileContent():
            _put_profile(state, ident.removeprefix(PROFILE_PREFIX), content.profile, delta)
        case wire.SetContent():
            _replace_set(state, ident, content, delta)
        case wire.TableContent():
            _replace_table(state.blocks, wire.blocks_of(content.blocks), delta.blocks, owned=stream == "route.blocks")
            _replace_table(state.nodes, content.nodes, delta.nodes, owned=stream == "route.nodes")
            _replace_table(state.pools, content.pools, delta.pools, owned=stream == "route.pools")
            config = {key: raw.copy() for key, raw in content.config.items()}  # not views that keep a whole snapshot
            _replace_table(state.config, config, delta.config, owned=stream == subjects.CONFIG_STREAM)
            _replace_table(state.bgp, content.bgp, delta.bgp, owned=stream == subjects.BGP_STREAM)
            _replace_table(state.services, content.services, delta.services, owned=stream == subjects.SERVICE_STREAM)
            _replace_table(state.local, content.local, delta.local, owned=family == "local")


def apply_message(state: NodeState, stream: str, message: wire.StreamMessage, delta: Delta) -> None:
    """Apply one message of a stream on top of what it stands for."""
    ident = stream.partition(".")[2]
    match message:
        case wire.PolicyMsg(policy=policy, profile=profile):
            if policy is not None:
                _put_policy(state, PolicyKey.parse(ident), policy, delta)
            if profile is not None:
                _put_profile(state, ident.removeprefix(PROFILE_PREFIX), profile, delta)
        case wire.SetMsg(added=added, removed=removed):
            held = state.sets[ident]
            new = set(added) - held.members
            gone = set(removed) & held.members
            held.members |= new
            held.members -= gone
            if ident in delta.sets:
                delta.sets[ident] = IPSet(held.type, frozenset(held.members))
            elif new or gone:
                delta.change_set(ident, new, gone)
        case wire.TableMsg():
            _merge_table(state.blocks, wire.blocks_of(message.blocks), delta.blocks)
            _merge_table(state.nodes, message.nodes, delta.nodes)
            _merge_table(state.pools, message.pools, delta.pools)
            config = {key: None if raw == wire.NULL else raw.copy() for key, raw in message.config.items()}
            _merge_table(state.config, config, delta.config)
            _merge_table(state.bgp, message.bgp, delta.bgp)
            _merge_table(state.services, message.services, delta.services)
            _merge_table(state.local, message.local, delta.local)


def remove_stream(state: NodeState, stream: str, delta: Delta) -> None:
    """The node has no use for this stream any more."""
    family, _, ident = stream.partition(".")
    if family == "ipset":
        if state.sets.pop(ident, None) is not None:
            delta.sets[ident] = None
            delta.set_changes.pop(ident, None)
    elif family == "policy" and ident.startswith(PROFILE_PREFIX):
        name = ident.removeprefix(PROFILE_PREFIX)
        if state.profiles.pop(name, None) is not None:
            delta.profiles[name] = None
    elif family == "policy":
        key = PolicyKey.parse(ident)
        if state.policies.pop(key, None) is not None:
            delta.policies[key] = None


def _put_policy(state: NodeState, key: PolicyKey, policy: Policy, delta: Delta) -> None:
    if state.policies.get(key) != policy:
        state.policies[key] = delta.policies[key] = policy


def _put_profile(state: NodeState, name: str, profile: Profile, delta: Delta) -> None:
    if state.profiles.get(name) != profile:
        state.profiles[name] = delta.profiles[name] = profile


def _replace_set(state: NodeState, ident: str, content: wire.SetContent, delta: Delta) -> None:
    members = set(content.members)
    held = state.sets.get(ident)
    if held is None or held.type != content.type:
        state.sets[ident] = MutableSet(content.type, members)
        delta.sets[ident] = IPSet(content.type, frozenset(members))
        delta.set_changes.pop(ident, None)
        return
    new, gone = members - held.members, held.members - members
    held.members = members
    if ident in delta.sets:
        delta.sets[ident] = IPSet(content.type, frozenset(members))
    elif new or gone:
        delta.change_set(ident, new, gone)


def _replace_table(
    held: dict[str, V], content: Mapping[str, V | None] | Mapping[str, V], delta: dict[str, V | None], *, owned: bool
) -> None:
    if not owned:
        return
    for key in [key for key in held if key not in content]:
        del held[key]
        delta[key] = None
    _merge_table(held, content, delta)


def _merge_table(
    held: dict[str, V], changes: Mapping[str, V | None] | Mapping[str, V], delta: dict[str, V | None]
) -> None:
    for key, value in changes.items():
        if value is None:
            if held.pop(key, None) is not None:
                delta[key] = None
        elif held.get(key) != value:
            held[key] = value
            delta[key] = value
