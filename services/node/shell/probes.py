"""Asks felix and bgp of this node how they are. Blocking: command lines use it as it is, daemons in a thread."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from libs.bus.bgp import Peer
from libs.runtime.unix_http import UnixConnection
from services.node.core.bgp_health import of_family, problem

TIMEOUT_S = 5.0
_peers = msgspec.json.Decoder(list[Peer])


def http_problem(base: str, probe: str) -> str:
    """probe: liveness or readiness. "" when it is good, else what was said, in one line."""
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname or "localhost", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"/{probe}")
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from {base}/{probe}: {error or type(error).__name__}"
    finally:
        connection.close()
    if answer.status in (200, 204):
        return ""
    bad = [" ".join(line.split()) for line in body.splitlines() if " bad" in line or "timed out" in line]
    return f"{base}/{probe} says {answer.status}: {'; '.join(bad) or body.strip()[:200]}"


def answered(said: str) -> bool:
    """said: of one of these. Whoever says that it is not well is there, as is one that is well."""
    return not said or " says " in said


def bgp_peers(socket: Path) -> list[Peer]:
    """Raises OSError; ValueError with what the speaker says while it has no settings."""
    connection = UnixConnection(socket)
    connection.timeout = TIMEOUT_S
    try:
        connection.request("GET", "/peers")
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{socket}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(body.decode(errors="replace").strip())
    return _peers.decode(body)


def bgp_live_problem(socket: Path) -> str:
    """It answers, though perhaps without settings yet."""
    try:
        bgp_peers(socket)
    except ValueError:
        return ""
    except OSError as error:
        return f"no BGP speaker answers at {socket}: {error.strerror or error}"
    return ""


def bgp_ready_problem(socket: Path, started: Path, threshold_s: float, versions: tuple[int, ...] = (4, 6)) -> str:
    """started: a file that was written when the node started up."""
    try:
        peers = bgp_peers(socket)
    except OSError as error:
        return f"no BGP speaker answers at {socket}: {error.strerror or error}"
    except ValueError as error:
        return f"the BGP speaker: {error}"
    try:
        since_s = time.time() - started.stat().st_mtime
    except OSError:
        since_s = 0.0
    found = [problem(of_family(peers, v), since_start_s=since_s, threshold_s=threshold_s) for v in versions]
    return "; ".join(one for one in found if one)
