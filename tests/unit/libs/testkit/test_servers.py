"""What the kit says of servers before it starts one."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.testkit.servers import EtcdServer, ServerError


def etcd(directory: Path, version: str) -> EtcdServer:
    binary = directory / "etcd"
    binary.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    binary.chmod(0o755)
    return EtcdServer(binary=binary, directory=directory)


@pytest.mark.parametrize("version", ["3.3.25", "3.4.20", "3.5.0", "3.5.4"])
def test_an_etcd_that_forgets_what_it_confirmed_may_not_be_killed(tmp_path: Path, version: str) -> None:
    with pytest.raises(ServerError, match="may forget what it confirmed"):
        etcd(tmp_path, version).kill()


@pytest.mark.parametrize("version", ["3.4.21", "3.4.23", "3.5.5", "3.5.17", "3.6.4"])
def test_an_etcd_that_keeps_it_may(tmp_path: Path, version: str) -> None:
    etcd(tmp_path, version).kill()
