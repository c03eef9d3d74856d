"""Settings of felix from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.runtime import nodename as module
from libs.runtime.config import ConfigError, load
from services.felix.config import FelixConfig


def read(**environment: str) -> FelixConfig:
    return load(FelixConfig, [], environment, prog="felix")


def test_defaults_are_calicos() -> None:
    config = read()
    assert (config.interface_prefix, config.default_endpoint_to_host_action) == (("cali",), "DROP")
    assert (config.nftables_refresh_interval_s, config.route_refresh_interval_s) == (180.0, 90.0)
    assert config.ipv6_support


def test_names_of_the_environment_are_calicos() -> None:
    config = read(
        FELIX_FELIXHOSTNAME="node7", FELIX_INTERFACEPREFIX="tap", FELIX_IPV6SUPPORT="false",
        FELIX_DEFAULTENDPOINTTOHOSTACTION="accept", FELIX_NFTABLESREFRESHINTERVAL="1m30s",
        FELIX_ROUTEREFRESHINTERVAL="0", CALICO_CNI_SOCKET="/tmp/x.sock", FELIX_MTU_BYTES="1400",
    )  # fmt: skip
    assert config.node_name() == "node7"
    assert (config.interface_prefix, config.ipv6_support, config.mtu_bytes) == (("tap",), False, 1400)
    assert config.default_endpoint_to_host_action == "ACCEPT"
    assert (config.nftables_refresh_interval_s, config.route_refresh_interval_s) == (90.0, 0.0)
    assert config.cni_socket == Path("/tmp/x.sock")


def test_the_name_of_the_node_comes_from_environment_file_host_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NODENAME_FILE", tmp_path / "nodename")
    monkeypatch.setattr("socket.gethostname", lambda: "Host.Example")
    assert read().node_name() == "host.example"
    (tmp_path / "nodename").write_text("from-file\n")
    assert read().node_name() == "from-file"
    assert read(NODENAME="from-environment").node_name() == "from-environment"
    assert read(NODENAME="second", FELIX_FELIXHOSTNAME="first").node_name() == "first"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FELIX_NFTABLESREFRESHINTERVAL", "-1"),
        ("FELIX_ROUTEREFRESHINTERVAL", "soon"),
        ("FELIX_DEFAULTENDPOINTTOHOSTACTION", "REJECT"),
        ("FELIX_IPV6SUPPORT", "perhaps"),
        ("FELIX_MTU_BYTES", "big"),
        ("FELIX_POLICY_SETUP_TIMEOUT_S", "0"),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{name: value})
    assert any(name in str(problem) for problem in caught.value.problems)
