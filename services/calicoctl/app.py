"""The command line: names, options, wording and exit statuses are Calico's; the work is done elsewhere.

Exit status 0: all done. 1: something was refused or failed, standard error says what. 2: the command line itself is
wrong.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from datetime import datetime

import click
from click.shell_completion import get_completion_class

from libs.bus import Bus
from libs.bus.applied import WaitProblem, listening
from libs.bus.subject_match import check_subscribe_subject
from libs.resources import codec
from libs.resources.errors import ResourceError
from libs.resources.patch import PatchType
from libs.runtime.logs import setup as setup_logs
from services.calicoctl import actions, reading, tap, version
from services.calicoctl import status as node_status
from services.calicoctl.actions import Input
from services.calicoctl.columns import DEFAULT_AS_NUMBER, UnknownHeading
from services.calicoctl.documents import ARGUMENTS, Broken, Document, FileProblem, Position, parse, read_all
from services.calicoctl.gotemplate import TemplateProblem
from services.calicoctl.ipam_commands import datastore_group, ipam_group
from services.calicoctl.options import Duration, common, from_files, namespaced, or_files, waits
from services.calicoctl.output import FORMATS, Answer, OutputProblem, dump_yaml, exported, parse_format, render
from services.calicoctl.session import Environment, Session, fail, run, session_of

LOG_LEVELS = {
    "panic": "critical", "fatal": "critical", "error": "error", "warning": "warning", "warn": "warning",
    "info": "info", "debug": "debug",
}  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-l", "--log-level", default="panic", type=click.Choice(list(LOG_LEVELS), case_sensitive=False))
@click.pass_context
def cli(context: click.Context, log_level: str) -> None:
    """Read and change Calico's resources, and see what the system does with them."""
    context.obj = context.obj or Environment()
    setup_logs("calicoctl", level=LOG_LEVELS[log_level])


# --- commands that write, over files ---------------------------------------------------------------------------------


def _read(files: Sequence[str], recursive: bool, skip_empty: bool) -> list[Input]:
    try:
        return read_all(files, recursive=recursive, skip_empty=skip_empty)
    except FileProblem as problem:
        fail(f"Failed to execute command: {problem}")


def _write(
    verb: actions.Verb, session: Session, documents: Sequence[Input], namespace: str, wait_s: float | None
) -> None:
    """Run the verb, print the summary, wait for the nodes when asked, and end with the right exit status."""

    async def work() -> tuple[actions.Outcome, str, str]:
        bus: AbstractAsyncContextManager[Bus | None] = nullcontext() if wait_s is None else session.bus()
        async with session.client(writes=verb.initialises) as client, bus as connected:
            if connected is None or wait_s is None:
                return await actions.run(verb, client, documents, namespace), "", ""
            async with listening(connected, wait_s) as waiter:
                outcome = await actions.run(verb, client, documents, namespace)
                try:
                    nodes = await waiter.until_applied(outcome.revisions)
                except WaitProblem as problem:
                    return outcome, "", f"Hit error: {problem}"
                return outcome, f"Applied on {len(nodes)} node(s){': ' if nodes else ''}{', '.join(nodes)}", ""

    outcome, applied, late = run(work())
    good, bad = actions.summary(verb.name, verb.past, outcome)
    for text in (good, *outcome.notes, applied):
        if text:
            click.echo(text)
    if bad or late:
        fail("\n".join(text for text in (bad, late) if text))


@cli.command()
@from_files
@waits
@namespaced
@common
def apply(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, waiting: bool, timeout_s: float, namespace: str,
    config: str | None, **_accepted: object,
) -> None:  # fmt: skip
    """Create resources, or replace those that exist."""
    documents = _read(files, recursive, skip_empty)
    _write(actions.verb("apply"), session_of(config), documents, namespace, timeout_s if waiting else None)


@cli.command()
@from_files
@click.option("--skip-exists", is_flag=True, help="Leave resources that exist as they are, without an error.")
@waits
@namespaced
@common
def create(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, skip_exists: bool, waiting: bool, timeout_s: float,
    namespace: str, config: str | None, **_accepted: object,
) -> None:  # fmt: skip
    """Create resources; one that exists is an error."""
    verb = actions.verb("create", skip_exists=skip_exists)
    documents = _read(files, recursive, skip_empty)
    _write(verb, session_of(config), documents, namespace, timeout_s if waiting else None)


@cli.command()
@from_files
@waits
@namespaced
@common
def replace(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, waiting: bool, timeout_s: float, namespace: str,
    config: str | None, **_accepted: object,
) -> None:  # fmt: skip
    """Replace resources; one that does not exist is an error."""
    documents = _read(files, recursive, skip_empty)
    _write(actions.verb("replace"), session_of(config), documents, namespace, timeout_s if waiting else None)


