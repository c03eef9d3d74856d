"""What a CNI request is about to do, as the journal holds it (services/felix/shell/journal.py). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Attachment = tuple[str, str]
"""Container id, interface in the container."""


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """How another plugin is called for the attachment's addresses: its name, CNI_* and standard input."""

    plugin: str
    environment: tuple[tuple[str, str], ...]
    config: str


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attachment in transition. handle: of IPAM. wep: name of the WorkloadEndpoint in `namespace`. delegation: who
    gave the addresses, if not Calico's IPAM.
    """

    verb: Literal["ADD", "DEL"]
    container: str
    ifname: str
    host_interface: str
    handle: str
    namespace: str
    wep: str
    netns: str = ""
    network: str = ""
    delegation: Delegation | None = None

    @property
    def attachment(self) -> Attachment:
        return self.container, self.ifname


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. Exactly one of the two."""

    begin: Entry | None = None
    end: Attachment | None = None


def replay(lines: Iterable[bytes]) -> tuple[dict[Attachment, Entry], list[bytes]]:
    """What is open, in the order of its beginning, and lines that are no records. The last lines may be torn, because
    nobody waited for them any more when the machine died: they are left out.
    """
    found: dict[Attachment, Entry] = {}
    bad: list[bytes] = []
    torn: list[bytes] = []
    for line in lines:
        if not line:
            continue
        try:
            record = msgspec.json.decode(line, type=Record)
        except msgspec.DecodeError:
            torn.append(line)
            continue
        bad += torn
        torn = []
        if record.begin is not None:
            found.pop(record.begin.attachment, None)
            found[record.begin.attachment] = record.begin
        elif record.end is not None:
            found.pop(record.end, None)
    return found, bad
