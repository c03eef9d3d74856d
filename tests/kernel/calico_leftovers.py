"""What a real calico-node leaves in the kernel, from the recordings, put into a namespace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.netlink.netns import in_netns

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
THEIRS = """\
*filter
:THEIRS - [0:0]
-A FORWARD -m comment --comment "of somebody else" -j THEIRS
-A THEIRS -j RETURN
COMMIT
"""


def recorded(kind: str) -> str:
    """kind: iptables or nft."""
    path = GOLDEN / f"calico-node-{kind}.txt"
    if not path.exists():
        pytest.skip("recorded samples are not here")
    return path.read_text()


def rules(text: str) -> str:
    """The part of a recording for iptables-restore."""
    return text.partition("# ipset")[0]


def sets(text: str) -> Iterator[tuple[str, str]]:
    """(name, type) of the recording's IP sets."""
    name = ""
    for line in text.partition("# ipset")[2].splitlines():
        key, _, value = line.partition(": ")
        if key == "Name":
            name = value
        elif key == "Type":
            yield name, value


def load(netns: Path, tool: str, text: str, allowed: object = None) -> None:
    """Sets, then rules, then some of others. allowed: an address for which the recording's policy need not speak: its
    packets are let through before Calico's rules, as the policy of the real cluster would.
    """
    from pyroute2 import IPSet

    with in_netns(netns), IPSet() as handle:
        for name, kind in sets(text):
            handle.create(name, stype=kind, exclusive=False)
    prefix = ["nsenter", f"--net={netns}"]
    restore = [*prefix, f"{tool}-restore", "--noflush"]
    for part in (rules(text), THEIRS):
        subprocess.run(restore, input=part, text=True, check=True, capture_output=True)
    if allowed is not None:
        for end in ("-s", "-d"):
            subprocess.run([*prefix, tool, "-I", "FORWARD", end, str(allowed), "-j", "ACCEPT"], check=True)


def ipsets(netns: Path) -> list[str]:
    from pyroute2 import IPSet

    with in_netns(netns), IPSet() as handle:
        return [str(one.get_attr("IPSET_ATTR_SETNAME")) for one in handle.list()]