@cli.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@or_files
@click.option("-s", "--skip-not-exists", is_flag=True, help="Resources that do not exist are no error.")
@waits
@namespaced
@common
def delete(
    kind: str | None, names: tuple[str, ...], files: tuple[str, ...], recursive: bool, skip_empty: bool,
    skip_not_exists: bool, waiting: bool, timeout_s: float, namespace: str, config: str | None, **_accepted: object,
) -> None:  # fmt: skip
    """Delete resources by KIND and NAMES, or those of files."""
    documents = _chosen(kind, names, files, recursive, skip_empty)
    if kind and not names:
        fail("resource name may not be empty")
    verb = actions.verb("delete", skip_not_exists=skip_not_exists)
    _write(verb, session_of(config), documents, namespace, timeout_s if waiting else None)


@cli.command()
@from_files
@namespaced
@common
def validate(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, namespace: str, config: str | None, **_accepted: object
) -> None:
    """Check resources without storing them; needs no datastore."""
    documents = _read(files, recursive, skip_empty)
    good, bad = actions.summary("validate", "validated", run(actions.validate(documents, namespace)))
    if good:
        click.echo(good)
    if bad:
        fail(bad)


def _chosen(
    kind: str | None, names: Sequence[str], files: Sequence[str], recursive: bool, skip_empty: bool
) -> list[Input]:
    """Documents of -f, or of KIND and NAMES; exactly one of the two ways."""
    if bool(kind) == bool(files):
        raise click.UsageError("give either KIND [NAME…] or --filename")
    if kind is None:
        return _read(files, recursive, skip_empty)
    known = _kind(kind)
    if any(not name for name in names):
        fail("resource name may not be empty")
    return [
        Document(ARGUMENTS, number, {"kind": known, "metadata": {"name": name}}, Position(1))
        for number, name in enumerate(names, start=1)
    ]


def _kind(text: str) -> str:
    try:
        return codec.kind_of(text)
    except ResourceError as error:
        fail(str(error))


# --- get -------------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@or_files
@click.option("-o", "--output", default="ps", metavar="FORMAT", help=FORMATS)
@click.option("-A", "-a", "--all-namespaces", "everywhere", is_flag=True, help="Of all namespaces.")
@click.option("--export", is_flag=True, help="Leave out what belongs to this cluster; with names only.")
@namespaced
@common
def get(
    kind: str | None, names: tuple[str, ...], files: tuple[str, ...], recursive: bool, skip_empty: bool, output: str,
    everywhere: bool, export: bool, namespace: str, config: str | None, **_accepted: object,
) -> None:  # fmt: skip
    """Show resources by KIND and NAMES, or those that files name."""
    try:
        form = parse_format(output)
    except OutputProblem as problem:
        fail(str(problem))
    documents = _chosen(kind, names, files, recursive, skip_empty)
    session = session_of(config)

    async def work() -> tuple[list[Answer], list[str], str]:
        async with session.client() as client:
            if kind and not names:
                answers = [await reading.listed(client, _kind(kind), namespace, everywhere=everywhere)]
                problems: list[str] = []
            else:
                answers, problems = await reading.named(client, documents, namespace, everywhere=everywhere)
            nodes = form.form == "template" or any(answer.kind == "Node" for answer in answers)
            return answers, problems, await reading.cluster_as_number(client) if nodes else DEFAULT_AS_NUMBER

    try:
        answers, problems, as_number = run(work())
    except actions.NamespaceProblem as problem:
        fail(f"Failed to get resources: {problem}")
    if export:
        answers = [
            Answer(answer.kind, [exported(item) for item in answer.resources]) if answer.revision is None else answer
            for answer in answers
        ]
    if answers:
        try:
            click.echo(render(answers, form, namespace=bool(everywhere or namespace), as_number=as_number), nl=False)
        except (UnknownHeading, TemplateProblem) as problem:
            fail(str(problem))
    if problems:
        fail("\n".join(problems))


# --- patch, label ----------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("kind")
@click.argument("name")
@click.option("-p", "--patch", "text", required=True, metavar="PATCH", help="YAML or JSON.")
@click.option("-t", "--type", "patch_type", type=click.Choice([kind.value for kind in PatchType]), default="strategic")
@namespaced
@common
def patch(
    kind: str, name: str, text: str, patch_type: str, namespace: str, config: str | None, **_accepted: object
) -> None:
    """Change some fields of one resource."""
    known = _kind(kind)
    session = session_of(config)
    given = _patch_value(text)

    async def work() -> None:
        identity = actions.placed(codec.identity_of(known, name), namespace)
        actions.refuse_unmanaged("patch", identity)
        async with session.client() as client:
            await client.patch(identity.kind, identity.name, given, PatchType(patch_type), identity.namespace)

    try:
        run(work(), f"patch '{known}' resource")
    except actions.NamespaceProblem as problem:
        fail(f"Failed to patch '{known}' resource: {problem}")
    click.echo(f"Successfully patched 1 '{known}' resource")


