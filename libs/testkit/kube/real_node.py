"""A node with a real kubelet, containerd and kube-proxy, in the network namespace of a node of `libs.testkit.cluster`.

Beside its network it has mount, UTS, IPC and PID namespaces of its own (`host_view.sh`): all paths are the usual ones,
and killing the first process ends everything. Felix runs in the node's mounts, because the runtime makes the pods'
network namespaces there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from libs.testkit.cluster import PROJECT, Node
from libs.testkit.kube import kube_proxy
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.kube.images.archive import PAUSE
from libs.testkit.kube.programs import program
from libs.testkit.kube.runtimes import environment, make_cgroups, plugin, remove_cgroups, tool
from libs.testkit.servers import ServerError

_HOST_VIEW = Path(__file__).with_name("host_view.sh")
_POLL_S = 0.05
PLUGINS = ("portmap", "bandwidth", "loopback")
"""CNI's own that stand beside ours."""

_CONTAINERD = """
version = 2
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
                    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
"""


class RealNode:
    """directory: of this node's files. proxy_mode: of kube-proxy. Not started before `open`, then `start`."""

    def __init__(self, node: Node, cp: ControlPlane, cluster_id: str, *, proxy_mode: str = "nftables") -> None:
        self.node, self.name = node, node.name
        self.directory = node.directory / "host"
        self._cp = cp
        self._group = f"cal-{cluster_id}-{node.name}"
        self._proxy_mode = proxy_mode
        self._holder: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._felix = list(node.felix.command)

    @property
    def networks(self) -> Path:
        """The node's /etc/cni/net.d, as seen from outside."""
        return self.directory / "over/etc/cni/net.d"

    @property
    def programs(self) -> Path:
        """The node's /opt/cni/bin."""
        return self.directory / "over/opt/cni/bin"

    # --- life ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """The node's view of a machine; nothing runs in it yet. Raises RuntimesMissing, KubernetesMissing,
        ServerError.
        """
        for name in ("containerd", "ctr", "runc", "unshare", "nsenter", "setpriv"):
            tool(name)
        for name in ("kubelet", "kube-proxy"):
            program(name)
        make_cgroups(self._group)
        for path in (self.networks, self.programs, self.directory / "log"):
            path.mkdir(parents=True)
        for name in PLUGINS:
            shutil.copy(plugin(name), self.programs / name)
        keep = self.node.directory.parent
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.node.namespace.path}",
             "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--propagation", "private",
             "sh", str(_HOST_VIEW), str(self.directory), self.name, str(keep)],
            env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        if said != b"ready\n":
            self._holder.kill()
            raise ServerError(f"{self.name} has no view of its own: {(said + self._holder.stdout.read()).decode()}")
        self.node.felix.command = self._inside_mounts(self._felix)

    def start(self) -> None:
        """containerd, kubelet, kube-proxy; their readiness is the Node's."""
        self._write_configuration()
        self._run("containerd", tool("containerd"), "-c", self.directory / "containerd.toml")
        self.until(lambda: self.ctr("version").returncode == 0, "containerd answers")
        self.start_kubelet()
        self._run("kube-proxy", program("kube-proxy"), "--config", self.directory / "kube-proxy.yaml")

    def start_kubelet(self) -> None:
        addresses = f"{self.node.ipv4.ip},{self.node.ipv6.ip}"
        self._run(
            "kubelet", program("kubelet"), f"--config={self.directory / 'kubelet.yaml'}",
            f"--kubeconfig={self._kubeconfig}", f"--hostname-override={self.name}", f"--node-ip={addresses}",
            "--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki", "--v=2",
        )  # fmt: skip

    def end(self, what: str, signal: str = "TERM") -> None:
        """Of containerd, kubelet, kube-proxy; it may be started again."""
        self.run("sh", "-c", f"kill -{signal} $(cat /run/{what}.pid)")

    def close(self) -> None:
        """Everything at once."""
        if self._holder is not None:
            for child in (self._holder, *self._children):
                child.kill()
                child.wait()
            if self._holder.stdout is not None:
                self._holder.stdout.close()
            self._holder = None
        self._children = []
        deadline = time.monotonic() + 5
        while True:  # the kernel takes a moment to end the processes of a PID namespace
            try:
                return remove_cgroups(self._group)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    # --- what is done with it --------------------------------------------------------------------------------------

    def run(self, *command: str | Path, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command inside. Raises ServerError with what it said, unless `check` is off."""
        argv = self._argv(*command)
        done = subprocess.run(
            argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise ServerError(f"{self.name}: {' '.join(map(str, command))}: {done.stderr}{done.stdout}")
        return done

    def ctr(self, *arguments: str | Path, check: bool = False) -> subprocess.CompletedProcess[str]:
        """In the namespace that kubelets use."""
        return self.run(tool("ctr"), "-n", "k8s.io", *arguments, check=check, timeout_s=300)

    async def import_image(self, archive: Path) -> None:
        """An OCI layout or the output of `docker save`, as a tar file; its names are then known to this node."""
        await asyncio.to_thread(self.ctr, "images", "import", archive, check=True)

    def namespaces(self) -> list[Path]:
        """Those that the runtime made for pods, as paths that are good outside too."""
        return list(Path(f"/proc/{self._init_pid()}/root/run/netns").iterdir())

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: {what}: not within {timeout_s:g} s\n{self.told()}")
            time.sleep(_POLL_S)

    def told(self, lines: int = 25) -> str:
        """The ends of the logs."""
        shown = []
        for path in sorted((self.directory / "log").glob("*.log")):
            tail = "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            shown.append(f"--- {path.stem} on {self.name}\n{tail}")
        return "\n".join(shown)

    # --- how it is made --------------------------------------------------------------------------------------------

    def _init_pid(self) -> int:
        assert self._holder is not None, "not open"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        return int(children[0])

    def _argv(self, *command: str | Path) -> list[str]:
        inside = ["nsenter", "-t", str(self._init_pid()), "-n", "-m", "-u", "-i", "-p", "--wdns=/"]
        return [*inside, *map(str, command)]

    def _inside_mounts(self, command: Sequence[str]) -> list[str]:
        """In the node's mounts, with /proc and /sys as the process needs them; one process all the way, which dies with
        whom it was started by.
        """
        script = 'mount -t proc proc /proc && mount -t sysfs sysfs /sys && exec "$@"'
        return [
            str(tool("nsenter")), f"--mount=/proc/{self._init_pid()}/ns/mnt", f"--wdns={PROJECT}",
            str(tool("unshare")), "--mount", "--propagation", "slave", "sh", "-c", script, "sh", *command,
        ]  # fmt: skip

    def _run(self, name: str, *command: str | Path) -> None:
        script = f'echo $$ >/run/{name}.pid; exec "$@"'
        argv = ["setpriv", "--pdeathsig", "KILL", *self._argv("sh", "-c", script, "sh", *command)]
        with (self.directory / "log" / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                argv, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._children.append(child)

    @property
    def _kubeconfig(self) -> Path:
        return self.directory / "kubelet.kubeconfig"

    def _write_configuration(self) -> None:
        cp, at = self._cp, self.directory
        client = cp.ca.issue(f"system:node:{self.name}", groups=["system:nodes"], file=f"{self.name}-client")
        shutil.copy(cp.kubeconfig(client), self._kubeconfig)
        names = [self.name, str(self.node.ipv4.ip), str(self.node.ipv6.ip)]
        serving = cp.ca.issue(
            f"system:node:{self.name}", groups=["system:nodes"], names=names, file=f"{self.name}-serving"
        )
        (at / "resolv.conf").write_text("nameserver 10.96.0.10\n")
        (at / "containerd.toml").write_text(_CONTAINERD.format(pause=PAUSE))
        kubelet: dict[str, Any] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._group}",
            "failSwapOn": False,
            "failCgroupV1": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "address": str(self.node.ipv4.ip),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(cp.ca.cert)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.cert),
            "tlsPrivateKeyFile": str(serving.key),
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "resolvConf": str(at / "resolv.conf"),
            "makeIPTablesUtilChains": False,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "localStorageCapacityIsolation": False,
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "10s",
            "serializeImagePulls": False,
            "oomScoreAdj": 0,
        }
        (at / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))
        proxy = kube_proxy.configuration(
            self.name, str(self.node.ipv4.ip), self._proxy_mode, cp.user("system:kube-proxy")
        )
        (at / "kube-proxy.yaml").write_text(proxy)


def missing() -> str:
    """Why real kubelets cannot run on this machine, for a skip; "" when they can."""
    from libs.testkit.kube.programs import KubernetesMissing
    from libs.testkit.kube.runtimes import CGROUPS, RuntimesMissing

    if os.geteuid() != 0:
        return "needs root and network namespaces"
    try:
        for name in ("kubelet", "kube-proxy", "kube-scheduler", "kube-apiserver", "kube-controller-manager", "kubectl"):
            program(name)
        for name in ("containerd", "ctr", "runc"):
            tool(name)
        for name in PLUGINS:
            plugin(name)
    except (KubernetesMissing, RuntimesMissing) as error:
        return str(error)
    if not all((Path("/sys/fs/cgroup") / one).is_dir() for one in CGROUPS):
        return "real kubelets need control groups of version 1"
    return ""
