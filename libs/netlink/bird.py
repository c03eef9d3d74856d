"""Is a BIRD on this host? While it is, routes with its protocol number are no leftovers."""

from __future__ import annotations

from pathlib import Path

_BIRD_SOCKETS = ("/bird.ctl", "/bird6.ctl")


def bird_runs(proc: Path = Path("/proc")) -> bool:
    """A BIRD in our network namespace: a process that we see or, where a container hides those of its host, the socket
    that one listens at, which the kernel tells by network namespace.
    """
    try:
        own = (proc / "thread-self/ns/net").stat().st_ino
        sockets = (proc / "thread-self/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return False
    if any(line.endswith(_BIRD_SOCKETS) for line in sockets):
        return True
    for comm in proc.glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() in ("bird", "bird6") and (comm.parent / "ns/net").stat().st_ino == own:
                return True
        except OSError:
            continue
    return False
