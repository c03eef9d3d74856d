"""A bundle of files for somebody else's eyes: everything is scrubbed on its way in, and packed as .tar.gz."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from services.calicoctl.host.scrub import scrub_bytes

NEWEST_BYTES = 8 * 1024 * 1024
"""Of a file that is longer only so much of its end is taken."""


class Bundle:
    """directory: where its files are until `pack`."""

    def __init__(self, directory: Path, top: str) -> None:
        self.directory = directory
        self.top = top
        self.names: list[str] = []

    def add(self, name: str, content: str | bytes) -> None:
        """name: relative, with directories. A later one of the same name is added to the first."""
        data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        path = self.directory / self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(scrub_bytes(data))
        if name not in self.names:
            self.names.append(name)

    def copy(self, name: str, source: Path) -> None:
        """The end of a file; what cannot be read says so in its place."""
        try:
            with source.open("rb") as file:
                size = source.stat().st_size
                if size > NEWEST_BYTES:
                    file.seek(size - NEWEST_BYTES)
                    file.readline()  # the rest of a line that is cut could hide half a secret
                self.add(name, file.read(NEWEST_BYTES))
        except OSError as error:
            self.add(name, f"{source}: {error.strerror or error}\n")

    def copy_tree(self, name: str, source: Path) -> None:
        if not source.is_dir():
            self.add(f"{name}/MISSING", f"{source}: no such directory\n")
            return
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink():
                self.copy(f"{name}/{path.relative_to(source)}", path)

    def pack(self, target: Path) -> Path:
        """Readable by the user alone: it may still say more about a network than others should know."""
        target.touch(mode=0o600)
        with tarfile.open(target, "w:gz") as archive:
            archive.add(self.directory / self.top, self.top)
        return target


@contextmanager
def bundle(top: str, *, keep: bool = False) -> Iterator[Bundle]:
    """In a directory of its own, which goes at the end unless `keep`."""
    directory = Path(tempfile.mkdtemp(prefix="calico"))
    try:
        yield Bundle(directory, top)
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def stamp(now: datetime) -> str:
    return now.strftime("%Y%m%d_%H%M%S")
