"""The message bus as the rest of the project sees it: core NATS's promises and none of its client's surprises.

Two implementations pass one contract suite (tests/contract/test_bus.py): `nats.NatsBus` and `memory.MemoryBus`.

What is promised: messages of one publisher on one subject arrive in order, at most once. What is not: that they arrive.
A reader that must not miss anything numbers its messages and fetches a snapshot when it sees a gap, and whenever a hook
below fires.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

log = logging.getLogger(__name__)

INBOXES = "_INBOX."


class BusError(Exception):
    """Anything that keeps a message from being delivered or answered."""


class BusUnavailable(BusError):
    """No connection to any server, or the outbound buffer is full because there was none for too long."""


class BusTimeout(BusError):
    """Somebody listens but did not answer in time. Whether the request was acted upon is unknown."""


class BusNoResponders(BusError):
    """Nobody subscribes to the subject of a request."""


class BusPayloadTooLarge(BusError):
    """The server does not take messages of this size (1 MiB unless configured): send chunks."""


class Msg:
    """One message as a subscriber gets it. `reply` is empty unless an answer is wanted; `headers` is empty when none
    were sent.
    """

    __slots__ = ("_publish", "data", "headers", "reply", "subject")

    def __init__(self, subject: str, data: bytes, reply: str, headers: Mapping[str, str], publish: Publish) -> None:
        self.subject = subject
        self.data = data
        self.reply = reply
        self.headers = headers
        self._publish = publish

    def respond(self, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer a request. Raises ValueError when none was asked for. An answer is wanted in an inbox: who asks for it
        elsewhere would have us write, with our rights, where it may not write itself; that is left unanswered.
        """
        if not self.reply:
            raise ValueError(f"message on {self.subject} wants no answer")
        if not self.reply.startswith(INBOXES):
            log.warning("request not answered: its reply is no inbox", extra={"subject": self.subject})
            return
        self._publish(self.reply, data, headers)

    def __repr__(self) -> str:
        return f"Msg({self.subject!r}, {len(self.data)} bytes)"


Publish = Callable[[str, bytes, Mapping[str, str] | None], None]
Callback = Callable[[Msg], None]


class Subscription(Protocol):
    @property
    def subject(self) -> str: ...

    def unsubscribe(self) -> None:
        """No callback runs after this returns. Calling it again does nothing."""
        ...


class Bus(Protocol):
    """Not for use by several event loops or threads.

    The hooks are lists that users append to; each entry is called in order, synchronously, and must not block.
    on_disconnect(): the connection is gone; what others publish from now on is missed.
    on_reconnect(): connected again and all subscriptions stand; anything may have been missed.
    on_slow_consumer(subject): messages on that subject were dropped because this process did not keep up.
    """

    on_disconnect: list[Callable[[], None]]
    on_reconnect: list[Callable[[], None]]
    on_slow_consumer: list[Callable[[str], None]]

    @property
    def connected(self) -> bool: ...

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload the server takes, headers included."""
        ...

    def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Hand over and return at once; while disconnected messages wait in a bounded buffer.

        Raises BusUnavailable when that buffer is full, BusPayloadTooLarge, ValueError for a malformed subject.
        """
        ...

    def subscribe(self, subject: str, callback: Callback, queue: str | None = None) -> Subscription:
        """`callback` runs in the event loop for each message, in order, and must not block; what it raises goes to the
        loop's exception handler. With `queue`, one member of that group gets each message. Stands at the server after
        `barrier`, and again after every reconnect.
        """
        ...

    async def request(
        self, subject: str, data: bytes, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """The first answer. Raises BusNoResponders at once, BusTimeout, or BusUnavailable when there is no connection
        or it is lost while waiting.
        """
        ...

    async def barrier(self, timeout_s: float = 10.0) -> None:
        """Returns when everything published and subscribed so far has been processed by the server; else
        BusUnavailable.
        """
        ...

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...
