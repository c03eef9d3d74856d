"""The lock of a migration, for all controllers that assign or release addresses."""

from __future__ import annotations

from libs import model
from libs.resources.mirror import Mirror

LOCKED = "the datastore is locked for a migration"


def locked(mirror: Mirror) -> bool:
    """`calicoctl datastore migrate lock` stops everything that assigns or releases. Where the ClusterInformation cannot
    be read it may say so, and is taken as if it did.
    """
    if mirror.unreadable(model.ClusterInformation):
        return True
    return any(one.spec.datastore_ready is False for one in mirror.of(model.ClusterInformation))
