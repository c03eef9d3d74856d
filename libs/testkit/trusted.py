"""Servers that trust nobody without a certificate: etcd with users and roles, NATS with permissions, each identity's
settings. Made for tests; what it makes is what `calicoctl trust` and `calicoctl datastore auth` make for clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from libs.bus.config import BusConfig
from libs.store.config import StoreConfig
from libs.store.connection import Connection
from libs.testkit.servers import EtcdServer, NatsServer
from libs.trust import etcd_auth, etcd_roles, identities, nats_config
from libs.trust.authority import Authority

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class EtcdFiles(TypedDict, total=False):
    cert_file: Path
    key_file: Path
    ca_file: Path


class Trust:
    """An authority, and a certificate for every identity of a cluster with these nodes."""

    def __init__(self, directory: Path, nodes: Sequence[str], *, addresses: Sequence[str] = LOOPBACK) -> None:
        self.authority = Authority.create(directory)
        self.nodes = tuple(nodes)
        for server in identities.SERVERS:
            self.authority.issue(server, names=addresses)
        people = (*identities.COMPONENTS, *identities.PEOPLE, identities.ROOT)
        for identity in (*people, *map(identities.node, nodes)):
            self.authority.issue(identity)

    def files(self, identity: str) -> Path:
        return self.authority.directory / identity.replace(":", ".")

    def env(self, identity: str) -> dict[str, str]:
        """What a program of that identity is given beside the servers' addresses."""
        at = self.files(identity)
        return {
            "ETCD_CA_CERT_FILE": str(at / "ca.crt"), "ETCD_CERT_FILE": str(at / "tls.crt"),
            "ETCD_KEY_FILE": str(at / "tls.key"), "NATS_CA": str(at / "ca.crt"), "NATS_CERT": str(at / "tls.crt"),
            "NATS_KEY": str(at / "tls.key"),
        }  # fmt: skip

    def etcd_files(self) -> EtcdFiles:
        """Arguments of EtcdServer."""
        at = self.files(identities.ETCD)
        return {"cert_file": at / "tls.crt", "key_file": at / "tls.key", "ca_file": at / "ca.crt"}

    def nats_text(self) -> str:
        """Configuration for NatsServer."""
        files = nats_config.ServerFiles(self.files(identities.NATS))
        return nats_config.server(files) + nats_config.users(nats_config.cluster(self.nodes))

    def store_config(self, etcd: EtcdServer | str, identity: str) -> StoreConfig:
        endpoint = etcd if isinstance(etcd, str) else etcd.endpoint
        return StoreConfig.from_env({"ETCD_ENDPOINTS": endpoint} | self.env(identity))

    def bus_config(self, nats: NatsServer | str, identity: str) -> BusConfig:
        url = nats if isinstance(nats, str) else nats.url
        made = BusConfig.from_env({"NATS_URL": url} | self.env(identity))
        return replace(made, reconnect_min_s=0.01, reconnect_max_s=0.1, watchdog_s=2.0)

    async def enable_auth(self, endpoint: str) -> list[etcd_auth.Step]:
        """Users and roles, authentication on; what was done."""
        connection = Connection(self.store_config(endpoint, identities.ROOT))
        try:
            steps = etcd_auth.plan(await etcd_auth.read(connection), etcd_roles.users(self.nodes))
            await etcd_auth.carry_out(connection, steps, lambda step: None)
        finally:
            await connection.close()
        return steps
