"""`calicoctl patch` and `calicoctl label`: changes of one resource."""

from __future__ import annotations

import json

import click

from libs.resources import codec
from libs.resources.patch import PatchType
from services.calicoctl import actions
from services.calicoctl.chosen import kind_of
from services.calicoctl.completing import kind_names, resource_names
from services.calicoctl.documents import Broken
from services.calicoctl.files import parse
from services.calicoctl.options import common, namespaced
from services.calicoctl.session import Session, fail, run


@click.command()
@click.argument("kind", shell_complete=kind_names)
@click.argument("name", shell_complete=resource_names)
@click.option("-p", "--patch", "text", required=True, metavar="PATCH", help="YAML or JSON.")
@click.option("-t", "--type", "patch_type", type=click.Choice([kind.value for kind in PatchType]), default="strategic")
@namespaced
@common
def patch(kind: str, name: str, text: str, patch_type: str, namespace: str, session: Session) -> None:
    """Change some fields of one resource."""
    known = kind_of(kind)
    given = _patch_value(text)

    async def work() -> None:
        identity = actions.placed(codec.identity_of(known, name), namespace)
        actions.refuse_unmanaged("patch", identity)
        async with session.resources() as client:
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


@click.command()
@click.argument("kind", shell_complete=kind_names)
@click.argument("name", shell_complete=resource_names)
@click.argument("label")
@click.option("--overwrite", is_flag=True, help="Change the value of a label that is there.")
@click.option("--remove", is_flag=True, help="Remove the label; LABEL is its key.")
@namespaced
@common
def label(
    kind: str, name: str, label: str, overwrite: bool, remove: bool, namespace: str, session: Session,
) -> None:  # fmt: skip
    """Set KEY=VALUE on one resource, or take KEY away with --remove."""
    if overwrite and remove:
        raise click.UsageError("--overwrite and --remove exclude each other")
    key, equals, value = label.partition("=")
    if not key or bool(equals) == remove or "=" in value:
        fail(f"invalid label {label}")
    known = kind_of(kind)

    async def work() -> str:
        identity = actions.placed(codec.identity_of(known, name), namespace)
        actions.refuse_unmanaged("label", identity)
        async with session.resources() as client:
            return await actions.label(client, identity, kind, key, None if remove else value, overwrite=overwrite)

    try:
        click.echo(run(work()))
    except (actions.LabelProblem, actions.NamespaceProblem) as problem:
        fail(str(problem))
