"""An image with busybox in it, made here: a layer as a tar file, and a docker-archive that runtimes import."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

APPLETS = ("sh", "httpd", "ip", "sleep", "ping", "cat")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def layer(busybox: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        _add(tar, "bin/busybox", busybox.read_bytes(), mode=0o755)
        for name in APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return made.getvalue()


def docker_archive(name: str, content: bytes) -> bytes:
    """name: with a tag. The form of `docker save`: a manifest that names the configuration and the layers."""
    config = json.dumps({
        "architecture": _MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
    }).encode()  # fmt: skip
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for file, data in ((config_name, config), ("layer.tar", content), ("manifest.json", manifest)):
            _add(tar, file, data)
    return made.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))
