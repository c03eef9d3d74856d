"""A pretend virtual machine: a network stack of its own behind a TAP device of a node, as a hypervisor plugs it.

The machine's side is a TAP too, in a namespace; a thread carries frames between the two, as a hypervisor does.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import struct
import threading
from types import TracebackType

from libs.netlink.netns import in_netns
from libs.testkit.topology import Namespace, remove

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_FRAME_BYTES = 1 << 16


def open_tap(space: Namespace, name: str) -> int:
    """A descriptor that reads and writes Ethernet frames; the device goes when it is closed."""
    with in_netns(space.path):
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
        except OSError:
            os.close(tap)
            raise
    return tap


class VirtualMachine:
    """`space` is the machine's, with its interface `eth0`; `device` the one on the node. Both are up, nothing else."""

    def __init__(self, space: Namespace, node: Namespace, device: str) -> None:
        self.space, self.device = space, device
        space.create()
        self._taps: list[int] = []
        self._stop, self._stopped = os.pipe2(os.O_CLOEXEC)
        try:
            self._taps = [open_tap(node, device), open_tap(space, "eth0")]
        except BaseException:
            remove([space])
            raise
        self._carrier = threading.Thread(target=self._carry, name=f"vm-{device}", daemon=True)
        self._carrier.start()

    def __enter__(self) -> VirtualMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        os.close(self._stopped)
        self._carrier.join()
        for descriptor in (*self._taps, self._stop):
            os.close(descriptor)
        remove([self.space])

    def _carry(self) -> None:
        """Until the other end of `_stop` is closed. A frame that a device does not take is lost, as on a wire."""
        outside, inside = self._taps
        with selectors.DefaultSelector() as ready:
            ready.register(outside, selectors.EVENT_READ, inside)
            ready.register(inside, selectors.EVENT_READ, outside)
            ready.register(self._stop, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.data is None:
                        return
                    try:
                        os.write(key.data, os.read(key.fd, _FRAME_BYTES))
                    except OSError:
                        continue
