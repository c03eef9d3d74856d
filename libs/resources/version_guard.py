"""Which release may work on which data (docs/design/compatibility.md, "Downgrades").

Two things in ClusterInformation are looked at, once, at the start of every service that reads all data or writes some.
The annotation DATA_FORMAT is raised by the first release whose data an earlier one would misread or damage; without it
they are of format 1. `calicoVersion` names the release of the node that started last: ours (v0.1.0), or Calico's
(v3.31.2) where real Calico nodes share the cluster; it is for people and for `calicoctl`, and ends no service.
"""

from __future__ import annotations

import asyncio
import logging
import re
from random import Random
from typing import Final

from libs.model.cluster import ClusterInformation
from libs.resources import codec
from libs.resources.rules import CLUSTER_INFORMATION
from libs.runtime import contact, release
from libs.runtime.backoff import Backoff
from libs.runtime.service import ServiceExit
from libs.store.api import Store, StoreError

log = logging.getLogger(__name__)

CALICO: Final = "3.33"
"""Calico's release whose keys and values ours are."""
FORMAT: Final = 1
"""Of the data that this release reads and writes."""
DATA_FORMAT: Final = "calico-py/data-format"
REFUSED_STATUS: Final = 78  # EX_CONFIG of sysexits.h: starting again does not help
_NUMBER = re.compile(r"[0-9]{1,9}")
_RELEASE = re.compile(r"v?(\d+)\.(\d+)(?:\.|$|-)")


def fits(cluster: str, own: str) -> bool:
    """May a client of release `own` write where `cluster` (`v3.33.0`, `3.33.1-12-gabcdef`) stands? What follows a dash
    is no part of a release.
    """
    named = cluster.removeprefix("v").split("-")[0]
    return (
        not named or named == CALICO or named.startswith(f"{CALICO}.") or named == own.removeprefix("v").split("-")[0]
    )


def refusal(found: ClusterInformation | None, own: str) -> str:
    """Why a service of release `own` must not touch these data; "" when it may."""
    told = (found.metadata.annotations or {}).get(DATA_FORMAT, "") if found is not None else ""
    if found is None or not _NUMBER.fullmatch(told) or int(told) <= FORMAT:
        return ""  # whatever else it is, no release of ours wrote it
    last = found.spec.calico_version or "unknown"
    return (
        f"the datastore holds data of format {told} (release of the node that started last: {last}), this release "
        f"({own}) reads and writes format {FORMAT}: run the newer release again, or restore a backup of etcd from "
        "before the upgrade. Nothing was written"
    )


def is_older(own: str, cluster: str) -> bool:
    """Is `own` of an earlier major.minor? Only releases of one numbering compare: Calico's begin with 3."""
    ours, theirs = _RELEASE.match(own), _RELEASE.match(cluster)
    if ours is None or theirs is None:
        return False
    mine, other = tuple(map(int, ours.groups())), tuple(map(int, theirs.groups()))
    calicos = int(CALICO.partition(".")[0])
    return (mine[0] == calicos) == (other[0] == calicos) and mine < other


async def check(store: Store) -> None:
    """Raises ServiceExit when the data are too new for us, StoreError."""
    kv = await store.get(codec.key(CLUSTER_INFORMATION))
    found = None if kv is None else codec.readable("ClusterInformation", kv)
    if not isinstance(found, ClusterInformation):
        return  # not there yet, or nothing that says anything
    own = release.version()
    if why := refusal(found, own):
        raise ServiceExit(REFUSED_STATUS, why)
    if is_older(own, found.spec.calico_version):
        log.warning(
            "this release is older than the cluster's, whose data it can still read and write",
            extra={"release": own, "cluster": found.spec.calico_version},
        )


async def check_when_reachable(store: Store) -> None:
    """The same, waiting for the datastore as long as it takes. Raises ServiceExit."""
    backoff = Backoff(Random(), first_s=0.2, cap_s=5.0)
    while why := await contact.trouble(check(store), StoreError):
        log.info("the data's format is not known yet", extra={"error": why})
        await asyncio.sleep(backoff.next_s())
