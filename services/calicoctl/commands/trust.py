"""`calicoctl trust …`: an authority for development, certificates of all identities, NATS's configuration. Needs no
datastore.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import yaml

from libs.trust import identities, nats_config
from libs.trust.authority import Authority, AuthorityError, expires, secret
from services.calicoctl.session import fail

API_SERVICE = "calico-api.calico-system.svc"  # of k8s/apiserver.yaml; kube-apiserver looks for this name
_directory = click.option(
    "-d", "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=Path("certs"),
    show_default=True, help="Where the authority and its files live.",
)  # fmt: skip
_nodes = click.option("--node", "nodes", multiple=True, metavar="NAME", help="A node; may be repeated.")
_days = click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long they last.")


@click.group("trust")
def trust_group() -> None:
    """Certificates of components and nodes, and what NATS permits them."""


@trust_group.command("certs")
@_directory
@_nodes
@click.option("--server", "servers", multiple=True, metavar="NAME",
              help="A DNS name or address that etcd, NATS and the API server answer to; may be repeated.")  # fmt: skip
@_days
def certs(directory: Path, nodes: tuple[str, ...], servers: tuple[str, ...], days: int) -> None:
    """Make an authority, if there is none, and the certificates that are still missing.

    One for each component, for calicoctl's three roles, for etcd's administrator, and for each node. What exists is
    left as it is (`renew` replaces certificates; an authority is never replaced).
    """

    def work() -> None:
        names = list(dict.fromkeys(("localhost", "127.0.0.1", "::1", *servers)))
        exists = (directory / "ca.crt").exists()
        authority = Authority.load(directory) if exists else Authority.create(directory)
        if not exists:
            click.echo(f"{directory}: new authority; keep ca.key and peer-ca.key away from the cluster")
        have = {identity for identity, _ in authority.issued()}
        people = (*identities.PEOPLE, identities.PROMETHEUS, identities.ROOT)
        for identity in (*identities.SERVERS, *identities.COMPONENTS, *people, *map(identities.node, nodes)):
            if identity in have:
                continue
            place = authority.issue(identity, names=_served(identity, names), life=_life(days))
            click.echo(f"{identity}: {place}")

    _told(work)


@trust_group.command("renew")
@_directory
@click.argument("which", nargs=-1, metavar="[IDENTITY]...")
@click.option("--within", "within", type=click.IntRange(0), metavar="DAYS",
              help="Only those that expire within so many days.")  # fmt: skip
@_days
def renew(directory: Path, which: tuple[str, ...], within: int | None, days: int) -> None:
    """Give identities (all when none is named) new keys and certificates. Components take them without a restart."""

    def work() -> None:
        authority = Authority.load(directory)
        issued = dict(authority.issued())
        if unknown := [identity for identity in which if identity not in issued]:
            raise AuthorityError(f"{directory}: no certificate of {', '.join(unknown)}")
        limit = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=within or 0)
        for identity in which or issued:
            if within is None or expires(issued[identity] / "tls.crt") <= limit:
                click.echo(f"{identity}: {authority.renew(identity, life=_life(days))}")

    _told(work)


@trust_group.command("secrets")
@_directory
@click.option("-n", "--namespace", default="calico-system", show_default=True)
@click.argument("which", nargs=-1, metavar="[IDENTITY]...")
def secrets(directory: Path, namespace: str, which: tuple[str, ...]) -> None:
    """Print the Kubernetes Secrets `IDENTITY-certs` that the manifests mount: they hold private keys.

    All of them when none is named. There are none of nodes, which all pods of one DaemonSet would share: copy a node's
    files to /etc/calico/certs of that node; nor of people.
    """

    def work() -> None:
        issued = dict(Authority.load(directory).issued())
        for identity in which:
            if identity not in identities.IN_PODS:
                where = "; its files belong into /etc/calico/certs of that node" if _is_node(identity) else ""
                raise AuthorityError(f"no pod mounts a Secret of {identity}{where}")
        wanted = which or identities.IN_PODS
        if unknown := [identity for identity in wanted if identity not in issued]:
            raise AuthorityError(f"{directory}: no certificate of {', '.join(unknown)}")
        made = [secret(f"{identity}-certs", namespace, issued[identity]) for identity in wanted]
        click.echo(yaml.safe_dump_all(made, sort_keys=False), nl=False)

    _told(work)


@trust_group.command("nats")
@_nodes
@click.option("--nodes-file", type=click.Path(dir_okay=False, path_type=Path),
              help="More of them, one a line; # begins a comment.")  # fmt: skip
@click.option("--users-only", is_flag=True, help="Only the block `authorization`, for a file that another includes.")
@click.option("--files", type=click.Path(path_type=Path), default=Path("/etc/nats/certs"), show_default=True,
              help="Directory of calico-nats's files, as the server sees it.")  # fmt: skip
@click.option("--listen", default="0.0.0.0:4222", show_default=True)
@click.option("--route", "routes", multiple=True, metavar="HOST:PORT", help="A server of the cluster; repeat for each.")
@click.option("--name", default="", help="Name of this server.")
def nats(
    nodes: tuple[str, ...],
    nodes_file: Path | None,
    users_only: bool,
    files: Path,
    listen: str,
    routes: Sequence[str],
    name: str,
) -> None:
    """Print a configuration of nats-server: mutual TLS, a user for each identity, and its permissions.

    `nats-server --signal reload` takes a changed one without a restart.
    """

    def work() -> None:
        named = [*nodes, *(_names_in(nodes_file) if nodes_file else ())]
        users = nats_config.users(nats_config.cluster(named))
        server = nats_config.server(nats_config.ServerFiles(files), name=name, listen=listen, routes=routes)
        click.echo(users if users_only else server + users, nl=False)

    _told(work)


def _served(identity: str, names: Sequence[str]) -> Sequence[str]:
    """Names that this identity's servers answer to."""
    if identity in identities.SERVERS:
        return names
    if identity == identities.APISERVER:
        return [*names, API_SERVICE]
    return [identities.serves_as(identity)] if identity in identities.COMPONENTS or _is_node(identity) else ()


def _is_node(identity: str) -> bool:
    return identity.startswith(f"{identities.NODE}:")


def _names_in(path: Path) -> list[str]:
    """Raises OSError, IdentityError with the line's number."""
    names = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if name := line.partition("#")[0].strip():
            try:
                identities.node(name)
            except identities.IdentityError as error:
                raise identities.IdentityError(f"{path}:{number}: {error}") from error
            names.append(name)
    return names


def _life(days: int) -> datetime.timedelta:
    return datetime.timedelta(days=days)


def _told(work: Callable[[], None]) -> None:
    try:
        work()
    except (AuthorityError, identities.IdentityError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
