"""What a controller that copies Kubernetes' objects into the datastore does: objects in, objects out. Pure.

    Key of a Kubernetes object, the object, what is stored of it ──► desired() ──► what should be stored of it

`shell/synchronizer.py` brings the datastore to it, for every translation in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from libs import model
from libs.kube.objects import Key, KubeObject, Source
from libs.model.base import ObjectMeta, Resource
from libs.model.keys import ResourceKey

T_contra = TypeVar("T_contra", bound=KubeObject, contravariant=True)


@dataclass(frozen=True, slots=True)
class Desired:
    """resources: what should be stored, by key, with the metadata of what is stored where there is such. problems: what
    of the object could not be used, for the log.
    """

    resources: Mapping[ResourceKey, Resource] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class Translation(Protocol[T_contra]):
    """source: the kind that is read. kind: the kind that is written. creates: what is missing is created, and what has
    no source is deleted. Without it, stored objects are only changed.
    """

    @property
    def source(self) -> Source[Any]: ...

    @property
    def kind(self) -> type[Resource]: ...

    @property
    def creates(self) -> bool: ...

    @property
    def deletes(self) -> bool: ...

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        """Which object this one is made from; None when it is none of ours, and so never touched. stored: None when it
        cannot be read.
        """
        ...

    def desired(self, key: Key, found: T_contra, stored: Mapping[ResourceKey, Resource]) -> Desired:
        """stored: those that can be read of which the object is the owner. Raises ValueError when nobody can tell: then
        all stays as it is.
        """
        ...


def metadata_for(key: ResourceKey, stored: Mapping[ResourceKey, Resource]) -> ObjectMeta:
    """Of what is stored, which keeps its uid, labels and annotations; else of a new one."""
    if (there := stored.get(key)) is not None:
        return there.metadata
    return ObjectMeta(name=key.name, namespace=key.namespace)


def with_labels(metadata: ObjectMeta, labels: Mapping[str, str]) -> ObjectMeta:
    return msgspec.structs.replace(metadata, labels=dict(labels))


__all__ = ["Desired", "ResourceKey", "Translation", "metadata_for", "model", "with_labels"]
