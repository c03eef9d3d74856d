"""What is asked of a WireGuard device: by the kernel's messages, answered by a fake that keeps the kernel's rules and
by the kernel itself, and from a real wireguard-go over TUN.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from libs.netlink.codec import error_for
from libs.netlink.netns import in_netns
from libs.netlink.wireguard import WgChange, WgPeer, format_key
from libs.netlink.wireguard_fake import FakeWireguard
from libs.netlink.wireguard_keys import clamp, public_key
from libs.testkit.netns import can_make_namespaces, kernel_makes
from libs.testkit.topology import Namespace, remove
from services.felix.drivers.wireguard import Devices, FirstOf, KernelDevices, Unsupported, WireguardError
from services.felix.drivers.wireguard_userspace import UserspaceDevices

HAVE_WIREGUARD_GO = shutil.which("wireguard-go") is not None and Path("/dev/net/tun").exists() and can_make_namespaces()
PRIVATE = clamp(bytes(range(32)))
A, B = public_key(clamp(b"\1" * 32)), public_key(clamp(b"\2" * 32))


class Stage:
    """One device, just made."""

    def __init__(self, devices: Devices, name: str) -> None:
        self.devices, self.name = devices, name
        devices.create(name)

    def change(self, change: WgChange) -> None:
        self.devices.change(self.name, change)

    def peers(self) -> dict[bytes, WgPeer]:
        return self.devices.read(self.name).peers


@pytest.fixture(
    params=[
        "fake",
        pytest.param("kernel", marks=[pytest.mark.kernel, pytest.mark.stock_kernel]),
        pytest.param(
            "wireguard-go",
            marks=[
                pytest.mark.kernel,
                pytest.mark.skipif(not HAVE_WIREGUARD_GO, reason="wireguard-go is not here"),
            ],
        ),
    ]
)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    name = f"wg{uuid.uuid4().hex[:10]}"
    if request.param == "fake":
        fake = FakeWireguard()
        yield Stage(KernelDevices(make=fake.make, open_generic=lambda: fake), name)
        return
    if request.param == "kernel" and not kernel_makes("wireguard"):
        pytest.skip("this kernel has no WireGuard")
    space = Namespace(f"t-{name}")
    space.create()
    try:
        with in_netns(space.path):
            made = Stage(KernelDevices() if request.param == "kernel" else UserspaceDevices("wireguard-go"), name)
            made.peers()  # its channel to the kernel is one of this namespace for good
        yield made
    finally:
        remove([space])
        Path(f"/var/run/wireguard/{name}.sock").unlink(missing_ok=True)


def peer(key: bytes, *allowed: str, endpoint: str = "192.0.2.2", keepalive_s: int = 0) -> WgPeer:
    where = (ip_address(endpoint), 51820)
    return WgPeer(key, where, frozenset(map(ip_network, allowed)), keepalive_s)


def test_a_new_device_has_no_key_and_no_peers(stage: Stage) -> None:
    device = stage.devices.read(stage.name)
    assert device.public_key is None
    assert (device.fwmark, device.peers) == (0, {})


def test_the_public_key_is_that_of_the_private_one_and_only_that_is_told(stage: Stage) -> None:
    stage.change(WgChange(private_key=PRIVATE))
    device = stage.devices.read(stage.name)
    assert device.public_key == public_key(PRIVATE)
    assert PRIVATE.hex() not in repr(device)
    assert format_key(PRIVATE) not in repr(device)
    assert "private" not in repr(WgChange(private_key=PRIVATE))


def test_port_and_mark_are_set_and_what_is_not_said_stays(stage: Stage) -> None:
    stage.change(WgChange(private_key=PRIVATE, listen_port=51833, fwmark=0x200000))
    stage.change(WgChange(fwmark=0x100000))
    device = stage.devices.read(stage.name)
    assert (device.listen_port, device.fwmark, device.public_key) == (51833, 0x100000, public_key(PRIVATE))


def test_peers_of_both_families_come_back_as_they_were_put(stage: Stage) -> None:
    one = peer(A, "10.65.1.0/26", "10.65.9.7/32", "0.0.0.0/0", keepalive_s=25)
    two = peer(B, "fd00:65:1::/122", "fd00::7/128", "10.66.0.0/16", "10.67.0.0/16", "10.68.0.0/16",
               endpoint="2001:db8::2")  # fmt: skip
    stage.change(WgChange(put=(one, two)))
    assert stage.peers() == {A: one, B: two}
    stats = stage.devices.read(stage.name).stats
    assert {(s.handshake_s, s.received_bytes, s.sent_bytes) for s in stats.values()} == {(0.0, 0, 0)}


def test_a_peer_that_is_put_again_has_what_is_said_now_and_nothing_of_before(stage: Stage) -> None:
    stage.change(WgChange(put=(peer(A, "10.65.1.0/26", "10.65.2.0/26", keepalive_s=25),)))
    again = peer(A, "10.65.2.0/26", "10.65.3.0/26", endpoint="192.0.2.9")
    stage.change(WgChange(put=(again,)))
    assert stage.peers() == {A: again}
    stage.change(WgChange(put=(peer(A),)))
    assert stage.peers()[A].allowed == frozenset()


def test_a_network_that_moves_to_another_peer_leaves_the_first(stage: Stage) -> None:
    stage.change(WgChange(put=(peer(A, "10.65.1.0/26", "10.65.2.0/26"),)))
    for order in (
        (peer(B, "10.65.1.0/26"), peer(A, "10.65.2.0/26")),
        (peer(A, "10.65.1.0/26"), peer(B, "10.65.2.0/26")),
    ):
        stage.change(WgChange(put=order))
        assert stage.peers() == {one.public_key: one for one in order}


def test_a_network_that_is_given_to_another_peer_alone_leaves_the_first_too(stage: Stage) -> None:
    stage.change(WgChange(put=(peer(A, "10.65.1.0/26", "10.65.2.0/26"),)))
    stage.change(WgChange(put=(peer(B, "10.65.1.0/26"),)))
    assert stage.peers() == {A: peer(A, "10.65.2.0/26"), B: peer(B, "10.65.1.0/26")}


def test_dropped_peers_go_and_dropping_a_stranger_is_fine(stage: Stage) -> None:
    stage.change(WgChange(put=(peer(A, "10.65.1.0/26"), peer(B, "10.65.2.0/26"))))
    stage.change(WgChange(drop=(A, public_key(clamp(b"\3" * 32)))))
    assert stage.peers() == {B: peer(B, "10.65.2.0/26")}


def test_drop_and_put_in_one_change(stage: Stage) -> None:
    stage.change(WgChange(put=(peer(A, "10.65.1.0/26"),)))
    stage.change(WgChange(drop=(A,), put=(peer(B, "10.65.1.0/26"),)))
    assert stage.peers() == {B: peer(B, "10.65.1.0/26")}


def test_our_own_key_is_no_peer(stage: Stage) -> None:
    stage.change(WgChange(private_key=PRIVATE, put=(peer(public_key(PRIVATE), "10.65.1.0/26"), peer(A))))
    assert set(stage.peers()) == {A}


def test_many_peers_and_networks_need_several_messages(stage: Stage) -> None:
    keys = [public_key(clamp(bytes((number, 7)) * 16)) for number in range(60)]
    peers = {
        key: peer(key, *(f"10.{number}.{n}.0/26" for n in range(40)), f"fd00:{number:x}::/122")
        for number, key in enumerate(keys)
    }
    crowded = public_key(clamp(b"\4" * 32))
    peers[crowded] = peer(crowded, *(f"172.16.{n // 64}.{n % 64 * 4}/30" for n in range(2500)))
    stage.change(WgChange(put=tuple(peers.values())))
    assert stage.peers() == peers


def test_an_empty_change_is_none(stage: Stage) -> None:
    stage.change(WgChange())
    assert stage.peers() == {}


def test_a_device_that_is_not_there_is_an_error_that_names_it(stage: Stage) -> None:
    for call in (
        lambda: stage.devices.read("wgnothere"),
        lambda: stage.devices.change("wgnothere", WgChange(fwmark=1)),
    ):
        with pytest.raises(WireguardError, match="wgnothere"):
            call()


def test_where_nobody_can_make_one_all_reasons_are_told() -> None:
    def refuse(name: str) -> None:
        raise error_for(95, f"link {name}", "Unknown device type")

    devices = FirstOf(KernelDevices(make=refuse), UserspaceDevices("no-such-program-here"))
    with pytest.raises(Unsupported, match="this kernel has no WireGuard; no-such-program-here is not installed"):
        devices.create("wg0")


def test_the_kernels_is_taken_before_the_other_and_a_link_of_another_kind_is_nobodys() -> None:
    fake = FakeWireguard()
    devices = FirstOf(
        KernelDevices(make=fake.make, open_generic=lambda: fake), UserspaceDevices("no-such-program-here")
    )
    devices.create("wg0")
    assert set(fake.devices) == {"wg0"}
    assert devices.found("wg0", "wireguard")
    assert not devices.found("wg0", "vxlan")
