"""`calicoctl version`, and the guard that keeps a client from writing to a cluster whose data it may not understand.

The cluster says in ClusterInformation which release its nodes are of. Fine is our own release, and Calico's of the
minor release whose data formats we read and write (libs/resources/version_guard.py): a node of Calico's and one of ours
may share a cluster. Everything else is refused, as Calico's own calicoctl does, unless --allow-version-mismatch says
otherwise. A cluster that does not say is not asked further.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libs.model.cluster import ClusterInformation
    from libs.resources.api import Resources


class VersionMismatch(Exception):
    """The cluster is of another version."""

    def __init__(self, cluster: str, why: str = "") -> None:
        from libs.resources.version_guard import CALICO

        super().__init__(
            f"Version mismatch.\nClient Version:   {client_version()} (data of Calico v{CALICO})\n"
            f"Cluster Version:  {cluster}\n{f'{why}.{chr(10)}' if why else ''}Use --allow-version-mismatch to override."
        )


@cache
def client_version() -> str:
    from libs.runtime import release  # 20 ms, which a command without need for it does not pay

    return release.version()


def git_commit() -> str:
    """Of the tree that was installed, where it came from one (PEP 610: direct_url.json)."""
    from importlib import metadata

    from libs.runtime import release

    with suppress(metadata.PackageNotFoundError, ValueError, LookupError, TypeError):
        origin = json.loads(metadata.distribution(release.DISTRIBUTION).read_text("direct_url.json") or "{}")
        return str(origin["vcs_info"]["commit_id"])
    return "unknown"


def client_lines() -> list[str]:
    return [f"Client Version:    {client_version()}", f"Git commit:        {git_commit()}"]


async def check(client: Resources) -> None:
    """Raises VersionMismatch."""
    from libs.resources import version_guard

    found = await _cluster(client)
    if why := version_guard.refusal(found, client_version()):
        raise VersionMismatch(found.spec.calico_version if found is not None else "", why)
    if found is not None and not version_guard.fits(found.spec.calico_version, client_version()):
        raise VersionMismatch(found.spec.calico_version)


async def _cluster(client: Resources) -> ClusterInformation | None:
    """None: the datastore is not initialised."""
    from libs.model.cluster import ClusterInformation
    from libs.resources.errors import NotFound

    try:
        found = await client.get("ClusterInformation", "default")
    except NotFound:
        return None
    assert isinstance(found, ClusterInformation)
    return found


async def cluster_lines(client: Resources) -> list[str]:
    found = await _cluster(client)
    if found is None:
        return ["Cluster Version:   unknown (the datastore is not initialised)"]
    spec = found.spec
    return [
        f"Cluster Version:   {spec.calico_version or 'unknown'}",
        f"Cluster Type:      {spec.cluster_type or 'unknown'}",
    ]
