"""The reflector that ExaBGP needs beside itself: what one neighbour says is said to the other. Arguments: the receiver.

ExaBGP passes messages on to a process and keeps no table; so what is withdrawn when the sender goes is kept here.
"""

import json
import sys


def main() -> None:
    receiver = sys.argv[1]
    known: set[str] = set()
    for line in sys.stdin:
        if not line.startswith("{"):
            continue
        message = json.loads(line.replace('""', '"'))
        neighbour = message.get("neighbor", {})
        if neighbour.get("address", {}).get("peer") == receiver:
            continue
        if message["type"] == "state" and neighbour.get("state") == "down":
            for prefix in known:
                sys.stdout.write(f"neighbor {receiver} withdraw route {prefix}\n")
            known.clear()
        update = neighbour.get("message", {}).get("update", {}) if message["type"] == "update" else {}
        at = update.get("attribute", {})
        for hops in update.get("announce", {}).values():
            for hop, nlris in hops.items():
                prefixes = [one["nlri"] for one in nlris if "nlri" in one]
                known.update(prefixes)
                words = f"next-hop {hop} origin {at.get('origin', 'igp')} med {at.get('med', 0)}"
                words += f" local-preference {at.get('local-preference', 100)}"
                words += f" as-path [ {' '.join(map(str, at.get('as-path', [])))} ]"
                words += f" community [ {' '.join(f'{a}:{b}' for a, b in at.get('community', []))} ]"
                sys.stdout.write(f"neighbor {receiver} announce attributes {words} nlri {' '.join(prefixes)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
