"""What takes a real Calico's rules out of iptables, and nothing else. Pure.

In: the text of `iptables-save`. Out: text for `iptables-restore --noflush`, which changes each table in one step:

    *filter
    :cali-FORWARD - [0:0]             declared again, so emptied
    -D FORWARD … --comment "cali:…"   rules of Calico in chains of others
    -X cali-FORWARD
    COMMIT
"""

from __future__ import annotations

import re

CHAIN = "cali-"
_MARK = re.compile(r'--comment "?cali:')
_LEADS = re.compile(rf'(?:-j|-g|--jump|--goto) "?{CHAIN}')


def removal(saved: str) -> str:
    """ "" when there is nothing of Calico."""
    parts = []
    table, chains, rules = "", [], []  # type: str, list[str], list[str]
    for line in saved.splitlines():
        if line.startswith("*"):
            table, chains, rules = line, [], []
        elif line.startswith(f":{CHAIN}"):
            chains.append(line[1:].split(" ", 1)[0])
        elif line.startswith("-A ") and not line.startswith(f"-A {CHAIN}"):
            if _MARK.search(line) or _LEADS.search(line):
                rules.append("-D " + line.removeprefix("-A "))
        elif line == "COMMIT" and (chains or rules):
            emptied = [f":{chain} - [0:0]" for chain in chains]
            parts += [table, *emptied, *rules, *(f"-X {chain}" for chain in chains), "COMMIT"]
    return "\n".join(parts) + "\n" if parts else ""


def counted(text: str) -> tuple[int, int]:
    """(chains, rules of others' chains) that a removal takes out."""
    lines = text.splitlines()
    return sum(line.startswith("-X ") for line in lines), sum(line.startswith("-D ") for line in lines)
