"""Names of chains and sets in our nftables tables: readable for people, accepted by nft, stable across restarts.

The ids of policies (`np/ns1/web`) are legal in nft's grammar, so `nft list chain ip calico pi-np/ns1/web` works as
typed; what is not legal gets a digest (libs.nftables.model.safe_name). Every name has a prefix of ours: nft refuses its
own keywords as names.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from libs.nftables.model import COMMENT_MAX, safe_name
from libs.policy.output import PolicyKey

MAX_CHAIN_NAME = 200  # below the kernel's 255: a policy's namespace and name may have 316 octets together
MAX_SET_NAME = 31  # as Calico's set names

_SET_ID = re.compile(r"(s|n|svc|svcnoport|u):([A-Za-z0-9_-]+)\Z")  # the policy calculation's kinds, and unions
_PLAIN = re.compile(r"[A-Za-z0-9/_.-]+\Z")


def digest(text: str, length: int) -> str:
    """The first `length` characters of the base64url SHA-256 of `text`."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:length]


def policy_chain(key: PolicyKey, inbound: bool) -> str:
    """`pi-np/ns1/web` holds the ingress rules of a policy, `po-…` its egress rules."""
    return safe_name(f"{'pi' if inbound else 'po'}-{key}", MAX_CHAIN_NAME)


def profile_chain(name: str, inbound: bool) -> str:
    return safe_name(f"{'pri' if inbound else 'pro'}-{name}", MAX_CHAIN_NAME)


def tier_chain(tier: str, inbound: bool, content: str) -> str:
    """The list chain of a tier. content: spells out everything that decides which list it is."""
    name = safe_name(f"ti-{tier}" if inbound else f"to-{tier}", MAX_CHAIN_NAME - 21)
    return f"{name}-{_content_digest(content)}"


def block_chain(inbound: bool, content: str) -> str:
    """A skip block. content: spells out everything that its chain does."""
    return f"{'bi' if inbound else 'bo'}-{_content_digest(content)}"


def _content_digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def interface_chain(prefix: str, interface: str) -> str:
    """`fh-eth0`: what `prefix` stands for, for one interface."""
    return safe_name(f"{prefix}-{interface}", MAX_CHAIN_NAME)


def workload_chain(interface: str, inbound: bool) -> str:
    """`tw-cali…`: to the workload (its ingress policy); `fw-cali…`: from it."""
    return interface_chain("tw" if inbound else "fw", interface)


def spoof_chain(interface: str) -> str:
    """Holds the foreign source prefixes that one workload may use."""
    return interface_chain("spoof", interface)


def ip_set(set_id: str) -> str:
    """Kernel name of an IP set, at most 29 characters, so that `-h` or `-n` may follow.

    `s:TqLoh…` keeps as much of its hash as fits, as Calico's names do; 19 characters, the fewest (`svcnoport:`), are
    114 bits. An id of another form is put behind `set-`.
    """
    if match := _SET_ID.match(set_id):
        return f"{match[1]}-{match[2]}"[: MAX_SET_NAME - 2]
    return safe_name(f"set-{set_id}", MAX_SET_NAME - 2)


def content_set(kind: str, values: Iterable[str]) -> str:
    """Name of a set that rules spell out themselves: `ports-80-443` when that is short, else `ports-x` and a digest.

    values: in canonical order; the same values always give the same name, so that all rules with them share one set.
    """
    text = "-".join(values)
    plain = f"{kind}-{text}"
    return plain if len(plain) <= MAX_SET_NAME and _PLAIN.match(text) else f"{kind}-x{digest(text, 20)}"


def comment(text: str) -> str:
    """`text` as a rule comment: printable ASCII without quotes, at most 127 octets, shortened in the middle.

    A quote or a newline would make the printed ruleset unreadable for `nft -f`. The beginning names the policy, the end
    the action.
    """
    clean = "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in text)
    if len(clean) <= COMMENT_MAX:
        return clean
    return f"{clean[:60]}..{clean[-(COMMENT_MAX - 62) :]}"
