"""Container images made on the spot: a few static programs as an OCI layout in a tar file, which containerd imports.

No registry is asked. Names are fully qualified ("localhost/probe:1"), else a kubelet would look for them elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs.runtime.compile_c import compile_c
from libs.testkit.processes import probe_program

PAUSE, PROBE = "localhost/pause:1", "localhost/probe:1"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"


@dataclass(frozen=True, slots=True)
class Image:
    """name: with registry and tag. files: path inside without a leading slash -> file outside."""

    name: str
    entrypoint: Sequence[str]
    files: Mapping[str, Path]
    links: Mapping[str, str] = field(default_factory=dict)
    """Path inside -> what it points to."""

    def write(self, target: Path) -> Path:
        """The archive, at `target`."""
        layer = self._layer()
        config = _json({
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Entrypoint": list(self.entrypoint), "Env": ["PATH=/usr/bin:/bin:/"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        })  # fmt: skip
        media = "application/vnd.oci.image"
        manifest = _json({
            "schemaVersion": 2,
            "mediaType": f"{media}.manifest.v1+json",
            "config": _descriptor(f"{media}.config.v1+json", config),
            "layers": [_descriptor(f"{media}.layer.v1.tar", layer)],
        })  # fmt: skip
        named = {
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rpartition(":")[2],
        }
        entry = _descriptor(f"{media}.manifest.v1+json", manifest) | {"annotations": named}
        index = _json({"schemaVersion": 2, "manifests": [entry]})
        with tarfile.open(target, "w") as tar:
            _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _add(tar, "index.json", index)
            for blob in (manifest, config, layer):
                _add(tar, f"blobs/{_digest(blob).replace(':', '/')}", blob)
        return target

    def _layer(self) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            folders = {str(parent) for path in (*self.files, *self.links) for parent in Path(path).parents}
            for folder in sorted({"etc", "tmp", "proc", "sys", "dev", *folders} - {"."}):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
                tar.addfile(entry)
            _add(tar, "etc/passwd", _ACCOUNTS.encode())
            for path, source in self.files.items():
                _add(tar, path, source.read_bytes(), mode=0o755)
            for path, points_to in self.links.items():
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, points_to
                tar.addfile(entry)
        return made.getvalue()


def pause() -> Image:
    return Image(PAUSE, ["/pause"], {"pause": compile_c(Path(__file__).with_name("pause.c"))})


def probe() -> Image:
    """`args: [NAME, tcp:PORT…, udp:PORT…]`."""
    return Image(PROBE, ["/probe", "0"], {"probe": probe_program()})


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))
