"""`python -m tests.interop.capture FILE`: what real daemons say, octet by octet, for the codec's unit tests.

To each comes a neighbour with AS numbers of four octets and one with two. JSON: {"bird, four octets": [message in
hex, …]}, from its OPEN to the last UPDATE of its routes (`ROUTES`); KEEPALIVEs are left out. As root; the file is
read by a person before it is committed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from libs.testkit.routers.lab import Lab
from libs.testkit.routers.model import Neighbour, Route, Router
from libs.testkit.routers.peer import Peer
from libs.testkit.routers.raw import KEEPALIVE, OPEN, RawPeer, capabilities, message, open_body
from tests.interop.pairs import KINDS, OUR_AS

THEIR_AS = 4_200_000_002
ROUTES = (
    Route(
        "10.1.0.0/24",
        origin="egp",
        as_path=(65010, 4_200_000_010),
        med=77,
        communities=frozenset({(64512, 1), (64512, 2)}),
        large=frozenset({(64512, 1, 2), (4_200_000_000, 3, 4)}),
    ),
    Route("10.1.2.0/23"),
    Route("fd02::/64", communities=frozenset({(64512, 6)})),
)


def capture(kind: type[Peer], *, as4: bool) -> list[str]:
    """Whole messages in hex, until all routes were announced."""
    heard: list[bytes] = []
    with Lab() as lab:
        a, b = lab.site("a"), lab.site("b")
        neighbour = Neighbour(a.ipv4, OUR_AS, passive=True, families=("ipv4", "ipv6"), graceful_restart=120)
        daemon = lab.add(kind, "b", Router(THEIR_AS, "10.9.0.2", (neighbour,), ROUTES))
        with RawPeer.dial(a, b.ipv4) as raw:
            own = open_body(OUR_AS, 90, "10.9.0.1", capabilities(OUR_AS, ("ipv4", "ipv6"), as4=as4))
            raw.send(message(OPEN, own), message(KEEPALIVE))
            while True:
                try:
                    came = raw.receive(6)
                except TimeoutError:
                    break
                assert came is not None, daemon.log_tail()
                if came.kind != KEEPALIVE:
                    heard.append(message(came.kind, came.body))
    return [one.hex() for one in heard]


def main() -> None:
    found = {
        f"{name}, {'four' if as4 else 'two'} octets": capture(kind, as4=as4)
        for name, kind in sorted(KINDS.items())
        for as4 in (True, False)
    }
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
