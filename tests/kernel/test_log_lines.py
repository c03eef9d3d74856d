"""What a Log rule writes to the kernel's log, and how much of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from libs.policy.output import Action, Policy, PortRange, Rule, Tier
from services.felix.core.options import RulesetOptions
from tests.kernel.ruleset_lab import Lab, address, np, running_lab

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("kernel-log")]  # who may log is a setting of the machine

ALL_NETNS = Path("/proc/sys/net/netfilter/nf_log_all_netns")  # else only the initial namespace may log
LOGGED, ALLOWED = Rule(action=Action.LOG, protocol="udp", dst_ports=(PortRange(9, 9),)), Rule(action=Action.ALLOW)


@contextlib.contextmanager
def kernel_log() -> Iterator[int]:
    """A reader of /dev/kmsg that stands at its end, while namespaces may log."""
    before = ALL_NETNS.read_text()
    reader = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(reader, 0, os.SEEK_END)
        ALL_NETNS.write_text("1")
        yield reader
    finally:
        ALL_NETNS.write_text(before)
        os.close(reader)


def lines(reader: int, mark: str) -> list[str]:
    out = []
    while True:
        try:
            record = os.read(reader, 8192).decode()
        except BlockingIOError:
            return out
        except BrokenPipeError:  # overwritten before it was read; the next read goes on
            continue
        if mark in record:
            out.append(record.partition(";")[2].strip())


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab() as made:
        yield made


@pytest.mark.parametrize("version", [4, 6])
def test_line_names_tier_kind_and_policy_and_comes_at_the_limited_rate(lab: Lab, version: int) -> None:
    if not os.access(ALL_NETNS, os.W_OK):
        pytest.skip("this kernel's log is not for namespaces")
    mark = secrets.token_hex(4)
    options = RulesetOptions(log_prefix=f"{mark} %t %k %n %p", log_rate=(1, "hour"), log_burst=5)
    builder = lab.fresh(options)
    builder.set_policy(np("web"), Policy(tier="app", namespace="ns1", inbound=(LOGGED, ALLOWED)))
    lab.pod("a")
    lab.pod("s", Tier(name="app", ingress=(np("web"),)))
    lab.apply()
    with kernel_log() as reader:
        for _ in range(40):
            with lab.udp("a", version) as sender:
                sender.sendto(b"x", (address("s", version), 9))
        found = lines(reader, mark)
    assert len(found) == 5
    assert all(line.startswith(f"{mark} app np web ns1/web: ") for line in found), found
    assert all(f"SRC={ip_address(address('a', version)).exploded} " in line and "DPT=9" in line for line in found), (
        found
    )
