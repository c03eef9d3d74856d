"""WireGuard devices of the kernel, and what is asked of whoever makes and configures them.

`Devices` has two implementations: this one (netlink families `wireguard` and rtnetlink) and `wireguard_userspace` (a
process over TUN). tests/contract/test_wireguard_devices.py holds for both. Calls are synchronous, for a worker thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from libs.netlink.codec import NetlinkError, ObjectNotFound
from libs.netlink.generic import GenericNetlink
from libs.netlink.links import create_wireguard
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.netlink.wireguard import (
    CMD_GET_DEVICE,
    CMD_SET_DEVICE,
    GENL_NAME,
    GENL_VERSION,
    WgChange,
    WgDevice,
    decode_device,
    get_request,
    set_messages,
)


class WireguardError(Exception):
    """A device could not be made, read or changed."""


class Unsupported(WireguardError):
    """This machine cannot make such a device at all."""


class Devices(Protocol):
    """kind: of the links that it makes, as the kernel tells it. A device goes with its link."""

    @property
    def kind(self) -> str: ...

    def create(self, name: str) -> None:
        """A device that is down, without a key. Raises Unsupported, WireguardError."""
        ...

    def read(self, name: str) -> WgDevice:
        """Raises WireguardError."""
        ...

    def change(self, name: str, change: WgChange) -> None:
        """Raises WireguardError; part of it may be done then."""
        ...


class Generic(Protocol):
    """libs.netlink.generic.GenericNetlink, or a fake."""

    def request(self, command: int, attributes: bytes, what: str = "") -> None: ...

    def dump(self, command: int, attributes: bytes, what: str = "") -> list[bytes]: ...


def create_link(name: str) -> None:
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        create_wireguard(netlink, name)


class KernelDevices:
    """open_generic: called for each operation, because the family is only there while the module is loaded."""

    kind = "wireguard"

    def __init__(
        self,
        *,
        make: Callable[[str], None] = create_link,
        open_generic: Callable[[], Generic] = lambda: GenericNetlink(GENL_NAME, GENL_VERSION),
    ) -> None:
        self._make = make
        self._open = open_generic
        self._generic: Generic | None = None

    def create(self, name: str) -> None:
        try:
            self._make(name)
        except NetlinkError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise Unsupported("this kernel has no WireGuard") from error
            raise WireguardError(str(error)) from error

    def read(self, name: str) -> WgDevice:
        try:
            return decode_device(self._netlink().dump(CMD_GET_DEVICE, get_request(name), f"WireGuard device {name}"))
        except (NetlinkError, ValueError, LookupError) as error:
            raise WireguardError(f"{name} cannot be read: {error}") from error

    def change(self, name: str, change: WgChange) -> None:
        try:
            for attributes in set_messages(name, change):
                self._netlink().request(CMD_SET_DEVICE, attributes, f"WireGuard device {name}")
        except NetlinkError as error:
            raise WireguardError(str(error)) from error

    def _netlink(self) -> Generic:
        """Raises WireguardError."""
        if self._generic is None:
            try:
                self._generic = self._open()
            except ObjectNotFound as error:
                raise WireguardError("this kernel has no WireGuard") from error
        return self._generic


class FirstOf:
    """The kernel's where it has WireGuard, else the other. Which it is, is told by the link's kind afterwards."""

    def __init__(self, *choices: Devices) -> None:
        self._choices = choices
        self._of: dict[str, Devices] = {}

    def found(self, name: str, kind: str) -> bool:
        """A link that is there is of this kind. False: nobody here made it."""
        for choice in self._choices:
            if choice.kind == kind:
                self._of[name] = choice
                return True
        return False

    def create(self, name: str) -> None:
        reasons = []
        for choice in self._choices:
            try:
                choice.create(name)
            except Unsupported as error:
                reasons.append(str(error))
                continue
            self._of[name] = choice
            return
        raise Unsupported("; ".join(reasons))

    def read(self, name: str) -> WgDevice:
        return self._of[name].read(name)

    def change(self, name: str, change: WgChange) -> None:
        self._of[name].change(name, change)
