"""`calicoctl ipam release`: one address, or what several reports of `ipam check` agree to be leaked.

A leak is released with the handle and sequence number of the report, so an address that was given anew since stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import msgspec

from libs.ipam import keys
from libs.ipam.block import ReleaseOption
from libs.ipam.client import IpamClient
from libs.model.cluster import ClusterInformation
from libs.resources.client import ResourceClient
from libs.store.api import Conflict
from services.calicoctl.ipam import Address
from services.calicoctl.ipam_check import Report
from services.calicoctl.version import client_version


class Refused(Exception):
    """Nothing was released."""


async def release_address(client: ResourceClient, address: Address) -> str:
    """Raises Refused when nobody has it."""
    result = await IpamClient(client.store).release_ips([ReleaseOption(address)])
    if not result.freed:
        raise Refused(f"IP address {address} is not assigned")
    return f"Successfully released IP address {address}"


def read_report(path: str) -> Report:
    """Raises Refused."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Report)
    except OSError as error:
        raise Refused(f"cannot read report {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise Refused(f"{path} is not a report of ipam check: {error}") from error


@dataclass(frozen=True, slots=True)
class Leaks:
    """What all reports agree on. handles: name -> modification revision."""

    addresses: tuple[ReleaseOption, ...]
    handles: dict[str, int]


def merge(reports: Sequence[tuple[str, Report]]) -> Leaks:
    """reports: with their file names. Raises Refused for values that no report can hold."""
    leaks: set[ReleaseOption] | None = None
    handles: set[tuple[str, int]] | None = None
    for path, report in reports:
        try:
            here = {
                ReleaseOption(ip_address(one.ip), one.handle or None, one.sequence_number)
                for found in report.allocations.values()
                for one in found
                if not one.in_use and not one.cooling_down
            }
            idle = {(handle.ID, int(handle.Revision)) for handle in report.leaked_handles}
        except ValueError as error:
            raise Refused(f"{path} is not a report of ipam check: {error}") from error
        leaks = here if leaks is None else leaks & here
        handles = idle if handles is None else handles & idle
    ordered = sorted(leaks or (), key=lambda option: (option.address.version, int(option.address)))
    return Leaks(tuple(ordered), dict(sorted(handles or ())))


def admit(reports: Sequence[tuple[str, Report]], cluster: ClusterInformation, *, force: bool) -> list[str]:
    """Warnings. Raises Refused: of another cluster, or all older than the lock, also with force; made by another
    version, or datastore not locked, without.
    """
    warnings = []
    for path, report in reports:
        if report.cluster_guid != cluster.spec.cluster_guid:
            raise Refused(f"{path} is the report of another cluster (GUID {report.cluster_guid}); nothing is released")
        if report.version != client_version():
            text = f"{path} was made by another version of calicoctl ({report.version})"
            if not force:
                raise Refused(f"{text}; make a new one, or use --force")
            warnings.append(f"WARNING: {text}, ignored because of --force")
    if all(report.revision != cluster.metadata.resource_version for _, report in reports):
        raise Refused("all reports are stale: make a new one while the datastore is locked, and try again")
    if cluster.spec.datastore_ready is not False:
        if not force:
            raise Refused("the datastore is not locked: run `calicoctl datastore migrate lock`, or use --force")
        warnings.append("WARNING: the datastore is not locked, ignored because of --force")
    return warnings


async def release_reported(client: ResourceClient, paths: Sequence[str], *, force: bool) -> tuple[list[str], list[str]]:
    """(lines for standard output, what could not be released). Raises Refused, ResourceError."""
    reports = [(path, read_report(path)) for path in paths]
    cluster = await client.get("ClusterInformation", "default")
    assert isinstance(cluster, ClusterInformation)
    lines = admit(reports, cluster, force=force)
    leaks = merge(reports)
    failures = []
    if leaks.addresses:
        lines.append(f"Releasing {len(leaks.addresses)} old IPs...")
        result = await IpamClient(client.store).release_ips(leaks.addresses)
        lines.append(f"Released {len(result.freed)} IPs successfully")
        if result.unallocated:
            lines.append(f"{len(result.unallocated)} addresses marked as leaked had already been cleaned up.")
        failures = [f"{address}: {error}" for address, error in sorted(result.refused.items(), key=str)]
    else:
        lines.append("There are no leaked IPs to clean up.")
    lines += await _release_handles(client, leaks.handles)
    lines.append("You may now unlock the datastore.")
    return lines, failures


async def _release_handles(client: ResourceClient, handles: dict[str, int]) -> list[str]:
    """A handle that was written since the report is in use again, or gone."""
    if not handles:
        return ["There are no handles to clean up."]
    released = 0
    for handle, revision in handles.items():
        try:
            released += await client.store.delete(keys.handle(handle), mod_revision=revision) is not None
        except Conflict:
            continue
    return [f"Released {released} handles; {len(handles) - released} skipped, as they were changed or are gone."]
