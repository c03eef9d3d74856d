"""One command on a distribution's kernel: in a virtual machine whose root is this machine's, read-only beneath memory.

Packages (`./dev` unpacks them): linux-image, qemu-system-x86, busybox-static, kmod. QEMU translates each instruction,
some ten times slower than here: hardware's help (KVM) is not to be had on every machine, and on one it hung.
"""

from __future__ import annotations

import lzma
import os
import shlex
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from libs.testkit import packages, patience
from libs.testkit.stock_kernel.initramfs import Entry, pack

PACKAGES = packages.CACHE / "stock-kernel"
_SCRIPTS = Path(__file__).resolve().parent
_FOR_ROOT = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
"""Modules that a root made of the host's files takes."""
_ITS_OWN = ("dev", "proc", "run", "sys", "tmp")
"""What the machine has in place of the host's."""
NAME = "stock-kernel"
_SETUP_SECTS, _PAYLOAD = 0x1F1, 0x248  # in the header of a kernel's image: setup_sects, payload_offset
_ARGUMENTS = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable"
"""Without defences against its own programs, and with the cheap clock: both cost QEMU much."""
SLOWNESS = 8
"""How many times longer than here things may take there."""


class MachineError(Exception):
    """It could not be started, or ended before its command."""


def missing() -> str:
    """What is not here, or nothing."""
    needed = ("usr/bin/qemu-system-x86_64", "bin/busybox", "bin/kmod")
    lacking = [Path(path).name for path in needed if not (PACKAGES / path).exists()]
    if not list((PACKAGES / "boot").glob("vmlinuz-*")):
        lacking.append("a kernel")
    if (place := _SCRIPTS.parts[1]) in _ITS_OWN:
        lacking.append(f"the project, which is below /{place} of this machine")
    return ", ".join(lacking)


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    cpus: int = 2,
    memory_mib: int = 8192,
    timeout_s: float = 3600,
) -> int:
    """Its exit status; what it says goes to our standard output.

    cwd, and every path in the command: this machine's. Only below /run/share does what it writes outlive it; $SHARE.
    Raises MachineError, subprocess.TimeoutExpired.
    """
    if lacking := missing():
        raise MachineError(f"not here: {lacking}")
    (kernel,) = (PACKAGES / "boot").glob("vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    with tempfile.TemporaryDirectory(prefix="stock-kernel-") as directory:
        share = Path(directory) / "share"
        share.mkdir()
        (share / "command").write_text(_script(command, cwd, env))
        image, linux = Path(directory) / "initramfs", Path(directory) / "vmlinux"
        image.write_bytes(pack(_initramfs(release)))
        linux.write_bytes(unpacked(kernel.read_bytes()))
        done = subprocess.run(
            _qemu(linux, image, share, cpus, memory_mib), env=packages.environment(PACKAGES), stdin=subprocess.DEVNULL,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        try:
            return int((share / "status").read_text())
        except (OSError, ValueError):
            raise MachineError(f"the virtual machine ended before its command; exit status {done.returncode}") from None


def _script(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    exported = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
    return (  # the sub-shell: the command cannot end the first program
        f"PACKAGES={shlex.quote(str(PACKAGES))}\nNAME={NAME}\n"
        f"{(_SCRIPTS / 'command.sh').read_text()}{exported}"
        f"(cd {shlex.quote(str(cwd))} && exec {shlex.join(command)})\necho $? >/run/share/status\n"
    )


def unpacked(image: bytes) -> bytes:
    """The kernel inside of a bzImage, which would take half a minute to unpack itself. Format: the kernel's
    Documentation/arch/x86/boot.rst; xz, as Debian has it. Raises MachineError.
    """
    sectors = image[_SETUP_SECTS] or 4
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (sectors + 1) * 512 + offset
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[start : start + length])
    except lzma.LZMAError as error:
        raise MachineError(f"the kernel is not packed with xz: {error}") from None


def _initramfs(release: str) -> Iterator[Entry]:
    modules = PACKAGES / "lib/modules" / release
    order = list(_with_dependencies(modules / "modules.dep"))
    yield Entry("modules", None)
    for path in order:
        yield Entry(f"modules/{path.name}", (modules / path).read_bytes())
    yield Entry("modules/order", "".join(f"{path.name}\n" for path in order).encode())
    yield Entry("busybox", (PACKAGES / "bin/busybox").read_bytes(), executable=True)
    yield Entry("init", (_SCRIPTS / "init.sh").read_bytes(), executable=True)


def _with_dependencies(index: Path) -> Iterator[Path]:
    """Files of the modules for the root, each after those that it needs."""
    needs: dict[str, tuple[Path, list[Path]]] = {}
    for line in index.read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[Path(path).stem] = (Path(path), [Path(one) for one in rest.split()])
    seen: set[Path] = set()
    for name in _FOR_ROOT:
        module, deeper = needs[name]  # the file names the deepest last
        for found in (*reversed(deeper), module):
            if found not in seen:
                seen.add(found)
                yield found


def _qemu(kernel: Path, initramfs: Path, share: Path, cpus: int, memory_mib: int) -> list[str]:
    def files(tag: str, path: Path, *options: str) -> list[str]:
        return ["-virtfs", ",".join(["local", f"path={path}", f"mount_tag={tag}", "security_model=none", *options])]

    return [
        str(PACKAGES / "usr/bin/qemu-system-x86_64"),
        "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,-avx,-avx2,-xsave",
        "-smp", str(cpus), "-m", str(memory_mib), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-L", str(PACKAGES / "usr/share/qemu"), "-L", str(PACKAGES / "usr/share/seabios"),
        "-serial", "stdio", "-device", "virtio-rng-pci",
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", _ARGUMENTS,
        *files("host", Path("/"), "readonly=on", "multidevs=remap"), *files("share", share),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Of a command of this project: what finds its programs and its caches, and how patient it must be."""
    names = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "XDG_CACHE_HOME")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {patience.VARIABLE: f"{SLOWNESS}"}
