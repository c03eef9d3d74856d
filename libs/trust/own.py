"""Whether the certificate that a node was given is this node's. The library that reads certificates is 14 MB of memory,
which a node's agent needs for this once: it is asked as a program, `python -m libs.trust.own FILE`.
"""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from libs.trust import identities

_CERTIFICATES = ("ETCD_CERT_FILE", "NATS_CERT")
_KEYS = ("ETCD_KEY_FILE", "NATS_KEY")
_FILES = ("ETCD_CA_CERT_FILE", *_CERTIFICATES, "NATS_CA", *_KEYS)
_TIMEOUT_S = 20.0
NO_NAME = "(no common name)"


class NotOwn(Exception):
    """Files are missing, or are another node's; the text names them and tells where to get them."""


async def check(node: str, environ: Mapping[str, str]) -> str:
    """Looks at the files that the environment names. The common name of a certificate that is nobody's own, as it is
    used where all nodes share one (NO_NAME when it has none), else "". Raises NotOwn.
    """
    get = f"`calicoctl trust certs --node {node}` makes the files of this node, in calico-node.{node}/"
    if missing := _missing(environ):
        raise NotOwn(f"no certificate of this node: {missing}; {get}")
    shared = ""
    for name in dict.fromkeys(filter(None, (environ.get(variable, "") for variable in _CERTIFICATES))):
        whose = await _common_name(name)
        if whose.startswith(f"{identities.NODE}:"):
            if whose != f"{identities.NODE}:{node}":
                raise NotOwn(f"{name} is the certificate of {whose}, and this node is {node}; {get}")
        else:
            shared = whose or NO_NAME
    return shared


def exposed(environ: Mapping[str, str]) -> list[str]:
    """Keys that every user of this host can read: the file may be, and its directory entered (0755 is what kubelet
    makes of a directory that was not there). What cannot be looked at is left out.
    """
    found = []
    for name in dict.fromkeys(filter(None, (environ.get(variable, "") for variable in _KEYS))):
        with suppress(OSError):
            path = Path(name)
            if path.stat().st_mode & stat.S_IROTH and path.parent.stat().st_mode & stat.S_IXOTH:
                found.append(name)
    return found


def _missing(environ: Mapping[str, str]) -> str:
    for variable in _FILES:
        if (name := environ.get(variable, "")) and not Path(name).is_file():
            return f"{variable} is {name}, and there is no such file"
    return ""


async def _common_name(name: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "libs.trust.own", name, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, err = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):  # it ended just now
            process.kill()
        raise
    if process.returncode:
        raise NotOwn(err.decode().strip() or f"{name} could not be read")
    return out.decode().strip()


def main(name: str) -> int:
    from libs.trust.authority import AuthorityError, common_name

    try:
        print(common_name(Path(name)))
    except AuthorityError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
