"""k8s/nats.yaml as it stands, without Kubernetes: its configuration, its first step and its reloader, on a real
nats-server. Only where files lie, ports, and how long it sleeps are other ones (X01, X02, T06).
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from libs.bus import BusUnavailable, subjects
from libs.bus.config import BusConfig
from libs.bus.nats import connect
from libs.testkit.servers import NatsServer, free_port
from libs.testkit.trusted import Trust
from libs.trust import identities
from tests.contract.store_backends import eventually

pytestmark = pytest.mark.servers

PROJECT = Path(__file__).resolve().parents[2]
OBJECTS: dict[str, dict[str, Any]] = {
    one["kind"]: one for one in yaml.safe_load_all((PROJECT / "k8s/nats.yaml").read_text())
}


class Server(NatsServer):
    given: dict[str, str]

    def environment(self) -> dict[str, str]:
        return self.given


class Pod:
    """What the volumes of a pod of calico-nats hold, below one directory."""

    def __init__(self, directory: Path) -> None:
        self.trust = Trust(directory / "ca", ("node1", "node2"))
        self.certs = self.trust.files(identities.NATS)
        self.at = directory / "nats"
        for name in ("config", "generated"):
            (self.at / name).mkdir(parents=True)
        self.nodes("node1")
        self.programs = directory / "bin"  # what the image has
        self.programs.mkdir()
        calicoctl = self.programs / "calicoctl"
        calicoctl.write_text(f'#!/bin/sh\nexec {sys.executable} -m services.calicoctl "$@"\n')
        calicoctl.chmod(0o755)
        (self.programs / "nats-server").symlink_to(Path(sys.executable).parent / "nats-server")
        self.log = directory / "reloader.log"
        self.monitor = free_port("127.0.0.1")
        self.stack = ExitStack()
        self.server: Server

    def nodes(self, *names: str) -> None:
        (self.at / "config/nodes").write_text("".join(f"{name}\n" for name in names))

    def here(self, text: str) -> str:
        return text.replace("/certs/", f"{self.certs}/").replace("/etc/nats/", f"{self.at}/")

    def script(self, container: str) -> list[str]:
        spec = OBJECTS["DaemonSet"]["spec"]["template"]["spec"]
        (found,) = (one for one in spec["initContainers"] + spec["containers"] if one["name"] == container)
        shell, flag, text = found["args"]
        assert "sleep 55" in text or container == "permissions"
        text = self.here(text).replace("8222", str(self.monitor))
        return [shell, flag, text.replace("sleep 55", "sleep 0.5").replace("sleep 5;", "sleep 0.1;")]

    def permissions(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.script("permissions"), env=self.env(), capture_output=True, text=True, check=False, timeout=60
        )

    def env(self) -> dict[str, str]:
        return os.environ | {"PATH": f"{self.programs}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}

    def start(self) -> None:
        data = OBJECTS["ConfigMap"]["data"]
        route = free_port("127.0.0.1")
        text = self.here(data["nats.conf"]).replace("8222", str(self.monitor)).replace("6222", str(route))
        self.server = Server(config=text, directory=self.at / "config")
        self.server.given = {"NATS_ROUTES": f"[tls://127.0.0.1:{route}]", "NODE_NAME": "n1"}
        self.stack.enter_context(self.server)

    def reloader(self) -> None:
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                self.script("reloader"),
                env=self.env() | self.server.given,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

        def end() -> None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        self.stack.callback(end)

    def config(self, identity: str) -> BusConfig:
        return replace(self.trust.bus_config(self.server, identity), connect_timeout_s=5.0)

    async def takes(self, identity: str) -> None:
        """Raises BusUnavailable."""
        await (await connect(self.config(identity), name="felix-node2", timeout_s=20)).close()

    async def refuses(self, identity: str) -> bool:
        try:
            await (await connect(self.config(identity), name="felix-node2", timeout_s=0.7)).close()
        except BusUnavailable:
            return True
        return False


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(tmp_path)
    with pod.stack:
        yield pod


def serial(pod: Pod) -> int:
    """Of the certificate that the server shows now, from its own files by what a client gets."""
    context = ssl.create_default_context(cafile=pod.certs / "ca.crt")
    context.load_cert_chain(pod.certs / "tls.crt", pod.certs / "tls.key")
    with socket.create_connection(("127.0.0.1", pod.server.port), timeout=10) as plain:
        plain.recv(4096)  # INFO, before TLS
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            shown = secure.getpeercert()
    assert shown is not None
    return int(str(shown["serialNumber"]), 16)


async def test_a_list_of_nodes_is_all_that_an_operator_keeps(pod: Pod) -> None:
    """Nodes join and leave, certificates are renewed, and nobody else's connection ends."""
    made = pod.permissions()
    assert made.returncode == 0, made.stderr
    pod.start()
    node1, node2 = identities.node("node1"), identities.node("node2")
    kept = await connect(pod.config(node1), name="felix-node1", timeout_s=20)
    people = await connect(pod.config(identities.READER), name="calicoctl", timeout_s=20)
    try:
        heard: list[str] = []
        people.subscribe("calico.>", lambda message: heard.append(message.subject))
        await people.barrier()
        kept.publish(subjects.applied("node2"), b"forged")
        kept.publish(subjects.applied("node1"), b"own")
        await eventually(lambda: heard == [subjects.applied("node1")])
        assert await pod.refuses(node2)

        pod.reloader()
        pod.nodes("node1", "# a comment", "node2")
        other = await connect(pod.config(node2), name="felix-node2", timeout_s=20)
        other.publish(subjects.applied("node2"), b"own")
        await eventually(lambda: heard[-1:] == [subjects.applied("node2")])

        pod.nodes("node1", "Node")  # a slip: what is in force stays, and the log says where
        before = serial(pod)
        pod.trust.authority.renew(identities.NATS)
        await eventually(lambda: "nodes:2: 'Node' is no node name" in pod.log.read_text(), deadline_s=20)
        assert serial(pod) == before
        await pod.takes(node2)

        renewed = (pod.certs / "tls.crt").read_text()
        (pod.certs / "tls.crt").write_text("no certificate")  # what nats-server would refuse is not taken for done
        pod.nodes("node1", "node2")
        await eventually(lambda: pod.log.read_text().count("error parsing X509") >= 2, deadline_s=20)
        (pod.certs / "tls.crt").write_text(renewed)

        pod.nodes("node1")  # node2 leaves
        await eventually(lambda: not other.connected, deadline_s=20)
        await other.close()
        assert await pod.refuses(node2)
        assert serial(pod) != before

        kept.publish(subjects.applied("node1"), b"own")
        await eventually(lambda: heard[-1:] == [subjects.applied("node1")])
        assert (kept.connections, people.connections) == (1, 1)
    finally:
        await kept.close()
        await people.close()


