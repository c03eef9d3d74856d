"""What is asked of a WireGuard in a process of its own, with a program that only answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.felix.drivers import wireguard_userspace
from services.felix.drivers.wireguard_userspace import UserspaceDevices


@contextmanager
def answering(directory: Path, ports: list[int]) -> Iterator[list[int]]:
    """wg0's socket. ports: those that it says it listens on, one after the other, the last of them from then on; gives
    those it has said.
    """
    said: list[int] = []
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(directory / "wg0.sock"))
    server.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                assert client.recv(100) == b"get=1\n\n"
                port = ports[min(len(said), len(ports) - 1)]
                client.sendall((f"listen_port={port}\n" if port else "").encode() + b"errno=0\n\n")
                said.append(port)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield said
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def test_a_device_is_made_when_it_has_a_port_of_its_own(tmp_path: Path) -> None:
    with answering(tmp_path, [0, 0, 0, 40_000]) as said:
        UserspaceDevices("true", sockets=tmp_path).create("wg0")
    assert said == [0, 0, 0, 40_000]


def test_one_that_takes_a_port_later_is_waited_for_no_longer_than_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wireguard_userspace, "BIND_TIMEOUT_S", 0.1)
    with answering(tmp_path, [0]) as said:
        UserspaceDevices("true", sockets=tmp_path).create("wg0")
    assert set(said) == {0}
