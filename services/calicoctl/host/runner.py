"""Commands of this host, each with a deadline; what cannot be run or takes too long says so in its place."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Sequence

DEADLINE_S = 20.0
LIMIT_BYTES = 64 * 1024 * 1024


async def output(command: Sequence[str], *, deadline_s: float = DEADLINE_S, stdin: bytes = b"") -> tuple[int, bytes]:
    """(exit status, both outputs). A missing tool, an overdue one and one that floods end with 127, 124 and 141 and a
    line that tells it.
    """
    if shutil.which(command[0]) is None:
        return 127, f"{command[0]}: not installed here\n".encode()
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    text = bytearray()
    try:
        async with asyncio.timeout(deadline_s):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(stdin)
                process.stdin.close()
            while chunk := await process.stdout.read(1 << 16):
                text += chunk
                if len(text) > LIMIT_BYTES:
                    return 141, bytes(text) + b"\n... cut off\n"
            return await process.wait(), bytes(text)
    except TimeoutError:
        return 124, bytes(text) + f"\n{command[0]}: not done after {deadline_s:g} s\n".encode()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