async def test_what_the_server_itself_refuses_is_not_taken_for_done(pod: Pod) -> None:
    """`nats-server -t` finds nothing wrong with it."""
    assert pod.permissions().returncode == 0
    pod.start()
    pod.reloader()
    taken, refused = "nats-server has taken the new configuration", "nats-server has not taken the new configuration"
    await eventually(lambda: taken in pod.log.read_text(), deadline_s=30)
    path = pod.server.directory / "nats.conf"
    good = path.read_text()
    path.write_text(good.replace("server_name: $NODE_NAME", "server_name: another"))
    pod.nodes("node1", "node2")
    await eventually(lambda: pod.log.read_text().count(refused) >= 2, deadline_s=60)
    assert pod.log.read_text().count(taken) == 1
    assert await pod.refuses(identities.node("node2"))
    path.write_text(good)
    await eventually(lambda: pod.log.read_text().count(taken) == 2, deadline_s=30)
    await pod.takes(identities.node("node2"))


def test_without_permissions_it_does_not_start(pod: Pod) -> None:
    with pytest.raises(Exception, match=r"users\.conf"):
        pod.start()
    pod.nodes("node1", "", "Node_2")
    made = pod.permissions()
    assert made.returncode != 0
    assert "nodes:3: 'Node_2' is no node name" in made.stderr
