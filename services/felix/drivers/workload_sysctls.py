"""Kernel settings of workloads' interfaces (facts/felix.md section 3.9), put right where they are not."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from libs.netlink.links import Link
from libs.netlink.sysctl import ROOT, SysctlError, read_sysctl, write_sysctl
from libs.policy.output import Workload

log = logging.getLogger(__name__)


def wanted(workload: Workload, rp_filter: str) -> Iterable[tuple[str, str]]:
    """(path, value) of each setting. rp_filter: strictness of the reverse path check."""
    name = workload.name
    if workload.nets4:
        yield f"net/ipv4/conf/{name}/route_localnet", "1"
        yield f"net/ipv4/conf/{name}/proxy_arp", "1"
        yield f"net/ipv4/conf/{name}/forwarding", "1"
        yield f"net/ipv4/conf/{name}/rp_filter", rp_filter
        yield f"net/ipv4/neigh/{name}/proxy_delay", "0"
    if workload.nets6:
        yield f"net/ipv6/conf/{name}/accept_ra", "0"
        yield f"net/ipv6/conf/{name}/proxy_ndp", "1"
        yield f"net/ipv6/conf/{name}/forwarding", "1"


class WorkloadSysctls:
    def __init__(self) -> None:
        self.allow_spoofing = False  # WorkloadSourceSpoofing=Any: the kernel's own check of the source must go as well
        self.due = True  # not everything was looked at since `look_again`, or could be set
        self._done: dict[tuple[str, int], tuple[bool, bool]] = {}  # name, index -> families

    def look_again(self) -> None:
        self._done.clear()
        self.due = True

    def repair(self, workloads: Iterable[Workload], links: Mapping[str, Link]) -> dict[str, str]:
        """Of interfaces that are up and were not looked at since `look_again`; interface -> what could not be set."""
        failed: dict[str, str] = {}
        rp_filter = ""
        for workload in workloads:
            link = links.get(workload.name)
            if link is None or not link.up:
                continue
            key, families = (link.name, link.index), (bool(workload.nets4), bool(workload.nets6))
            if self._done.get(key) == families:
                continue
            rp_filter = rp_filter or self._rp_filter()
            try:
                for path, value in wanted(workload, rp_filter):
                    if read_sysctl(path) != value:
                        write_sysctl(path, value)
                        log.info("interface setting put right", extra={"sysctl": path, "value": value})
            except SysctlError as error:
                if (ROOT / "net/ipv4/conf" / link.name).exists():  # else it is just going away
                    failed[f"interface {link.name}"] = str(error)
            else:
                self._done[key] = families
        self.due = bool(failed)
        return failed

    def _rp_filter(self) -> str:
        return "0" if self.allow_spoofing else read_sysctl("net/ipv4/conf/default/rp_filter")
