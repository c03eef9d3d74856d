"""Transmit checksum offload of an interface (linux/ethtool.h, ETHTOOL_GTXCSUM and ETHTOOL_STXCSUM), by ioctl."""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_GET_TX_CHECKSUM, _SET_TX_CHECKSUM = 0x16, 0x17
_IFREQ = struct.Struct("16sP16x")  # struct ifreq: name, pointer to a command's data
_VALUE = struct.Struct("=II")  # struct ethtool_value: command, data


def tx_checksum(control: socket.socket, name: str) -> bool:
    """Whether the device may leave checksums of what it sends to others. True for one that cannot tell.

    control: any socket of the device's namespace. Raises OSError, with ENODEV when there is no such device.
    """
    try:
        return bool(_call(control, name, _GET_TX_CHECKSUM, 0))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return True
        raise


def set_tx_checksum(control: socket.socket, name: str, *, on: bool) -> None:
    """Raises OSError."""
    _call(control, name, _SET_TX_CHECKSUM, int(on))


def _call(control: socket.socket, name: str, command: int, data: int) -> int:
    value = array.array("B", _VALUE.pack(command, data))
    address, _ = value.buffer_info()
    fcntl.ioctl(control, _SIOCETHTOOL, _IFREQ.pack(name.encode(), address))
    return int(_VALUE.unpack(value.tobytes())[1])
