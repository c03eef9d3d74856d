"""Podman with CNI networks on a node, with storage, state and configuration of its own."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.runtimes.host import Host, remove_cgroups
from tests.cluster.runtimes.tools import library_path, tool

_LIMITS = ("--ulimit=nofile=1000:1000", "--ulimit=nproc=1000:1000")  # the defaults are more than everybody may give
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}  # of images; ours is made on the spot


class Podman:
    def __init__(self, host: Host, group: str, network: str) -> None:
        """group: parent control group. network: name of the network list that containers get unless told otherwise."""
        self.host, self._group = host, group
        at = self._at = host.directory / "podman"
        settings = {
            "containers": {"cgroups": "enabled", "log_driver": "k8s-file"},
            "network": {
                "network_backend": "cni",
                "cni_plugin_dirs": ["/opt/cni/bin"],
                "network_config_dir": "/etc/cni/net.d",
                "default_network": network,
            },
            "engine": {
                "cgroup_manager": "cgroupfs",
                "events_logger": "file",
                "runtime": "runc",
                "conmon_path": [str(tool("conmon"))],
                "conmon_env_vars": [f"PATH={tool('runc').parent}:/usr/bin:/bin", f"LD_LIBRARY_PATH={library_path()}"],
                "tmp_dir": f"{at}/tmp",
                "static_dir": f"{at}/static",
                "volume_path": f"{at}/volumes",
            },
            "engine.runtimes": {"runc": [str(tool("runc"))]},
        }
        storage = {"storage": {"driver": "vfs", "graphroot": f"{at}/root", "runroot": f"{at}/run"}}
        (at / ".config/containers").mkdir(parents=True, exist_ok=True)
        (at / ".config/containers/policy.json").write_text(json.dumps(_POLICY))
        (at / "containers.conf").write_text(_toml(settings))
        (at / "storage.conf").write_text(_toml(storage))
        self._env = {
            "HOME": str(at),
            "CONTAINERS_CONF": f"{at}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{at}/storage.conf",
        }

    async def __call__(self, *arguments: str | Path) -> str:
        return await self.host.run("podman", *arguments, env=self._env)

    async def run(self, image: str, name: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """The container's id."""
        group = ("--cgroup-parent", f"/{self._group}")
        # The default profile would have to lie in a place of the machine's.
        safe = ("--security-opt", "seccomp=unconfined")
        options = (*group, *safe, *_LIMITS, *options)
        return (await self("run", "--detach", "--name", name, *options, image, *command)).strip()

    def close(self) -> None:
        remove_cgroups(self._group)


def _toml(tables: dict[str, dict[str, str | list[str]]]) -> str:
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"
