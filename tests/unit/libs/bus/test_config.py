from __future__ import annotations

from pathlib import Path

import pytest

from libs.bus import BusConfig, BusConfigError
from libs.bus.nats import NatsBus


def test_nothing_set_means_the_local_server() -> None:
    assert BusConfig.from_env({}).servers == ("nats://127.0.0.1:4222",)
    assert BusConfig.from_env({"NATS_URL": ""}) == BusConfig()


def test_several_servers_with_and_without_scheme() -> None:
    config = BusConfig.from_env({"NATS_URL": "nats://a:1, b:2 ,tls://[::1]:3,"})
    assert config.servers == ("nats://a:1", "nats://b:2", "tls://[::1]:3")


def test_files_and_credentials(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("x")
    env = {"NATS_CA": f"{tmp_path}/ca", "NATS_CERT": f"{tmp_path}/cert", "NATS_KEY": f"{tmp_path}/key"}
    config = BusConfig.from_env({**env, "NATS_USER": "u", "NATS_PASSWORD": "p"})
    assert (config.ca_file, config.user, config.password) == (tmp_path / "ca", "u", "p")


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({"NATS_URL": "http://a:1"}, "NATS_URL"),
        ({"NATS_URL": "nats://"}, "NATS_URL"),
        ({"NATS_USER": "u"}, "NATS_PASSWORD"),
        ({"NATS_USER": "u", "NATS_PASSWORD": "p", "NATS_TOKEN": "t"}, "only one"),
        ({"NATS_CA": "/no/such/file"}, "NATS_CA"),
        ({"NATS_CREDS": "/no/such/file"}, "NATS_CREDS"),
    ],
)
def test_mistakes_are_named(env: dict[str, str], names: str) -> None:
    with pytest.raises(BusConfigError, match=names):
        BusConfig.from_env(env)


def test_key_without_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("x")
    with pytest.raises(BusConfigError, match="NATS_CERT"):
        BusConfig.from_env({"NATS_KEY": f"{tmp_path}/key"})


async def test_files_that_are_no_certificates_are_refused_before_connecting(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("no PEM")
    with pytest.raises(BusConfigError, match="TLS"):
        NatsBus(BusConfig(ca_file=tmp_path / "ca"), name="x")
