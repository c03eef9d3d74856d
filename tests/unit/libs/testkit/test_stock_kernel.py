"""The virtual machine's first file system, and what becomes of a command in it; a script plays QEMU."""

from __future__ import annotations

import lzma
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.testkit.stock_kernel import machine
from libs.testkit.stock_kernel.initramfs import Entry, pack
from libs.testkit.stock_kernel.machine import MachineError, environment, run, unpacked

MODULES = {
    "kernel/virtio_ring.ko": "",
    "kernel/virtio_pci.ko": "kernel/virtio_ring.ko",
    "kernel/9p/9pnet.ko": "",
    "kernel/9p/9pnet_virtio.ko": "kernel/9p/9pnet.ko kernel/virtio_ring.ko",
    "kernel/fscache.ko": "",
    "kernel/netfs.ko": "kernel/fscache.ko",
    "kernel/9p/9p.ko": "kernel/9p/9pnet.ko kernel/netfs.ko kernel/fscache.ko",
    "kernel/overlay.ko": "",
}


def read(archive: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(path, mode, content) of an archive in cpio's "newc" format, the trailer among them."""
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at += 110 + name_size
        at += -at % 4
        yield name[:-1].decode(), mode, archive[at : at + size]
        at += size
        at += -at % 4


def test_what_is_packed_is_read_back() -> None:
    entries = [
        Entry("a", None),
        Entry("a/bc", b"12345"),
        Entry("init", b"#!/bin/sh\n", executable=True),
        Entry("e", b""),
    ]
    *found, last = read(pack(entries))
    assert found == [
        ("a", stat.S_IFDIR | 0o755, b""),
        ("a/bc", stat.S_IFREG | 0o644, b"12345"),
        ("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
        ("e", stat.S_IFREG | 0o644, b""),
    ]
    assert last == ("TRAILER!!!", 0, b"")


def image(payload: bytes) -> bytes:
    """A kernel's image: two sectors of set-up code after the first, something to skip, then the payload."""
    made = bytearray(3 * 512)
    made[0x1F1] = 2
    struct.pack_into("<II", made, 0x248, 40, len(payload))
    return bytes(made) + bytes(40) + payload + b"tail"


def test_the_kernel_is_taken_out_of_its_image() -> None:
    assert unpacked(image(lzma.compress(b"\x7fELF", lzma.FORMAT_XZ) + struct.pack("<I", 4))) == b"\x7fELF"
    with pytest.raises(MachineError, match="not packed with xz"):
        unpacked(image(b"\x28\xb5\x2f\xfd" * 8))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that a machine is made of, but the program that would run it."""
    made = tmp_path / "packages"
    needs = "".join(f"{name}: {needed}\n" for name, needed in MODULES.items())
    files = {
        "bin/busybox": b"busybox", "bin/kmod": b"kmod",
        "boot/vmlinuz-6.1.0-amd64": image(lzma.compress(b"\x7fELF", lzma.FORMAT_XZ)),
        **{f"lib/modules/6.1.0-amd64/{name}": name.encode() for name in MODULES},
        "lib/modules/6.1.0-amd64/modules.dep": needs.encode(),
    }  # fmt: skip
    for name, content in files.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr(machine, "PACKAGES", made)
    monkeypatch.setattr(machine, "_ITS_OWN", ())  # wherever this project is
    return made


def qemu(packages: Path, text: str) -> None:
    """$SHARE: the folder that the machine writes to; $INITRD: its first file system."""
    program = packages / "usr/bin/qemu-system-x86_64"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"""#!/bin/sh
INITRD=$(echo "$*" | sed 's/.*-initrd \\([^ ]*\\).*/\\1/')
SHARE=$(echo "$*" | sed 's/.*path=\\([^,]*\\),mount_tag=share.*/\\1/')
{text}
""")
    program.chmod(0o755)


def test_the_commands_exit_status_is_passed_on(packages: Path, tmp_path: Path) -> None:
    qemu(
        packages, 'cp "$SHARE/command" "$INITRD" "$OUT"; echo 7 >"$SHARE/status"; exit 0'.replace("$OUT", str(tmp_path))
    )
    command = ("pytest", "-k", "a or 'b'", "x y")
    assert run(command, cwd=tmp_path, env={"NAME": "it's"}) == 7
    script = tmp_path / "command"
    subprocess.run(["sh", "-n", script], check=True)
    (last,) = [line for line in script.read_text().splitlines() if "exec" in line]
    said = subprocess.run(
        ["sh", "-c", f"export NAME='it'\\''s'; {last.replace('exec pytest', 'exec printf %s,')}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "-k,a or 'b',x y,"
    assert "export NAME='it'\"'\"'s'" in script.read_text()


def test_modules_come_after_those_that_they_need(packages: Path, tmp_path: Path) -> None:
    qemu(packages, f'cp "$INITRD" {tmp_path}/initramfs; echo 0 >"$SHARE/status"')
    assert run(["true"], cwd=tmp_path, env={}) == 0
    files = {path: content for path, _, content in read((tmp_path / "initramfs").read_bytes())}
    order = files["modules/order"].decode().split()
    assert sorted(order) == sorted(Path(name).name for name in MODULES)
    for name, needs in MODULES.items():
        for needed in needs.split():
            assert order.index(Path(needed).name) < order.index(Path(name).name)
    assert files["modules/9p.ko"] == b"kernel/9p/9p.ko"
    assert files["busybox"] == b"busybox"


@pytest.mark.parametrize("status", ["", "what?"])
def test_a_machine_that_ends_before_its_command_is_an_error(packages: Path, tmp_path: Path, status: str) -> None:
    qemu(packages, f'test -z "{status}" || echo "{status}" >"$SHARE/status"; exit 3')
    with pytest.raises(MachineError, match="ended before its command; exit status 3"):
        run(["true"], cwd=tmp_path, env={})


def test_a_machine_that_does_not_end_is_ended(packages: Path, tmp_path: Path) -> None:
    qemu(packages, "exec sleep 60")
    with pytest.raises(subprocess.TimeoutExpired):
        run(["true"], cwd=tmp_path, env={}, timeout_s=0.3)


def test_what_is_not_here_is_named(packages: Path, tmp_path: Path) -> None:
    (packages / "bin/kmod").unlink()
    (packages / "boot/vmlinuz-6.1.0-amd64").unlink()
    with pytest.raises(MachineError, match="not here: qemu-system-x86_64, kmod, a kernel"):
        run(["true"], cwd=tmp_path, env={})


def test_a_project_that_the_machine_would_not_see_is_told(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu(packages, "exit 0")
    assert machine.missing() == ""
    place = Path(machine.__file__).parts[1]
    monkeypatch.setattr(machine, "_ITS_OWN", (place,))
    assert machine.missing() == f"the project, which is below /{place} of this machine"


def test_the_environment_of_a_command_is_patient_and_has_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS", "http://192.0.2.1")
    monkeypatch.setenv("PYTHONPATH", "/project")
    found = environment()
    assert "ETCD_ENDPOINTS" not in found
    assert found["PYTHONPATH"] == "/project"
    assert float(found["CALICO_TEST_PATIENCE"]) > 1
