"""The installer that stays: what is removed or changed is put back, and the plugin always has a token that is good.

Files are looked at (one stat(2) each, a dozen of them) every second; an installation is made when anything looks
different from what the last one left. inotify would tell sooner, at the price of a dependency, of a watch for each
directory that may not exist yet, and of its silence on overlay and network file systems.
"""

from __future__ import annotations

import asyncio
import logging
import time
from random import Random

from libs.runtime.backoff import Backoff
from libs.runtime.files import Signature, signature
from libs.runtime.service import Service
from services.cni.config import InstallConfig
from services.cni.install import inputs, install, outputs
from services.cni.network import InstallError
from services.cni.token import MIN_WAIT_S, Token, TokenError, request_token, wait_s

log = logging.getLogger(__name__)


class Keeper:
    def __init__(self, config: InstallConfig, service: Service, random: Random) -> None:
        self._config = config
        self._random = random
        self._token: Token | None = None
        self._right: tuple[Signature, Token | None] | None = None  # how all looks when nothing is to be done
        self._backoff = Backoff(random, first_s=config.watch_interval_s, cap_s=30.0)
        self._changed = asyncio.Event()
        self._files = service.health.register("Files")
        self._tokens = service.health.register("Token") if config.in_cluster else None

    async def keep_files(self) -> None:
        """For ever."""
        while True:
            self._changed.clear()
            pause_s = await self._look()
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _look(self) -> float:
        """Installs when something looks different; how long to wait then.

        The look is of before the installation: whatever is changed during it is seen in the next turn, and so is what
        it wrote itself, which makes that turn find nothing to do.
        """
        config, token = self._config, self._token
        if config.in_cluster and token is None and not config.kubeconfig.exists():
            self._files.report(ready=False, detail="waiting for the plugin's first token")
            return config.watch_interval_s
        seen = signature([*inputs(config), *outputs(config)]), token
        if self._right == seen:
            return config.watch_interval_s
        try:
            # In a thread: a disk may be slow, and the plugin may have to be compiled.
            written = await asyncio.to_thread(install, config, token.text if token else "")
        except InstallError as error:
            pause_s = self._backoff.next_s()
            self._right = None
            self._files.report(ready=False, detail=str(error))
            log.error("not installed, trying again", extra={"error": str(error), "retry_s": round(pause_s, 2)})
            return pause_s
        self._backoff.reset()
        self._right = seen
        self._files.report(detail=f"{len(written)} written" if written else "as they should be")
        if written:
            log.info("installed", extra={"files": [str(path) for path in written]})
        return config.watch_interval_s

    async def keep_token(self) -> None:
        """For ever. A new one is also asked for when our own token was rotated."""
        if self._tokens is None:
            return
        while True:
            own = signature([self._config.account_dir / "token"])
            try:
                self._token = await request_token(self._config)
            except TokenError as error:
                left_s = self._token.expires_at - time.time() if self._token else 0.0
                self._tokens.report(ready=left_s > 0, detail=str(error))
                log.error("no new token, trying again", extra={"error": str(error), "token_left_s": round(left_s)})
                await self._rotated(own, MIN_WAIT_S)
                continue
            pause_s = wait_s(self._token.expires_at, time.time(), self._random, self._config.token_refresh_s)
            self._tokens.report(detail=f"next in {pause_s:.0f} s")
            log.info("token given", extra={"account": self._config.plugin_account, "next_s": round(pause_s)})
            self._changed.set()
            await self._rotated(own, pause_s)

    async def _rotated(self, own: Signature, at_most_s: float) -> None:
        """Until our own token is another one, or the time is up."""
        path, until = self._config.account_dir / "token", time.monotonic() + at_most_s
        while (left_s := until - time.monotonic()) > 0 and signature([path]) == own:  # noqa: ASYNC110  # see the module
            await asyncio.sleep(min(self._config.watch_interval_s, left_s))


async def run(config: InstallConfig, service: Service) -> None:
    keeper = Keeper(config, service, Random())
    service.spawn(keeper.keep_files(), name="files")
    service.spawn(keeper.keep_token(), name="token")
    service.ready()
    await service.stop.wait()
