"""Questions to the felix of each node, and in words why one gave no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from libs.bus import Bus, BusError, BusNoResponders, BusTimeout, wire
from libs.bus import explain as asked

T = TypeVar("T")


async def ask(bus: Bus, node: str, verb: asked.Verb, request: msgspec.Struct, reply: type[T], timeout_s: float) -> T:
    """Raises BusError, MsgspecError (of another version); `reason` has the words for both."""
    message = await bus.request(asked.subject(node, verb), wire.encode(request), timeout_s)
    answer: T = wire.decoder(reply).decode(message.data)
    return answer


def reason(error: BusError | msgspec.MsgspecError) -> str:
    if isinstance(error, msgspec.MsgspecError):
        return f"its felix is of another version: {error}"
    if isinstance(error, BusNoResponders):
        return "its felix does not run, or is of a version that cannot be asked"
    return "its felix did not answer in time" if isinstance(error, BusTimeout) else str(error)


async def gather(nodes: Sequence[str], ask_one: Callable[[str], Awaitable[T | str]]) -> tuple[list[T], dict[str, str]]:
    """All at once: the answers in order of nodes, and why others gave none: the text that `ask_one` returned, or
    what it raised as `ask` does.
    """

    async def told(node: str) -> T | str:
        try:
            return await ask_one(node)
        except (BusError, msgspec.MsgspecError) as error:
            return reason(error)

    answers = dict(zip(nodes, await asyncio.gather(*map(told, nodes)), strict=True))
    silent = {node: answer for node, answer in answers.items() if isinstance(answer, str)}
    return [answer for answer in answers.values() if not isinstance(answer, str)], silent
