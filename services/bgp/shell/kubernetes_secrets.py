"""Passwords of peers from the Kubernetes API: each secret that is named is followed, and no other is asked for.

    read(refs) ──► names ──► one informer each (fieldSelector metadata.name) ──► what read() tells the next time

The account needs list and watch for each by its name (k8s/parts/rbac.yaml grants `bgp-secrets`). What was read stays
while the API server is away. The client, which is large, is loaded when the first secret is named.

A name that is new is waited for a little: without its password a session would end, or after a restart not be waited
for, only because nobody had asked yet.
"""

from __future__ import annotations

import asyncio
import logging
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random

from msgspec import field

from libs.kube.api import KubeApi
from libs.kube.informer import Informer
from libs.kube.objects import Key, KubeObject, Source
from libs.runtime.backoff import Backoff
from services.bgp.core.settings import SecretRef
from services.bgp.shell.secrets import NotYet, as_password, wanted

log = logging.getLogger(__name__)

ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
NAMESPACE = "kube-system"
"""Where we are no pod: Calico's own, before its operator."""
FIRST_ANSWER_S = 5.0
"""So long `read` waits for what it had not been asked for before."""
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")  # a DNS subdomain


class Secret(KubeObject):
    """data: base64 by key."""

    data: dict[str, str] = field(default_factory=dict)


SECRETS = Source("Secret", "secrets", Secret)


def own_namespace(given: str, account: Path = ACCOUNT_NAMESPACE) -> str:
    """given: by the settings, "" for that of our pod."""
    if given:
        return given
    with suppress(OSError):
        return account.read_text().strip() or NAMESPACE
    return NAMESPACE


class KubernetesSecrets:
    """credentials: a kubeconfig, or IN_CLUSTER."""

    def __init__(self, credentials: Path, namespace: str, random: Random) -> None:
        self._credentials = credentials
        self._namespace = namespace
        self._random = random
        self._wanted: frozenset[str] = frozenset()
        self._informers: dict[str, Informer[Secret]] = {}
        self._problems: dict[str, str] = {}
        self._unopened = ""
        self._changed = asyncio.Event()
        self._news = asyncio.Event()

    async def read(self, refs: Iterable[SecretRef]) -> Mapping[SecretRef, bytes | str]:
        refs = list(refs)
        names = frozenset(ref.name for ref in refs if _NAME.fullmatch(ref.name))
        if names != self._wanted:
            fresh, self._wanted = names - self._wanted, names
            self._changed.set()
            await self._answers(fresh)
        return {ref: self._one(ref) for ref in refs}

    async def _answers(self, names: frozenset[str]) -> None:
        """Until the server has answered for each, or why it does not is known; not longer than `FIRST_ANSWER_S`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER_S):
                while not all(map(self._answered, names)):
                    self._news.clear()
                    await self._news.wait()

    def _answered(self, name: str) -> bool:
        informer = self._informers.get(name)
        return bool(self._unopened or self._problems.get(name) or (informer is not None and informer.in_sync))

    def _one(self, ref: SecretRef) -> bytes | str:
        told = wanted(ref)
        if not _NAME.fullmatch(ref.name):
            return f"{told}: not a name"
        informer = self._informers.get(ref.name)
        if informer is None or not informer.in_sync:
            why = self._problems.get(ref.name) or self._unopened or "Kubernetes was not heard yet"
            text = f"{told} in namespace {self._namespace}: {why}"
            return text if informer is not None and informer.forbidden else NotYet(text)
        key = Key(self._namespace, ref.name)
        if key in informer.unreadable:
            return f"{told}: {informer.unreadable[key]}"
        secret = informer.objects.get(key)
        encoded = None if secret is None else secret.data.get(ref.key)
        if encoded is None:
            return f"{told} is missing in namespace {self._namespace}"
        try:
            return as_password(ref, b64decode(encoded, validate=True))
        except ValueError:  # binascii.Error is one; what is not ASCII is another
            return f"{told} is no base64"

    async def run(self) -> None:
        """For ever: follows what was asked for last."""
        await self._changed.wait()
        async with await self._open() as api, asyncio.TaskGroup() as tasks:
            running: dict[str, asyncio.Task[None]] = {}
            while True:
                self._changed.clear()
                for name in running.keys() - self._wanted:
                    running.pop(name).cancel()
                    del self._informers[name]
                    self._problems.pop(name, None)
                for name in self._wanted - running.keys():
                    self._informers[name] = informer = self._informer(api, name)
                    running[name] = tasks.create_task(informer.run(), name=f"secret {name}")
                await self._changed.wait()

    async def _open(self) -> KubeApi:
        backoff = Backoff(self._random, first_s=0.5, cap_s=30.0)
        while True:
            try:
                api = await KubeApi.open(self._credentials)
            except ValueError as error:
                self._unopened, pause_s = str(error), backoff.next_s()
                self._news.set()
                log.warning("secrets cannot be read, trying again", extra={"error": str(error), "retry_s": pause_s})
                await asyncio.sleep(pause_s)
            else:
                self._unopened = ""
                return api

    def _informer(self, api: KubeApi, name: str) -> Informer[Secret]:
        def report(problem: str) -> None:
            self._problems[name] = problem
            self._news.set()

        return Informer(
            api, f"/api/v1/namespaces/{self._namespace}/secrets", SECRETS.decode, lambda keys: None, self._random,
            query={"fieldSelector": f"metadata.name={name}"}, report=report,
        )  # fmt: skip
