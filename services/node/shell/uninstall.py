"""Takes everything of ours, and of a real Calico, off this host. What others made stays.

In this order, so that at no time a packet of a pod passes without policy: the plugin's configuration (no new pods),
pods' interfaces and the rest of the network, the rules last. The switches that forward packets stay as they are:
others may rely on them by now. The node's record in the datastore is not this host's to delete.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from errno import EBUSY
from pathlib import Path

from services.node.core.leftovers import NFT_ARP, NFT_TABLES, TUNL, is_ours
from services.node.drivers.kernel import HostKernel
from services.node.shell.takeover import Outcome, drop_tables, remove_xtables

PROGRAMS = ("calico", "calico-ipam")
BESIDE_CONF = ("calico-kubeconfig", "calico-tls")
STATE = (Path("/var/lib/calico"), Path("/var/run/calico"))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the installer and the services keep their files. interface_prefixes: of pods' interfaces."""

    conf_dir: Path
    conf_name: str
    bin_dirs: Sequence[Path]
    state: Sequence[Path] = STATE
    interface_prefixes: Collection[str] = ("cali",)

    def files(self) -> Iterator[Path]:
        yield self.conf_dir / self.conf_name
        for name in BESIDE_CONF:
            yield self.conf_dir / name
        for directory in self.bin_dirs:
            for name in PROGRAMS:
                yield directory / name


def uninstall(places: Places, *, keep_state: bool = False, dry_run: bool = False) -> Outcome:
    """Blocking. Goes on after a failure; a second run removes what the first could not. dry_run: only tells."""
    outcome = Outcome()
    for path in places.files():
        _remove(path, outcome, dry_run=dry_run)
    with HostKernel() as kernel:
        _links(kernel, places, outcome, dry_run=dry_run)
        _tunnel(kernel, outcome, dry_run=dry_run)
        _routes(kernel, outcome, dry_run=dry_run)
        remove_xtables(kernel, outcome, dry_run=dry_run)
        drop_tables(kernel, (*NFT_TABLES, NFT_ARP), outcome, dry_run=dry_run)
    if not keep_state:
        for path in places.state:
            _remove(path, outcome, dry_run=dry_run)
    return outcome


def _remove(path: Path, outcome: Outcome, *, dry_run: bool) -> None:
    held = False
    try:
        if not path.exists() and not path.is_symlink():
            return
        if not dry_run:
            if path.is_dir() and not path.is_symlink():
                held = any(path.iterdir())
                shutil.rmtree(path)
            else:
                path.unlink()
        outcome.removed.append(str(path))
    except OSError as error:
        if error.errno == EBUSY and path.is_dir() and not any(path.iterdir()):
            outcome.removed += [f"all in {path}"] * held  # mounted into a container: it stays, and nothing in it
        else:
            outcome.left.append(f"{path}: {error.strerror or error}")


def _links(kernel: HostKernel, places: Places, outcome: Outcome, *, dry_run: bool) -> None:
    for link in kernel.links(lambda name: name != TUNL and is_ours(name, places.interface_prefixes)):
        try:
            if not dry_run:
                kernel.drop_link(link)
            outcome.removed.append(f"interface {link.name}")
        except OSError as error:
            outcome.left.append(f"interface {link.name}: {error}")


def _tunnel(kernel: HostKernel, outcome: Outcome, *, dry_run: bool) -> None:
    """While our routes are there, which tell what of it is ours; without them a single address may be anybody's. With
    addresses of others on it, it stays up.
    """
    found = kernel.tunnel()
    if found is None:
        return
    link, ours, others = found
    if others and not ours:
        outcome.left += [
            f"{one} of interface {link.name}: no route of Calico's is left that tells whose it is; if it is Calico's:"
            f" ip address delete {one} dev {link.name}"
            for one in others
            if one.network.prefixlen == one.max_prefixlen
        ]
        return
    try:
        if not dry_run:
            (kernel.drop_tunnel_addresses if others else kernel.drop_tunnel)(link, ours)
    except OSError as error:
        outcome.left.append(f"interface {link.name}: {error}")
        return
    told = ", ".join(map(str, ours))
    outcome.removed.append(f"{told} of interface {link.name}" if others else f"interface {link.name}")


def _routes(kernel: HostKernel, outcome: Outcome, *, dry_run: bool) -> None:
    routes = kernel.our_routes()
    rules = kernel.wireguard_rules(routes)
    try:
        if not dry_run:
            kernel.drop_rules(rules)
            kernel.drop_routes(routes)
    except OSError as error:
        outcome.left.append(f"routes: {error}")
        return
    if routes:
        outcome.removed.append(f"{len(routes)} routes")
    if rules:
        counts = Counter(rule.version for rule in rules)
        shown = ", ".join(f"IPv{version}: {count}" for version, count in sorted(counts.items()))
        outcome.removed.append(f"rules of WireGuard: {shown}")
