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

import msgspec

from libs.model.cluster import ClusterInformation
from libs.resources import codec
from libs.resources.rules import CLUSTER_INFORMATION
from libs.runtime import contact, release
from libs.runtime.backoff import Backoff
from libs.runtime.exits import ServiceExit
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
    if found is None:
        return ""
    return _refusal((found.metadata.annotations or {}).get(DATA_FORMAT, ""), found.spec.calico_version, own)


def _refusal(told: str, last: str, own: str) -> str:
    if not _NUMBER.fullmatch(told) or int(told) <= FORMAT:
        return ""  # whatever else it is, no release of ours wrote it
    return (
        f"the datastore holds data of format {told} (release of the node that started last: {last or 'unknown'}), this "
        f"release ({own}) reads and writes format {FORMAT}: run the newer release again, or restore a backup of etcd "
        "from before the upgrade. Nothing was written"
    )


def is_older(own: str, cluster: str) -> bool:
    """Is `own` of an earlier major.minor? Only releases of one numbering compare: Calico's begin with 3."""
    ours, theirs = _RELEASE.match(own), _RELEASE.match(cluster)
    if ours is None or theirs is None:
        return False
    mine, other = tuple(map(int, ours.groups())), tuple(map(int, theirs.groups()))
    calicos = int(CALICO.partition(".")[0])
    return (mine[0] == calicos) == (other[0] == calicos) and mine < other


def _read(value: bytes) -> tuple[str, str]:
    """Format and last release, each "" where it does not stand; each is found whatever stands beside it."""
    try:
        document = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return "", ""
    return _text(document, "metadata", "annotations", DATA_FORMAT), _text(document, "spec", "calicoVersion")


def _text(document: object, *path: str) -> str:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, str) else ""


async def check(store: Store) -> None:
    """Raises ServiceExit when the data are too new for us, StoreError."""
    kv = await store.get(codec.key(CLUSTER_INFORMATION))
    if kv is None:
        return  # not there yet
    told, last = _read(kv.value)
    own = release.version()
    if why := _refusal(told, last, own):
        raise ServiceExit(REFUSED_STATUS, why)
    if is_older(own, last):
        log.warning(
            "this release is older than the cluster's, whose data it can still read and write",
            extra={"release": own, "cluster": last},
        )


async def check_when_reachable(store: Store) -> None:
    """The same, waiting for the datastore as long as it takes. Raises ServiceExit."""
    backoff = Backoff(Random(), first_s=0.2, cap_s=1.0)
    told = ""
    while why := await contact.trouble(check(store), StoreError):
        if why != told:
            told = why
            log.info("the data's format is not known yet", extra={"error": why})
        await asyncio.sleep(backoff.next_s())
