"""The process that the clients of tests/jepsen come from."""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
import time
from pathlib import Path

from tests.jepsen.zygote import Zygote

BIRTH_ALONE = len(b'{"pid": 4194304}\n')


def unread(zygote: Zygote) -> int:
    """How many bytes the zygote has written that its runner has not read."""
    assert zygote._process
    pipe = zygote._process._transport.get_pipe_transport(1).get_extra_info("pipe")
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little")


async def test_a_child_that_ended_before_the_runner_looked_has_its_status(tmp_path: Path) -> None:
    async with Zygote(tmp_path / "log") as zygote:
        pid, ended = await zygote.spawn({})  # no specification of a client: the child fails at once
        assert os.waitstatus_to_exitcode(await ended) == 1

        born = asyncio.create_task(zygote.spawn({}))
        await asyncio.sleep(0)  # it is written, and from here nobody reads before the child has ended
        deadline = time.monotonic() + 20
        while unread(zygote) <= BIRTH_ALONE:
            assert time.monotonic() < deadline
        second, ended = await asyncio.wait_for(born, 20)
        assert second != pid
        assert os.waitstatus_to_exitcode(await asyncio.wait_for(ended, 20)) == 1
