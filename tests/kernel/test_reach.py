"""The testkit's question whether packets get through: late answers count where one is wanted, later packets do not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from libs.netlink.netns import in_netns
from libs.testkit import netns, reach
from libs.testkit.netns import Namespace
from libs.testkit.reach import Flow, Verdict, check

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
BUSY_S = 0.8  # longer than the questions take


@pytest.fixture
def space() -> Iterator[Namespace]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("reach") as made:
        yield made


@contextlib.contextmanager
def slow_server(space: Namespace, protocol: str, version: int, pause_s: float) -> Iterator[Flow]:
    """Answers, one after the other, pause_s after the packet or connection."""
    with in_netns(space.path):
        server = socket.socket(FAMILY[version], socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    over = threading.Event()

    def answer() -> None:
        if protocol == "udp":
            data, who = server.recvfrom(4096)
            over.wait(pause_s)  # this is the busy machine, not a wait for something
            server.sendto(data, who)
        else:
            taken, _ = server.accept()
            with taken:
                over.wait(pause_s)
                taken.sendall(taken.recv(4096))

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):  # nobody asked for a while, or who asked has gone
                answer()

    with server:
        server.bind((LOOPBACK[version], 0))
        server.settimeout(0.05)
        if protocol == "tcp":
            server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Flow(space.path, ip_address(LOOPBACK[version]), server.getsockname()[1], protocol)
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_late_answer_counts_where_one_is_wanted(space: Namespace, protocol: str, version: int) -> None:
    never_s = 60.0
    for wanted, pause_s, told in (
        (None, never_s, Verdict.DENY), ([Verdict.DENY], never_s, Verdict.DENY), ([Verdict.ALLOW], BUSY_S, Verdict.ALLOW)
    ):  # fmt: skip
        with slow_server(space, protocol, version, pause_s) as flow:
            assert check([flow], timeout_s=0.3, tries=1, wanted=wanted) == [told]


def test_a_packet_that_the_kernel_sent_again_does_not_count(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that opened after the question is seen by the second SYN, one second later."""
    monkeypatch.setattr(reach, "LATE_S", 3.0)
    with slow_server(space, "tcp", 4, 0) as flow:
        rule = f"table ip t {{ chain c {{ type filter hook input priority 0; tcp dport {flow.port} counter drop; }}; }}"
        space.run("nft", rule)

        def open_after_the_first() -> None:
            while "counter packets 0" in space.run("nft", "list", "table", "ip", "t"):
                pass
            space.run("nft", "delete", "table", "ip", "t")

        opening = threading.Thread(target=open_after_the_first)
        opening.start()
        try:
            assert check([flow], timeout_s=0.3, tries=1, wanted=[Verdict.ALLOW]) == [Verdict.DENY]
        finally:
            opening.join()
        assert check([flow], timeout_s=5) == [Verdict.ALLOW]
