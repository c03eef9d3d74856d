"""The installer: what lands on the host, in which order, and what it refuses."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from libs.runtime.config import load
from libs.runtime.files import write_atomically
from services.cni.__main__ import main
from services.cni.config import InstallConfig
from services.cni.install import install
from services.cni.network import InstallError


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin"
    path.write_bytes(b"\x7fELF plugin")
    return path


def config(tmp_path: Path, plugin: Path, **environ: str) -> InstallConfig:
    values = {"CNI_BIN_DIR": str(tmp_path / "bin"), "CNI_NET_DIR": str(tmp_path / "net.d"), "CNI_BINARY": str(plugin)}
    return load(InstallConfig, [], values | environ, prog="calico-cni")


def conflist(tmp_path: Path) -> dict[str, Any]:
    document = json.loads((tmp_path / "net.d" / "10-calico.conflist").read_text())
    assert isinstance(document, dict)
    return document


def test_programs_come_first_and_configuration_last(tmp_path: Path, plugin: Path) -> None:
    written = install(config(tmp_path, plugin, CNI_MTU="1400", KUBERNETES_NODE_NAME="n1"))
    assert written == [tmp_path / "bin/calico", tmp_path / "bin/calico-ipam", tmp_path / "net.d/10-calico.conflist"]
    for name in ("calico", "calico-ipam"):
        assert (tmp_path / "bin" / name).read_bytes() == plugin.read_bytes()
        assert stat.S_IMODE((tmp_path / "bin" / name).stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "net.d/10-calico.conflist").stat().st_mode) == 0o600
    document = conflist(tmp_path)
    assert document["name"] == "k8s-pod-network"
    (calico,) = document["plugins"]
    assert calico == {
        "type": "calico", "log_level": "info", "mtu": 1400, "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"},
        "nodename": "n1", "log_file_path": "/var/log/calico/cni/cni.log", "log_file_max_size": 100,
        "log_file_max_age": 30, "log_file_max_count": 10,
    }  # fmt: skip
    assert sorted(os.listdir(tmp_path / "bin")) == ["calico", "calico-ipam"]  # no temporary files stay
    assert os.listdir(tmp_path / "net.d") == ["10-calico.conflist"]


def test_second_run_writes_nothing_and_a_changed_plugin_is_replaced(tmp_path: Path, plugin: Path) -> None:
    install(config(tmp_path, plugin))
    assert install(config(tmp_path, plugin)) == []
    plugin.write_bytes(b"newer")
    assert install(config(tmp_path, plugin)) == [tmp_path / "bin/calico", tmp_path / "bin/calico-ipam"]
    plugin.write_bytes(b"newest")
    assert install(config(tmp_path, plugin, UPDATE_CNI_BINARIES="false")) == []
    assert install(config(tmp_path, plugin, SKIP_CNI_BINARIES="calico-ipam")) == [tmp_path / "bin/calico"]


def test_running_plugin_can_be_replaced(tmp_path: Path, plugin: Path) -> None:
    install(config(tmp_path, plugin))
    with (tmp_path / "bin/calico").open("rb") as in_use:
        plugin.write_bytes(b"newer")
        install(config(tmp_path, plugin))
        assert in_use.read() == b"\x7fELF plugin"  # the old file lives until its last user is gone


def test_portmap_is_named_only_where_it_is_installed(tmp_path: Path, plugin: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/portmap").touch()
    install(config(tmp_path, plugin))
    assert [p["type"] for p in conflist(tmp_path)["plugins"]] == ["calico", "portmap"]


def test_own_configuration_has_its_placeholders_filled(tmp_path: Path, plugin: Path) -> None:
    text = (
        '{"name": "n", "plugins": [{"type": "calico", "mtu": __CNI_MTU__, "nodename": "__KUBERNETES_NODE_NAME__",'
        ' "etcd_endpoints": "__ETCD_ENDPOINTS__", "log_level": "__LOG_LEVEL__",'
        ' "kubeconfig": "__KUBECONFIG_FILEPATH__"}]}'
    )
    values = {
        "CNI_MTU": "9000",
        "KUBERNETES_NODE_NAME": 'odd"name',
        "ETCD_ENDPOINTS": "http://e:1",
        "LOG_LEVEL": "debug",
    }
    install(config(tmp_path, plugin, CNI_NETWORK_CONFIG=text, **values))
    assert conflist(tmp_path)["plugins"] == [
        {
            "type": "calico",
            "mtu": 9000,
            "nodename": 'odd"name',
            "etcd_endpoints": "http://e:1",
            "log_level": "debug",
            "kubeconfig": str(tmp_path / "net.d/calico-kubeconfig"),
        }
    ]
    file = tmp_path / "from-file"
    file.write_text('{"name": "f", "type": "calico"}')
    install(config(tmp_path, plugin, CNI_NETWORK_CONFIG=text, CNI_NETWORK_CONFIG_FILE=str(file)))
    assert conflist(tmp_path) == {"name": "f", "type": "calico"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ('{"plugins": [{"type": "flannel"}]}', 'has no plugin of type "calico"'),
        ("[]", 'has no plugin of type "calico"'),
        ('{"type": "calico", "t": "__SERVICEACCOUNT_TOKEN__"}', "nothing fills: __SERVICEACCOUNT_TOKEN__"),
    ],
)
def test_unusable_configuration_is_refused_and_not_written(tmp_path: Path, plugin: Path, text: str, why: str) -> None:
    with pytest.raises(InstallError, match=why):
        install(config(tmp_path, plugin, CNI_NETWORK_CONFIG=text))
    assert not (tmp_path / "net.d").exists()


def test_directory_that_cannot_be_written_is_skipped_unless_it_is_the_only_one(tmp_path: Path, plugin: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    written = install(config(tmp_path, plugin, CNI_BIN_DIR=f"{blocked},{tmp_path / 'second'}"))
    assert tmp_path / "second/calico" in written
    with pytest.raises(InstallError, match="no directory for programs can be written"):
        install(config(tmp_path, plugin, CNI_BIN_DIR=str(blocked)))


def test_missing_plugin_or_unreadable_file_is_told(tmp_path: Path, plugin: Path) -> None:
    with pytest.raises(InstallError, match="no plugin to install"):
        install(config(tmp_path, tmp_path / "absent"))
    with pytest.raises(InstallError, match="cannot read the network configuration"):
        install(config(tmp_path, plugin, CNI_NETWORK_CONFIG_FILE=str(tmp_path / "absent")))


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old", mode=0o644)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new", mode=0o644)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_command_line_installs_prints_paths_and_tells_errors(
    tmp_path: Path, plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "net.d"), "--binary", str(plugin)]
    assert main(["install", *where]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "net.d/10-calico.conflist")
    assert main(["install", "--mtu-bytes", "-1"]) == 2
    assert "--mtu-bytes on the command line: -1 is below the minimum of 0" in capsys.readouterr().err
    assert main(["install", *where, "--network-config", "{"]) == 1
    assert main(["nonsense"]) == 2
    assert main(["--help"]) == 0
