"""Addresses of virtual machines: one handle per machine instead of one per sandbox, so that a restart or a migration
finds the address of before. Pure.

With the cluster's setting `kubeVirtVMAddressPersistence` off, a machine's pod is a pod like any other.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from libs.ipam.config import IpamConfig

MAX_HANDLE = 128


@dataclass(frozen=True, slots=True)
class Holder:
    """max_per_handle: for AssignRequest; 1: what the handle has already is given again."""

    handle: str
    max_per_handle: int


def vm_handle(network: str, namespace: str, machine: str) -> str:
    """`<network>.vmi.<namespace>.<machine>`; from 128 characters on a digest stands for the last two parts."""
    prefix, suffix = f"{network}.vmi.", f"{namespace}.{machine}"
    if len(prefix) + len(suffix) <= MAX_HANDLE:
        return prefix + suffix
    digest = base64.urlsafe_b64encode(hashlib.sha256(suffix.encode()).digest()).decode().rstrip("=")
    return f"{prefix}_{digest}"[:MAX_HANDLE]


def holder(config: IpamConfig, network: str, container_id: str, *, namespace: str = "", machine: str = "") -> Holder:
    """Who holds the addresses of a sandbox. machine: the virtual machine that runs in it, "" for a plain pod."""
    if machine and config.vm_address_persistence:
        return Holder(vm_handle(network, namespace, machine), 1)
    return Holder(f"{network}.{container_id}", 0)
