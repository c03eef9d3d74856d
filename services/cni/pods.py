"""Pretend pods, to try a node that has no orchestrator: `calico-cni pod add web --label app=web`.

A pod is a named network namespace (as of `ip netns`), plugged by running the plugin as a container runtime does, and a
web server in it that tells who it is. Its workload is NAME, of the orchestrator `cni`; who is in no policy may talk
with all others of its network, as Calico's plugin has it outside Kubernetes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path
from typing import Any, NoReturn

import click

from libs.netlink.netns import NamespaceError, in_netns
from libs.runtime.compile_c import CompileError
from libs.runtime.files import write_atomically
from libs.runtime.nodename import node_name
from services.cni.build import build

NETWORK = "pods"
NAMESPACES = Path("/run/netns")
STATE = Path("/run/calico/pods")
"""NAME.json: the network configuration of each pod with the result of ADD; NAME: what its web server serves."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?")


class PodError(click.ClickException):
    """The command did not do what was asked; nothing is left half done."""


class Name(click.ParamType[str]):
    name = "name"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _NAME.fullmatch(text := str(value)):
            self.fail(f"{text!r}: 1 to 11 of a-z, 0-9 and -, since it becomes part of an interface's name", param, ctx)
        return text


class Label(click.ParamType[tuple[str, str]]):
    name = "key=value"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text


class Address(click.ParamType[IPv4Address | IPv6Address]):
    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> IPv4Address | IPv6Address:
        try:
            return ip_address(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def configuration(
    labels: Mapping[str, str], addresses: Sequence[IPv4Address | IPv6Address], result: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The plugin's standard input, as libcni makes it of a network list. result: of ADD, for DEL."""
    args: dict[str, Any] = {"labels": [{"key": key, "value": value} for key, value in labels.items()]}
    if addresses:
        args["ips"] = [str(address) for address in addresses]
    made: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "type": "calico",
        "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
        "args": {"cni": args},
    }
    return made if result is None else made | {"prevResult": result}


def _plug(command: str, pod: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Run the plugin; what it printed. Raises PodError with the plugin's own error."""
    try:
        plugin = Path(os.environ.get("CNI_BINARY") or build())
    except CompileError as error:
        raise PodError(f"no plugin: {error}") from error
    called = {
        "CNI_COMMAND": command, "CNI_CONTAINERID": pod, "CNI_NETNS": str(NAMESPACES / pod), "CNI_IFNAME": "eth0",
        "CNI_PATH": str(plugin.parent),
    }  # fmt: skip
    done = subprocess.run(
        [plugin], input=json.dumps(config), env=os.environ | called, capture_output=True, text=True, check=False
    )
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    if done.returncode:
        raise PodError(": ".join(filter(None, (answer.get("msg"), answer.get("details")))) or done.stderr.strip())
    return answer


def _ip(*arguments: str) -> str:
    """iproute2, which makes namespaces that have a name. Raises PodError."""
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PodError("`ip` is not here (package iproute2)") from error
    if done.returncode:
        raise PodError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _load(pod: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((STATE / f"{pod}.json").read_text())
    except FileNotFoundError as error:
        raise PodError(f"there is no pod {pod} on this node") from error
    return config


def addresses_of(config: Mapping[str, Any]) -> list[IPv4Address | IPv6Address]:
    """What ADD answered."""
    return [ip_interface(entry["address"]).ip for entry in config.get("prevResult", {}).get("ips", [])]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def pod() -> None:
    """Pretend pods on this node, to try it without an orchestrator."""


@pod.command()
@click.argument("name", type=Name())
@click.option("--label", "-l", "labels", type=Label(), multiple=True, help="Of its endpoint; may be repeated.")
@click.option("--ip", "ips", type=Address(), multiple=True, help="Ask for this address; else any of a pool.")
@click.option("--port", type=click.IntRange(1, 65535), default=80, show_default=True, help="Of its web server.")
def add(name: str, labels: Sequence[tuple[str, str]], ips: Sequence[IPv4Address | IPv6Address], port: int) -> None:
    """Make a pod, plug it, and serve HTTP in it. Returns when its policy is in the kernel; prints its addresses."""
    if (STATE / f"{name}.json").exists():
        raise PodError(f"there is a pod {name} on this node")
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        config = configuration(dict(labels), ips)
        config["prevResult"] = _plug("ADD", name, config)
        _serve(name, port)
        write_atomically(STATE / f"{name}.json", json.dumps(config).encode(), mode=0o600)
    except BaseException:
        with contextlib.suppress(PodError):  # the first error is the one to tell
            _plug("DEL", name, configuration(dict(labels), ips))
        with contextlib.suppress(PodError):  # also without a felix that could unplug it, or the name is taken for ever
            _clear(name)
        raise
    click.echo(" ".join(map(str, addresses_of(config))))


def _serve(name: str, port: int) -> None:
    """A server of its own session, whose end is `delete` or the node's."""
    content = STATE / name
    content.mkdir(parents=True, exist_ok=True)
    (content / "index.html").write_text(f"{name} on {node_name(os.environ.get('NODENAME', ''))}\n")
    command = [sys.executable, "-m", "http.server", "--bind", "::", "--directory", str(content), str(port)]
    with in_netns(NAMESPACES / name):
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def _remove(name: str, config: Mapping[str, Any]) -> None:
    _plug("DEL", name, config)
    _clear(name)


def _clear(name: str) -> None:
    if (NAMESPACES / name).exists():
        for process in _ip("netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        _ip("netns", "delete", name)
    (STATE / name / "index.html").unlink(missing_ok=True)
    if (STATE / name).exists():
        (STATE / name).rmdir()
    (STATE / f"{name}.json").unlink(missing_ok=True)


@pod.command()
@click.argument("names", type=Name(), nargs=-1, required=True)
def delete(names: Sequence[str]) -> None:
    """Unplug pods and remove them."""
    for name in names:
        _remove(name, _load(name))


@pod.command(name="list")
def list_() -> None:
    """Name, addresses and labels of the pods on this node."""
    for path in sorted(STATE.glob("*.json")):
        config = _load(path.stem)
        labels = ",".join(f"{one['key']}={one['value']}" for one in config["args"]["cni"]["labels"])
        click.echo("  ".join(filter(None, (path.stem, *map(str, addresses_of(config)), labels))))


@pod.command()
@click.argument("name", type=Name())
@click.option("--family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="IPv4 or IPv6.")
def ip(name: str, family: str) -> None:
    """The address of a pod."""
    for address in addresses_of(_load(name)):
        if address.version == int(family):
            click.echo(address)
            return
    raise PodError(f"pod {name} has no IPv{family} address")


@pod.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", type=Name())
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, command: Sequence[str]) -> NoReturn:
    """Run a command on the network of a pod."""
    _load(name)
    try:
        with in_netns(NAMESPACES / name):
            os.execvp(command[0], list(command))
    except NamespaceError as error:
        raise PodError(str(error)) from error
    except OSError as error:
        raise PodError(f"{command[0]}: {error.strerror}") from error
