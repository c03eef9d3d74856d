"""kubectl as users run it, with a kubeconfig and a cache of its own, and a deadline."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from libs.netlink.netns import in_netns
from libs.testkit.kube.programs import program
from libs.testkit.pki import KeyPair


class KubectlError(RuntimeError):
    """kubectl ended with another status than 0; `done` has all it said."""

    def __init__(self, done: Done) -> None:
        super().__init__(f"kubectl {' '.join(done.arguments)}: status {done.status}\n{done.err}{done.out[:2000]}")
        self.done = done


@dataclass(frozen=True, slots=True)
class Done:
    """What one run said."""

    arguments: Sequence[str]
    status: int
    out: str
    err: str


def write_kubeconfig(
    path: Path, *, server: str, ca: Path, client: KeyPair | None = None, token: str = "", namespace: str = "default"
) -> Path:
    """A kubeconfig with all certificates inside; the caller proves itself by certificate, by token, or not at all."""
    user: dict[str, str] = {}
    if client is not None:
        user = {"client-certificate-data": _base64(client.cert), "client-key-data": _base64(client.key)}
    if token:
        user = {"token": token}
    cluster = {"server": server, "certificate-authority-data": _base64(ca)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content))
    return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


class Kubectl:
    """kubectl for one kubeconfig. directory: where its discovery cache lives; nothing is written to the home. netns:
    path of the network namespace to run in.
    """

    def __init__(
        self, kubeconfig: Path, directory: Path, *, netns: Path | None = None, timeout_s: float = 60.0
    ) -> None:
        self.program = program("kubectl")
        self.kubeconfig = kubeconfig
        self._cache = directory / f"{kubeconfig.stem}-cache"
        self._netns = netns
        self._timeout_s = timeout_s

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self._cache}", *arguments]

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Without what a developer's own settings would change."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "KUBECTL_"))}
        return plain | {"HOME": str(self._cache), "KUBECONFIG": str(self.kubeconfig)} | dict(env or {})

    def run(
        self,
        *arguments: str,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Done:
        """Runs it to its end, whatever that is. Raises TimeoutError with what it said when it does not end."""
        try:
            with in_netns(self._netns):
                done = subprocess.run(
                    self.command(*arguments), input=stdin, capture_output=True, text=True, check=False,
                    timeout=timeout_s or self._timeout_s, env=self.environment(env),
                )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = b"\n".join(part for part in (error.stdout, error.stderr) if isinstance(part, bytes))
            raise TimeoutError(f"kubectl {' '.join(arguments)}: {said.decode(errors='replace')[-2000:]}") from error
        return Done(arguments, done.returncode, done.stdout, done.stderr)

    def __call__(
        self,
        *arguments: str,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """Standard output. Raises KubectlError on any status but 0."""
        done = self.run(*arguments, stdin=stdin, env=env, timeout_s=timeout_s)
        if done.status:
            raise KubectlError(done)
        return done.out

    def json(self, *arguments: str) -> Any:
        """Output of a command that takes `-o json`."""
        return json.loads(self(*arguments, "-o", "json"))

    def apply(self, *documents: Mapping[str, Any], options: Sequence[str] = ()) -> str:
        # As JSON: a bare `y` would be read as true, by kubectl and not by PyYAML.
        return self("apply", "-f", "-", *options, stdin="\n---\n".join(map(json.dumps, documents)))

    def fails(self, *arguments: str, stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
        """Standard error of a run that must fail. Raises AssertionError when it does not."""
        done = self.run(*arguments, stdin=stdin, env=env)
        assert done.status != 0, f"kubectl {' '.join(arguments)} succeeded: {done.out}"
        return done.err

    def background(self, *arguments: str) -> Background:
        """A run that goes on, such as `get --watch`."""
        with in_netns(self._netns):
            return Background(self.command(*arguments), self.environment())


class Background:
    """A kubectl that runs beside the test; its output is read all the time. Ended with the `with` block."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=dict(env), start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name="kubectl-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def lines(self) -> list[str]:
        """Standard output and standard error so far, in order."""
        with self._news:
            return list(self._lines)

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def until(self, condition: Callable[[list[str]], object], what: str, timeout_s: float = 30.0) -> list[str]:
        """Wait until the lines so far fulfil the condition. Raises TimeoutError, or RuntimeError when kubectl ended
        before; both tell what it said.
        """
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not condition(self._lines):
                left = deadline - time.monotonic()
                said = "\n".join(self._lines[-30:])
                if not self._reader.is_alive():
                    raise RuntimeError(f"kubectl ended before {what}:\n{said}")
                if left <= 0:
                    raise TimeoutError(f"{what}: not within {timeout_s:g} s:\n{said}")
                self._news.wait(min(left, 0.5))
            return list(self._lines)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its status, once it ends by itself. Raises TimeoutError."""
        try:
            status = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"kubectl still runs after {timeout_s:g} s:\n" + "\n".join(self.lines[-30:])) from error
        self._reader.join(5)
        return status

    def stop(self) -> None:
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._reader.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
