"""The command line: names, options, wording and exit statuses are Calico's; the work is done elsewhere.

Exit status 0: all done. 1: something was refused or failed, standard error says what. 2: the command line itself is
wrong. Each command is a module of `services.calicoctl.commands`, imported when it runs.
"""

from __future__ import annotations

import click

from libs.runtime.logs import setup as setup_logs
from services.calicoctl.lazy import Lazy, LazyGroup
from services.calicoctl.session import Environment

LOG_LEVELS = {
    "panic": "critical", "fatal": "critical", "error": "error", "warning": "warning", "warn": "warning",
    "info": "info", "debug": "debug",
}  # fmt: skip

_IN = "services.calicoctl.commands"

NODE = {
    "checksystem": Lazy(f"{_IN}.node_host:checksystem", "Check that this host's kernel has what is needed."),
    "config": Lazy(f"{_IN}.node_explain:config_", "Felix's settings on nodes, and where each comes from."),
    "diags": Lazy(f"{_IN}.node_host:diags", "Collect what this node says into one archive, without secrets."),
    "connections": Lazy(f"{_IN}.node_explain:connections_", "Live connections, with the policy that admits them."),
    "routes": Lazy(f"{_IN}.node_explain:routes_", "A node's routes, with their owner and reason."),
    "run": Lazy(f"{_IN}.node_host:run_node", "Start the node's container on this host, with docker."),
    "status": Lazy(f"{_IN}.node_status:status", "What each node's kernel holds, failures, BGP sessions."),
}
COMMANDS = {
    "apply": Lazy(f"{_IN}.write:apply", "Create resources, or replace those that exist."),
    "cluster": Lazy(f"{_IN}.cluster:cluster_group", "The cluster as a whole: diagnostics."),
    "completion": Lazy(f"{_IN}.completion:completion", "Print the completion script of a shell."),
    "create": Lazy(f"{_IN}.write:create", "Create resources; one that exists is an error."),
    "datastore": Lazy(f"{_IN}.datastore:datastore_group", "The datastore as a whole: lock, export, import."),
    "delete": Lazy(f"{_IN}.write:delete", "Delete resources by KIND and NAMES, or those of files."),
    "get": Lazy(f"{_IN}.get:get", "Show resources by KIND and NAMES, or those that files name."),
    "ipam": Lazy(f"{_IN}.ipam:ipam_group", "IP address management."),
    "label": Lazy(f"{_IN}.change:label", "Set KEY=VALUE on one resource, or remove KEY."),
    "node": Lazy("services.calicoctl.app:node_group", "This node, and the nodes of the cluster."),
    "patch": Lazy(f"{_IN}.change:patch", "Change some fields of one resource."),
    "replace": Lazy(f"{_IN}.write:replace", "Replace resources; one that does not exist is an error."),
    "status": Lazy(f"{_IN}.status:status_", "All components, their versions, and how far each node lags."),
    "tap": Lazy(f"{_IN}.tap:tap_", "Show what goes over the bus."),
    "trace": Lazy(f"{_IN}.trace:trace_", "Which rule decides about a connection, where; does the kernel agree?"),
    "validate": Lazy(f"{_IN}.write:validate", "Check resources without storing them; needs no datastore."),
    "trust": Lazy(f"{_IN}.trust:trust_group", "Certificates of all identities, and NATS's permissions."),
    "what-if": Lazy(f"{_IN}.what_if:what_if_", "Which connections would be treated otherwise if files were applied."),
    "version": Lazy(f"{_IN}.version:version_", "Versions of this program and of the cluster."),
}


@click.group("node", cls=LazyGroup, commands_by_name=NODE)
def node_group() -> None:
    """This node, and the nodes of the cluster."""


@click.group(
    cls=LazyGroup,
    commands_by_name=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("-l", "--log-level", default="panic", type=click.Choice(list(LOG_LEVELS), case_sensitive=False))
@click.pass_context
def cli(context: click.Context, log_level: str) -> None:
    """Read and change Calico's resources, and see what the system does with them."""
    context.obj = context.obj or Environment()
    setup_logs("calicoctl", level=LOG_LEVELS[log_level])
