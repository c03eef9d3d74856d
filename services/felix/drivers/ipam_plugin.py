"""Runs other plugins that give addresses, such as host-local (CNI specification 1.1.0, section 4, delegation)."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from services.felix.core.cni.errors import CniError, Code
from services.felix.core.journal import Delegation

log = logging.getLogger(__name__)

LIMIT_S = 60.0  # a lease from DHCP takes its time; the runtime's own patience is not much longer
_KEEP = ("PATH", "HOME", "LANG")  # of this process; everything else is the runtime's


class IpamPlugins:
    """One process for each call, found by CNI_PATH as the runtime gave it."""

    def find(self, delegation: Delegation) -> Path:
        """The program. Raises CniError."""
        return _find(delegation.plugin, dict(delegation.environment).get("CNI_PATH", ""))

    async def run(self, command: str, delegation: Delegation) -> dict[str, Any] | None:
        """What the plugin prints; None where it prints nothing. Raises CniError: the plugin's own, or what kept it
        from answering.
        """
        environment = dict(delegation.environment) | {"CNI_COMMAND": command}
        program = self.find(delegation)
        environment |= {name: os.environ[name] for name in _KEEP if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"IPAM plugin {program} cannot be run: {error}") from error
        try:
            async with asyncio.timeout(LIMIT_S):
                output, noise = await process.communicate(delegation.config.encode())
        except TimeoutError:
            text = f"IPAM plugin {delegation.plugin} did not answer {command} within {LIMIT_S:g} s"
            raise CniError(Code.TRY_AGAIN, text) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if noise:
            said = noise.decode(errors="replace").strip()
            log.info("IPAM plugin", extra={"plugin": delegation.plugin, "command": command, "stderr": said[-2000:]})
        return _answer(delegation.plugin, command, process.returncode or 0, output)


def _find(plugin: str, path: str) -> Path:
    """path: directories as in CNI_PATH. Raises CniError."""
    for directory in filter(None, path.split(":")):
        program = Path(directory) / plugin
        if program.is_file() and os.access(program, os.X_OK):
            return program
    text = f"ipam.type {plugin}: there is no such program in CNI_PATH ({path or 'which is empty'})"
    raise CniError(Code.INVALID_CONFIG, text)


def _answer(plugin: str, command: str, status: int, output: bytes) -> dict[str, Any] | None:
    try:
        answer = msgspec.json.decode(output) if output.strip() else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = f"IPAM plugin {plugin}: its answer to {command} is not JSON"
        raise CniError(Code.CANNOT_DECODE, text, f"{error}: {output[:200]!r}") from error
    if status:
        said = answer if isinstance(answer, dict) else {}
        code, message = said.get("code"), said.get("msg") or f"exit status {status} without a word"
        known = code if isinstance(code, int) and code > 0 else Code.INTERNAL
        raise CniError(known, f"IPAM plugin {plugin}: {message}", str(said.get("details") or ""))
    if answer is not None and not isinstance(answer, dict):
        raise CniError(Code.CANNOT_DECODE, f"IPAM plugin {plugin}: its answer to {command} is no JSON object")
    return answer
