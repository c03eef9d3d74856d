"""etcd's own users and roles made equal to those of `etcd_roles`, with as few calls as needed.

    have = await read(connection);  steps = plan(have, users);  await carry_out(connection, steps, done)

A plan that was cut short is completed by the next one: authentication is switched on last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aetcd.rpc import auth_pb2
from aetcd.rpc import rpc_pb2 as pb

from libs.store.api import StoreError, StoreUnavailable
from libs.store.codec import prefix_range
from libs.store.connection import Connection
from libs.trust import etcd_roles, identities

Grant = tuple[bytes, bytes, int]
"""Key, range end, type of permission: as in etcd's authpb."""
_READ, _BOTH = int(auth_pb2.Permission.READ), int(auth_pb2.Permission.READWRITE)


@dataclass(slots=True)
class State:
    """roles: name -> grants. users: name -> roles."""

    enabled: bool = False
    roles: dict[str, set[Grant]] = field(default_factory=dict)
    users: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """text: for people. method: of etcd's Auth service. Requests hold passwords and are not shown."""

    text: str
    method: str
    request: Any = field(repr=False)


async def read(connection: Connection) -> State:
    """Raises StoreAuthError when authentication is on and we are not root, StoreUnavailable."""
    state = State(enabled=await _enabled(connection))
    for name in (await connection.read(lambda at: at.auth.RoleList, pb.AuthRoleListRequest())).roles:
        role = await connection.read(lambda at: at.auth.RoleGet, pb.AuthRoleGetRequest(role=name))
        state.roles[name] = {(bytes(p.key), bytes(p.range_end), int(p.permType)) for p in role.perm}
    for name in (await connection.read(lambda at: at.auth.UserList, pb.AuthUserListRequest())).users:
        user = await connection.read(lambda at: at.auth.UserGet, pb.AuthUserGetRequest(name=name))
        state.users[name] = set(user.roles)
    return state


async def _enabled(connection: Connection) -> bool:
    try:
        return bool((await connection.read(lambda at: at.auth.AuthStatus, pb.AuthStatusRequest())).enabled)
    except StoreError as error:
        if "unknown method AuthStatus" not in str(error):
            raise
    # etcd before 3.5 tells by what it says to somebody who logs in.
    try:
        request = pb.AuthenticateRequest(name=identities.ROOT, password="")
        await connection.read(lambda at: at.auth.Authenticate, request)
    except StoreUnavailable:
        raise
    except StoreError as error:
        return "authentication is not enabled" not in str(error)
    return True


def grants(role: etcd_roles.Role) -> set[Grant]:
    reads = {(*prefix_range(prefix), _READ) for prefix in role.reads if prefix not in role.writes}
    return reads | {(*prefix_range(prefix), _BOTH) for prefix in role.writes}


def plan(have: State, users: Mapping[str, str], passwords: Mapping[str, str] | None = None) -> list[Step]:
    """users: name -> role (`etcd_roles.users`). passwords: of those that log in with one; the others are known by
    their certificate alone. A password of a user that exists is set again. Other roles and users are left alone.
    """
    passwords = passwords or {}
    steps: list[Step] = []
    for role in etcd_roles.ROLES:
        steps += _role(role, have.roles.get(role.name))
    if identities.ROOT not in have.roles:
        steps.append(Step("add role root", "RoleAdd", pb.AuthRoleAddRequest(name=identities.ROOT)))
    for name, role_name in {identities.ROOT: identities.ROOT, **users}.items():
        steps += _user(name, role_name, have.users.get(name), passwords.get(name, ""))
    if not have.enabled:
        steps.append(Step("switch authentication on", "AuthEnable", pb.AuthEnableRequest()))
    return steps


def removal(have: State) -> list[Step]:
    """Authentication off first, then our users and roles, and root's. Others stay."""
    ours = {role.name for role in etcd_roles.ROLES} | {identities.ROOT}
    steps = [Step("switch authentication off", "AuthDisable", pb.AuthDisableRequest())] if have.enabled else []
    steps += [
        Step(f"delete user {name}", "UserDelete", pb.AuthUserDeleteRequest(name=name))
        for name in sorted(have.users)
        if name in ours or name.startswith(f"{identities.NODE}:")
    ]
    steps += [
        Step(f"delete role {name}", "RoleDelete", pb.AuthRoleDeleteRequest(role=name))
        for name in sorted(have.roles)
        if name in ours
    ]
    return steps


async def carry_out(connection: Connection, steps: Iterable[Step], done: Callable[[Step], None]) -> None:
    """One after the other; `done` after each. Raises StoreError at the first that fails."""
    for step in steps:
        await connection.write(_method(step.method), step.request)
        done(step)


def _method(name: str) -> Callable[[Any], Any]:
    return lambda at: getattr(at.auth, name)


def _role(role: etcd_roles.Role, have: set[Grant] | None) -> list[Step]:
    wanted = grants(role)
    steps = []
    if have is None:
        steps.append(Step(f"add role {role.name}", "RoleAdd", pb.AuthRoleAddRequest(name=role.name)))
    ranges = {(key, end) for key, end, _ in wanted}
    for key, end, _ in sorted(have or ()):
        if (key, end) not in ranges:
            request = pb.AuthRoleRevokePermissionRequest(role=role.name, key=key, range_end=end)
            steps.append(Step(f"role {role.name}: no more {key.decode()}", "RoleRevokePermission", request))
    for key, end, kind in sorted(wanted - (have or set())):
        permission = auth_pb2.Permission(permType=kind, key=key, range_end=end)
        what = "reads" if kind == _READ else "reads and writes"
        grant = pb.AuthRoleGrantPermissionRequest(name=role.name, perm=permission)
        steps.append(Step(f"role {role.name}: {what} {key.decode()}", "RoleGrantPermission", grant))
    return steps


def _user(name: str, role: str, have: set[str] | None, password: str) -> list[Step]:
    steps = []
    if have is None:
        how = "with a password" if password else "known by certificate"
        options = auth_pb2.UserAddOptions(no_password=not password)
        request = pb.AuthUserAddRequest(name=name, password=password, options=options)
        steps.append(Step(f"add user {name}, {how}", "UserAdd", request))
    elif password:
        change = pb.AuthUserChangePasswordRequest(name=name, password=password)
        steps.append(Step(f"user {name}: set the password", "UserChangePassword", change))
    for extra in sorted((have or set()) - {role}):
        request = pb.AuthUserRevokeRoleRequest(name=name, role=extra)
        steps.append(Step(f"user {name}: no more role {extra}", "UserRevokeRole", request))
    if role not in (have or ()):
        grant = pb.AuthUserGrantRoleRequest(user=name, role=role)
        steps.append(Step(f"user {name}: role {role}", "UserGrantRole", grant))
    return steps
