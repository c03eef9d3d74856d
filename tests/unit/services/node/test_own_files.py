"""calico-node with files that are missing or another node's ends before it touches anything, and says why (X01)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from libs.trust import identities
from libs.trust.authority import Authority


@pytest.mark.parametrize("verb", [("run", "--supervise"), ("startup",)])
def test_it_ends_and_says_whose_files_it_was_given(tmp_path: Path, verb: tuple[str, ...]) -> None:
    authority = Authority.create(tmp_path / "pki")
    other = authority.issue(identities.node("node2"))
    state = tmp_path / "state"
    state.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "NATS", "CALICO"))}

    def ended(at: Path) -> str:
        files = {"ETCD_CA_CERT_FILE": "ca.crt", "ETCD_CERT_FILE": "tls.crt", "ETCD_KEY_FILE": "tls.key"}
        env = own | {name: str(at / file) for name, file in files.items()} | {"NODENAME": "node1"}
        done = subprocess.run(
            [sys.executable, "-m", "services.node", *verb], capture_output=True, text=True, check=False, timeout=60,
            env=env | {"CALICO_NODENAME_FILE": str(state / "nodename"), "ETCD_ENDPOINTS": "https://127.0.0.1:1"},
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        return done.stdout + done.stderr

    assert "is the certificate of calico-node:node2, and this node is node1" in ended(other)
    assert "no certificate of this node: ETCD_CA_CERT_FILE is" in ended(tmp_path / "empty")
    assert "calicoctl trust certs --node node1" in ended(tmp_path / "empty")
    assert list(state.iterdir()) == []
