"""The role file of a server that stands alone: YAML documents of RBAC's own kinds, read again when they change."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from services.apiserver.core import rbac
from services.apiserver.core.attributes import Attributes, attributes_of
from services.apiserver.core.ports import Decision
from services.apiserver.core.rbac import Roles
from services.apiserver.core.request import RequestInfo, User
from services.apiserver.core.reviews import Granted
from services.apiserver.shell.reload import Followed

log = logging.getLogger(__name__)
MAX_BYTES = 16 * 1024 * 1024


class RoleFile:
    """A Judge and an Authorizer. Raises OSError and ValueError when the file cannot be used at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._roles = Roles()
        self.file = Followed("roles", [path], self._load)

    def _load(self) -> None:
        self._roles = read(self._path)
        for text in self._roles.dangling:
            log.warning("binding grants nothing", extra={"binding": text, "path": str(self._path)})

    async def authorize(self, user: User, attributes: Attributes) -> Decision:
        return self._roles.decide(user, attributes)

    def granted(self, user: User, namespace: str) -> Granted:
        return Granted(self._roles.rules(user, namespace))

    async def decide(self, user: User, info: RequestInfo) -> Decision:
        return self._roles.decide(user, attributes_of(info))


def read(path: Path) -> Roles:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes")
    try:
        return rbac.build(yaml.load_all(content, Loader=_Loader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from error
    except rbac.RoleError as error:
        raise ValueError(f"{path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """Without aliases: a small file must not become a large object."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not supported in a role file")
        return super().compose_node(parent, index)
