"""How a write is done, beyond what is written."""

from __future__ import annotations

from dataclasses import dataclass

from libs.resources.errors import Identity, PreconditionFailed


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """dry_run: everything is checked, nothing is stored. generation: metadata.generation counts the changes of spec.
    finalizers: a resource of any kind that has some is only marked as deleted, and goes with the last of them; without
    this they hold pools alone. tries: how often a change is made again when somebody else was faster.

    Calico's clients neither count nor wait (facts/etcd-layout.md section 4); a Kubernetes API server does both.
    """

    dry_run: bool = False
    generation: bool = False
    finalizers: bool = False
    tries: int = 5


PLAIN = WriteOptions()


@dataclass(frozen=True, slots=True)
class Preconditions:
    """What must be true of a resource that is deleted; "" demands nothing."""

    uid: str = ""
    resource_version: str = ""

    def check(self, identity: Identity, uid: str, resource_version: str) -> None:
        """Raises PreconditionFailed."""
        if self.uid and self.uid != uid:
            raise PreconditionFailed(identity, "UID", self.uid, uid)
        if self.resource_version and self.resource_version != resource_version:
            raise PreconditionFailed(identity, "ResourceVersion", self.resource_version, resource_version)
