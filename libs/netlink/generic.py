"""Generic netlink (linux/genetlink.h): a family is found by its name, then spoken to by the number that it has here."""

from __future__ import annotations

import struct
from pathlib import Path

from libs.netlink.codec import ObjectNotFound, attrs, text
from libs.netlink.socket import NetlinkSocket

NETLINK_GENERIC = 16
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2
GENL_HEADER = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved


def generic_body(command: int, version: int, attributes: bytes) -> bytes:
    return GENL_HEADER.pack(command, version, 0) + attributes


class GenericNetlink:
    """One family, in the namespace where this was made. Calls are synchronous; see socket.py."""

    def __init__(self, family: str, version: int, netns: int | str | Path | None = None) -> None:
        """Raises ObjectNotFound when the kernel has no such family."""
        self._socket = NetlinkSocket(NETLINK_GENERIC, netns)
        self._version = version
        self._family = family
        try:
            self._id = self._resolve()
        except BaseException:
            self._socket.close()
            raise

    def _resolve(self) -> int:
        body = generic_body(CTRL_CMD_GETFAMILY, 1, text(CTRL_ATTR_FAMILY_NAME, self._family))
        for _, reply in self._socket.request(GENL_ID_CTRL, 0, body, f"netlink family {self._family}"):
            found = attrs(reply, GENL_HEADER.size)
            if CTRL_ATTR_FAMILY_ID in found:
                return int(struct.unpack_from("=H", found[CTRL_ATTR_FAMILY_ID])[0])
        raise ObjectNotFound(2, f"netlink family {self._family}")

    def request(self, command: int, attributes: bytes, what: str = "") -> None:
        """Raises NetlinkError."""
        self._socket.request(self._id, 0, generic_body(command, self._version, attributes), what)

    def dump(self, command: int, attributes: bytes, what: str = "") -> list[bytes]:
        """Attributes of each message of a listing. Raises NetlinkError."""
        body = generic_body(command, self._version, attributes)
        return [reply[GENL_HEADER.size :] for _, reply in self._socket.dump(self._id, body, what)]

    def close(self) -> None:
        self._socket.close()
