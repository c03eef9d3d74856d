"""`calico-cni install --watch` as a real process, and a Kubernetes API over TLS (tests/unit/services/cni/api.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from libs.testkit.servers import free_port
from tests.contract.typha_stage import PROJECT, Child, eventually
from tests.unit.services.cni.api import Api, make_pki, serving, write_account

PROGRAM = b"\x7fELF plugin"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pki")
    make_pki(home)
    return home


class Host:
    """A host's directories, and installers that keep them."""

    def __init__(self, home: Path, stack: contextlib.ExitStack) -> None:
        self.home = home
        self.plugin, self.account, self.secrets = home / "plugin", home / "account", home / "secrets"
        self.bin, self.net = home / "bin", home / "net.d"
        self.conflist, self.kubeconfig = self.net / "10-calico.conflist", self.net / "calico-kubeconfig"
        self.health = free_port()
        self._stack = stack
        self.plugin.write_bytes(PROGRAM)
        self.secrets.mkdir()

    def env(self, **more: str) -> dict[str, str]:
        return {
            "CNI_BIN_DIR": str(self.bin), "CNI_NET_DIR": str(self.net), "CNI_BINARY": str(self.plugin),
            "TLS_ASSETS_DIR": str(self.secrets), "CALICO_CNI_ACCOUNT_DIR": str(self.account), "SLEEP": "true",
            "CALICO_CNI_WATCH_INTERVAL_S": "0.05", "CALICO_CNI_HEALTHHOST": "127.0.0.1",
            "CALICO_CNI_HEALTHPORT": str(self.health), "KUBERNETES_SERVICE_HOST": "", "LOG_LEVEL": "info",
        } | more  # fmt: skip

    def keeper(self, **more: str) -> Child:
        child = Child("services.cni", "install", env=self.env(**more), log=self.home / "keeper.log")
        self._stack.callback(child.kill)
        return child

    def in_cluster(self, api: Api, **more: str) -> Child:
        return self.keeper(
            KUBERNETES_SERVICE_HOST="127.0.0.1", KUBERNETES_SERVICE_PORT=str(api.port), **more,
        )  # fmt: skip

    def token(self) -> str:
        """In the kubeconfig; "" while there is none."""
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads(self.kubeconfig.read_text())["users"][0]["user"]["token"])
        return ""

    def installed(self) -> bool:
        programs = [self.bin / name for name in ("calico", "calico-ipam")]
        return self.conflist.exists() and all(p.exists() and p.read_bytes() == PROGRAM for p in programs)

    async def becomes(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        log = self.home / "keeper.log"
        try:
            await eventually(condition, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from None

    async def repairs(self, change: Callable[[], object], right: Callable[[], bool], what: str) -> None:
        """While nothing is being installed, `change`; then it is put right, and the installer is at rest again."""
        log = self.home / "keeper.log"
        await self.at_rest()
        before = log.read_text().count('"installed"')
        change()
        await self.becomes(right, f"{what} is put back")
        await self.becomes(lambda: log.read_text().count('"installed"') > before, "it is told")

    async def at_rest(self) -> None:
        deadline = time.monotonic() + 30
        while "as they should be" not in (await self.ready())[1]:
            assert time.monotonic() < deadline, await self.ready()
            await asyncio.sleep(0.02)

    async def ready(self) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.health}/readiness") as answer,
        ):
            return answer.status, await answer.text()


