"""`calico-bgp peers|rib|explain|settings|refresh|reset`: asks the speaker of this node over its control socket."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode

import click
from rich.console import Console
from rich.table import Table

from libs.runtime.unix_http import UnixConnection
from services.bgp.config import SOCKET

JSON = Any

_socket = click.option(
    "--socket", "path", type=click.Path(path_type=Path), envvar="CALICO_BGP_CONTROL_SOCKET", default=SOCKET,
    show_default=True, help="Control socket of the speaker.",
)  # fmt: skip
_output = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True
)


def ask(path: Path, method: str, target: str, query: Mapping[str, str]) -> JSON:
    """Ends the program with a message when there is no good answer."""
    connection = UnixConnection(path)
    try:
        connection.request(method, f"{target}?{urlencode(query)}" if query else target)
        response = connection.getresponse()
        body = response.read()
    except OSError as error:
        _fail(f"no speaker answers at {path}: {error.strerror or error}. Does calico-bgp run here?")
    if response.status != 200:
        _fail(body.decode(errors="replace").strip())
    return json.loads(body)


def _fail(message: str) -> NoReturn:
    click.echo(f"calico-bgp: {message}", err=True)
    sys.exit(1)


@click.group()
def cli() -> None:
    """Ask the BGP speaker that runs on this node."""


@cli.command()
@_socket
@_output
def peers(path: Path, output: str) -> None:
    """Sessions: state, since when, why not, how many prefixes."""
    found = ask(path, "GET", "/peers", {})
    if _raw(found, output):
        return
    table = Table("PEER", "ADDRESS", "AS", "STATE", "SINCE", "RECEIVED", "ACCEPTED", "ADVERTISED", "DETAIL", box=None)
    for one in found:
        port = f" port {one['port']}" if one.get("port", 179) != 179 else ""
        table.add_row(
            one["name"], one["address"] + port, str(one.get("remote_as", "")), one.get("state", "Idle"),
            one.get("since", ""), str(one.get("received", 0)), str(one.get("accepted", 0)),
            str(one.get("advertised", 0)), one.get("detail", ""),
        )  # fmt: skip
    _console().print(table)


@cli.command()
@click.option("-4", "--ipv4", "family", flag_value="ipv4", default=True, help="IPv4 (the default).")
@click.option("-6", "--ipv6", "family", flag_value="ipv6", help="IPv6.")
@click.option("--received-from", "received", metavar="PEER", help="What this peer told, before import policy.")
@click.option("--advertised-to", "advertised", metavar="PEER", help="What this peer was told.")
@_socket
@_output
def rib(family: str, received: str | None, advertised: str | None, path: Path, output: str) -> None:
    """Routes: all paths with the reason of each, or those from or to one peer."""
    if received and advertised:
        _fail("--received-from and --advertised-to exclude each other")
    query = {"family": family, "table": "in" if received else "out" if advertised else "loc"}
    if peer := received or advertised:
        query["peer"] = peer
    found = ask(path, "GET", "/rib", query)
    if _raw(found, output):
        return
    table = Table("PREFIX", "NEXT HOP", "FROM", "AS PATH", "LOCAL PREF", "MED", "COMMUNITIES", "WHY", box=None)
    for one in found:
        attributes = one.get("attributes", one)
        table.add_row(
            one["prefix"], attributes.get("next_hop", ""), one.get("from", peer or ""), attributes.get("as_path", ""),
            str(attributes.get("local_pref", "")), str(attributes.get("med", "")),
            " ".join(attributes.get("communities", [])), _why(one),
        )  # fmt: skip
    _console().print(table)


def _why(one: dict[str, Any]) -> str:
    """What decided about a path; and whether it only stands until its peer has restarted (RFC 4724, RFC 9494)."""
    said = str(one.get("rejected") or one.get("reason", ""))
    state = "long-lived stale" if one.get("long_lived_stale") else "stale" if one.get("stale") else ""
    return f"{said} ({state})" if state and state != said else said


@cli.command()
@click.argument("prefix")
@_socket
@_output
def explain(prefix: str, path: Path, output: str) -> None:
    """Why this address or network goes where it goes: every path, what decided, who was told, what the kernel has."""
    found = ask(path, "GET", "/explain", {"prefix": prefix})
    if _raw(found, output):
        return
    click.echo(f"{found['prefix']}")
    for one in found["paths"]:
        click.echo(f"  from {one['from']} by {one['next_hop'] or 'this node'}: {_why(one)}")
        detail = {**one["attributes"], **{key: one[key] for key in ("step", "where") if one.get(key)}}
        click.echo("    " + ", ".join(f"{key} {_words(value)}" for key, value in detail.items() if value != ""))
    kernel = found["kernel"]
    if kernel is None:
        click.echo(f"  kernel: no route of ours{': ' + found['kernel_problem'] if found['kernel_problem'] else ''}")
    else:
        hops = " and ".join(f"{hop['gateway']} on {hop['interface']}" for hop in kernel["hops"])
        click.echo(f"  kernel: metric {kernel['metric']}, {hops or 'a blackhole'}")
    for one in found["advertised"]:
        said = "told" if one["advertised"] else f"not told: {one['reason']}"
        where = f" ({one['where']})" if one.get("where") else ""
        click.echo(f"  {one['peer']}: {said}{where}")


@cli.command()
@_socket
def settings(path: Path) -> None:
    """What the speaker runs with, as JSON that `calico-bgp --settings` takes."""
    click.echo(json.dumps(ask(path, "GET", "/settings", {}), indent=2))


@cli.command()
@click.argument("peer")
@_socket
def refresh(peer: str, path: Path) -> None:
    """Have a peer tell all its routes again (RFC 2918)."""
    ask(path, "POST", "/refresh", {"peer": peer})


@cli.command()
@click.argument("peer")
@click.option("--message", default="", help="Words for the other side (RFC 9003).")
@_socket
def reset(peer: str, message: str, path: Path) -> None:
    """End the session and begin it again."""
    ask(path, "POST", "/reset", {"peer": peer, "message": message})


def _raw(found: JSON, output: str) -> bool:
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(found, sort_keys=False), nl=False)
    return output != "table"


def _words(value: JSON) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _console() -> Console:
    """Tables are as wide as they must be when nobody looks at a terminal."""
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "200"))
    return Console(width=width, highlight=False)
