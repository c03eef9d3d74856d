"""iptables and its sets, of both kinds that Linux has: its own tables and those that nftables keeps for it.

Rules by the distribution's tools, since only they know every match; sets by netlink.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

TOOLS = ("iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft")
PLAIN = ("iptables", "ip6tables")
"""Where a distribution has only one kind."""
LEGACY_TABLES = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))
TIMEOUT_S = 60.0


class XtablesError(Exception):
    """A tool refused."""


def tools() -> list[str]:
    found = [name for name in TOOLS if _there(name)]
    return found or [name for name in PLAIN if _there(name)]


def _there(name: str) -> bool:
    return shutil.which(f"{name}-save") is not None and shutil.which(f"{name}-restore") is not None


def legacy_tables() -> bool:
    """Somebody has tables of the old kind here."""
    for path in LEGACY_TABLES:
        try:
            if path.read_text().strip():
                return True
        except OSError:
            continue
    return False


def save(tool: str) -> str:
    """Raises XtablesError."""
    return _run([f"{tool}-save"], None)


def restore(tool: str, text: str) -> None:
    """A table at a time is changed in one step. Raises XtablesError."""
    patience = [] if "nft" in tool else ["--wait", "10"]  # for the lock of the old kind
    _run([f"{tool}-restore", "--noflush", *patience], text)


def _run(command: list[str], text: str | None) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise XtablesError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise XtablesError(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def destroy_ipsets(ours: Callable[[str], bool], *, dry_run: bool) -> tuple[list[str], dict[str, str]]:
    """(sets that went, those that would not and why): one that a rule still names stays."""
    from pyroute2 import IPSet
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPSet() as sets:
            names = sorted({str(one.get_attr("IPSET_ATTR_SETNAME")) for one in sets.list()})
            gone: list[str] = []
            kept: dict[str, str] = {}
            for name in filter(ours, names):
                try:
                    if not dry_run:
                        sets.destroy(name)
                    gone.append(name)
                except NetlinkError as error:
                    kept[name] = str(error)
            return gone, kept
    except (NetlinkError, OSError):  # a kernel without ipsets
        return [], {}