def _patch_value(text: str) -> object:
    """The patch as plain values. JSON patches are lists, which a resource file would take for several resources."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    found = list(parse(f"patch:\n{_indented(text)}", "patch"))
    if len(found) != 1 or isinstance(found[0], Broken):
        fail(f"Failed to read the patch: {found[0] if found else 'it is empty'}")
    return found[0].value["patch"]


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


@cli.command()
@click.argument("kind")
@click.argument("name")
@click.argument("label")
@click.option("--overwrite", is_flag=True, help="Change the value of a label that is there.")
@click.option("--remove", is_flag=True, help="Remove the label; LABEL is its key.")
@namespaced
@common
def label(
    kind: str, name: str, label: str, overwrite: bool, remove: bool, namespace: str, config: str | None,
    **_accepted: object,
) -> None:  # fmt: skip
    """Set KEY=VALUE on one resource, or take KEY away with --remove."""
    if overwrite and remove:
        raise click.UsageError("--overwrite and --remove exclude each other")
    key, equals, value = label.partition("=")
    if not key or bool(equals) == remove or "=" in value:
        fail(f"invalid label {label}")
    known = _kind(kind)
    session = session_of(config)

    async def work() -> str:
        identity = actions.placed(codec.identity_of(known, name), namespace)
        actions.refuse_unmanaged("label", identity)
        async with session.client() as client:
            return await actions.label(client, identity, kind, key, None if remove else value, overwrite=overwrite)

    try:
        click.echo(run(work()))
    except (actions.LabelProblem, actions.NamespaceProblem) as problem:
        fail(str(problem))


# --- the rest --------------------------------------------------------------------------------------------------------


@cli.command("version")
@click.option("--client", "client_only", is_flag=True, help="Only of this program.")
@click.option("--poll", metavar="DURATION", type=Duration(), help="Ask again at this interval until interrupted.")
@common
def version_(client_only: bool, poll: float | None, config: str | None, **_accepted: object) -> None:
    """Versions of this program and of the cluster."""
    session = session_of(config)

    async def work() -> None:
        while True:
            click.echo("\n".join(version.client_lines()))
            if not client_only:
                async with session.client() as client:
                    click.echo("\n".join(await version.cluster_lines(client)))
            if poll is None:
                return
            await asyncio.sleep(poll)

    run(work())


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: `source <(calicoctl completion bash)`."""
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "calicoctl", "_CALICOCTL_COMPLETE").source())


cli.add_command(ipam_group)
cli.add_command(datastore_group)


@cli.group("node")
def node_() -> None:
    """The nodes of the cluster."""


@node_.command()
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@click.option("--timeout", "timeout_s", metavar="DURATION", type=Duration(), default="10s", show_default=True,
              help="How long to wait for reports.")  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True,
              help="For people, or for programs.")  # fmt: skip
@common
def status(nodes: tuple[str, ...], timeout_s: float, output: str, config: str | None, **_accepted: object) -> None:
    """What each node's kernel holds, what could not be programmed, which settings have no effect, and the sessions of
    its BGP speaker, where it has one: prefixes received, used and advertised.

    All nodes, or the ones named. Exit status 1 unless every one of them is up to date and without failures, and every
    BGP speaker that answers works with its settings. A session that is down is told and nothing more.
    """
    session = session_of(config)

    async def work() -> tuple[str, bool]:
        async with session.client() as client:
            listed = await client.list("Node")
        known = [one.metadata.name for one in listed.items]
        if unknown := sorted(set(nodes) - set(known)):
            fail(f"no such node: {', '.join(unknown)}")
        chosen = sorted(set(nodes)) or known
        if not chosen:
            fail("there are no nodes")
        async with session.bus() as bus:
            reports, states = await asyncio.gather(
                node_status.gather(bus, chosen, timeout_s), node_status.gather_bgp(bus, chosen, timeout_s)
            )
        text, good = node_status.show(chosen, reports)
        of_bgp, bgp_good = node_status.show_bgp(chosen, states)
        if output != "table":
            told = node_status.document(chosen, reports, states)
            return json.dumps(told, indent=2) + "\n" if output == "json" else dump_yaml(told), good and bgp_good
        return text + of_bgp, good and bgp_good

    text, good = run(work())
    click.echo(text, nl=False)
    if not good:
        raise SystemExit(1)


@cli.command("tap")
@click.argument("subjects", nargs=-1)
@click.option(
    "-o", "--output", type=click.Choice(["line", "json"]), default="line", help="Readable lines, or raw JSON."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@common
def tap_(subjects: tuple[str, ...], output: str, count: int | None, config: str | None, **_accepted: object) -> None:
    """Show what goes over the bus; SUBJECTS as NATS writes them, `calico.>` when none is given."""
    try:
        for subject in subjects:
            check_subscribe_subject(subject)
    except ValueError as problem:
        fail(str(problem))
    session = session_of(config)

    async def work() -> None:
        async with session.bus() as bus:
            async for message in tap.listen(bus, subjects or (tap.EVERYTHING,), count):
                if isinstance(message, tap.Dropped):
                    click.echo(f"{message.count} messages lost: this terminal is slower than the bus", err=True)
                    continue
                now = datetime.now().astimezone()
                describe = tap.raw if output == "json" else tap.describe
                click.echo(describe(message.subject, message.data, now))

    with suppress(KeyboardInterrupt):
        run(work())
