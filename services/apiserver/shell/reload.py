"""Files that are read again when they change, without a restart; a bad one keeps the last good one and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from libs.runtime.files import signature

log = logging.getLogger(__name__)


class Followed:
    """load: reads the files and takes them; what it raises on the first time is the caller's (OSError, ValueError; an
    ssl.SSLError is an OSError), later it is logged and what was loaded before stays.
    """

    def __init__(self, what: str, paths: Sequence[Path], load: Callable[[], None]) -> None:
        self.what, self._paths, self._load = what, tuple(paths), load
        self._seen = signature(self._paths)  # before reading: a change in between is seen at the next look
        self.trouble = ""
        load()

    def look(self) -> bool:
        """True when something new was taken."""
        now = signature(self._paths)
        if now == self._seen:
            return False
        self._seen = now
        try:
            self._load()
        except (OSError, ValueError) as error:
            self.trouble = str(error)
            log.error(
                "file not taken, the last good one stays",
                extra={"what": self.what, "paths": self._paths_text, "error": self.trouble},
            )
            return False
        self.trouble = ""
        log.info("file taken", extra={"what": self.what, "paths": self._paths_text})
        return True

    @property
    def _paths_text(self) -> str:
        return ", ".join(map(str, self._paths))


async def follow(files: Sequence[Followed], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        for file in files:
            file.look()