def secretly_change(path: Path) -> None:
    """Same file, same size, same time of modification."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(PROGRAM.swapcase())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    with contextlib.ExitStack() as stack:
        yield Host(tmp_path, stack)


async def test_c12_what_is_removed_or_changed_is_put_back(host: Host) -> None:
    keeper = host.keeper()
    await host.becomes(host.installed, "the first installation")
    wanted = host.conflist.read_bytes()
    program, other = host.bin / "calico", host.bin / "calico-ipam"
    await host.repairs(program.unlink, host.installed, "a removed program")
    await host.repairs(lambda: other.write_bytes(b"somebody's"), host.installed, "a changed program")
    await host.repairs(lambda: secretly_change(other), host.installed, "one changed without a trace")
    await host.repairs(lambda: program.chmod(0o600), lambda: program.stat().st_mode & 0o777 == 0o755, "its mode")
    await host.repairs(lambda: host.conflist.write_text("{}"), lambda: host.conflist.read_bytes() == wanted, "the list")
    shutil.rmtree(host.net)
    shutil.rmtree(host.bin)
    await host.becomes(lambda: host.conflist.exists() and host.installed(), "whole directories are put back")
    assert host.conflist.read_bytes() == wanted
    assert (await host.ready())[0] == 200
    keeper.process.send_signal(signal.SIGTERM)
    assert await keeper.status() == 0
    assert host.installed(), "an orderly end leaves the plugin in place"


async def test_c12_an_upgrade_and_certificates_that_come_later_are_installed(host: Host) -> None:
    host.keeper(CNI_NETWORK_CONFIG='{"type": "calico", "etcd_ca_cert_file": "__ETCD_CA_CERT_FILE__"}')
    await host.becomes(host.installed, "the first installation")
    assert json.loads(host.conflist.read_text())["etcd_ca_cert_file"] == ""
    (host.secrets / "etcd-ca").write_text("first")
    ca = host.net / "calico-tls/etcd-ca"
    await host.becomes(
        lambda: json.loads(host.conflist.read_text())["etcd_ca_cert_file"] == str(ca), "its path is filled in"
    )
    assert (ca.read_text(), ca.stat().st_mode & 0o777) == ("first", 0o600)
    (host.secrets / "etcd-ca").write_text("second")
    await host.becomes(lambda: ca.read_text() == "second", "a rotated certificate is copied")
    new = host.home / "new"
    new.write_bytes(b"newer plugin")
    new.replace(host.plugin)
    await host.becomes(lambda: (host.bin / "calico").read_bytes() == b"newer plugin", "a newer plugin is installed")


async def test_c12_an_installation_that_fails_is_tried_again_and_says_why(host: Host) -> None:
    host.bin.write_text("a file in the way")
    keeper = host.keeper()
    await host.becomes(lambda: "no directory for programs can be written" in keeper.log.read_text(), "it says why")
    status, text = await host.ready()
    assert (status, "no directory for programs" in text) == (503, True), text
    assert not host.conflist.exists(), "no network is offered whose plugin is not there"
    host.bin.unlink()
    await host.becomes(host.installed, "it is installed once that can be")


async def test_c12_the_token_is_refreshed_before_it_ends_and_the_network_waits_for_the_first(
    host: Host, pki: Path
) -> None:
    write_account(host.account, pki)
    async with serving(Api(refuse=403), pki) as api:
        keeper = host.in_cluster(api, CNI_TOKEN_REFRESH_INTERVAL="1")
        await host.becomes(lambda: "403 told to refuse" in keeper.log.read_text(), "the refusal is told")
        assert not host.conflist.exists(), "a network is offered only once all that it names is there"
        assert (await host.ready())[0] == 503
        api.refuse = 0
        await host.becomes(lambda: bool(host.token()), "the first token")
        first = host.token()
        assert first.startswith("plugin-")
        await host.becomes(host.conflist.exists, "then the network")
        (calico,) = json.loads(host.conflist.read_text())["plugins"]
        assert calico["kubernetes"] == {"kubeconfig": str(host.kubeconfig)}
        assert host.kubeconfig.stat().st_mode & 0o777 == 0o600
        await host.becomes(lambda: host.token() not in (first, ""), "the next token")
        assert (await host.ready())[0] == 200
    text = keeper.log.read_text()
    assert "plugin-" not in text
    assert "own-1" not in text, "no token is ever in a log"


async def test_c12_a_rotated_account_is_used_at_once(host: Host, pki: Path) -> None:
    write_account(host.account, pki)
    async with serving(Api(own={"own-1", "own-2"}), pki) as api:
        host.in_cluster(api)
        await host.becomes(lambda: host.token() == "plugin-1", "the first token")
        write_account(host.account, pki, token="own-2")  # hours before the next would have been due
        await host.becomes(lambda: host.token() == "plugin-2", "a token asked for with the new account")
        assert api.asked_with == ["own-1", "own-2"]


async def test_c12_while_the_api_is_away_the_token_stays_and_files_are_kept(host: Host, pki: Path) -> None:
    write_account(host.account, pki)
    async with serving(Api(), pki) as api:
        first = host.in_cluster(api, CNI_TOKEN_REFRESH_INTERVAL="1")
        await host.becomes(lambda: bool(host.token()) and host.installed(), "the first installation")
    await host.becomes(lambda: "no new token" in first.log.read_text(), "the API is missed")
    assert (await host.ready())[0] == 200, "the token at hand is good for a day"
    held = host.token()
    host.kubeconfig.unlink()
    (host.bin / "calico").unlink()
    await host.becomes(lambda: host.token() == held and host.installed(), "files are put back without the API")
    first.kill()
    host.keeper(KUBERNETES_SERVICE_HOST="127.0.0.1", KUBERNETES_SERVICE_PORT=str(api.port))
    (host.bin / "calico").unlink()
    await host.becomes(host.installed, "also after a restart: the kubeconfig of before still is there")
    assert host.token() == held
    api.port = 0


async def test_c12_installing_once_asks_for_a_token_too(host: Host, pki: Path) -> None:
    write_account(host.account, pki)
    async with serving(Api(), pki) as api:
        once = host.in_cluster(api, SLEEP="false")
        assert await once.status() == 0
        assert host.token() == "plugin-1"
        assert str(host.conflist) in once.log.read_text()
        api.refuse = 500
        assert await host.in_cluster(api, SLEEP="false").status() == 1
        assert "500 told to refuse" in once.log.read_text()


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and network namespaces")
@pytest.mark.parametrize(
    ("update", "present", "works"), [(False, True, True), (True, True, False), (False, False, False)]
)
async def test_c12_a_directory_that_cannot_be_written_is_fatal_unless_nothing_is_to_be_written(
    host: Host, update: bool, present: bool, works: bool
) -> None:
    """Really read-only, in a mount namespace of its own."""
    host.bin.mkdir()
    if present:
        for name in ("calico", "calico-ipam"):
            (host.bin / name).write_bytes(b"of before")
    script = f'mount --bind "{host.bin}" "{host.bin}" && mount -o remount,ro,bind "{host.bin}" && exec "$@"'
    env = os.environ | host.env(SLEEP="false", UPDATE_CNI_BINARIES=str(update).lower()) | {"PYTHONPATH": str(PROJECT)}
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "services.cni", "install"]
    done = await asyncio.to_thread(
        subprocess.run, command, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode == 0) == works, done.stderr
    assert host.conflist.exists() == works
    if not works:
        assert "Read-only file system" in done.stderr
