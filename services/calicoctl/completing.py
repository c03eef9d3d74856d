"""What a shell offers after `calicoctl get ` and `calicoctl get np `: kinds, and names that the datastore has.

A shell waits for it at each press of the key, so the datastore has a moment to answer; faults offer nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem, ShellComplete

from libs.model import kinds
from services.calicoctl.session import Session, session_of

DEADLINE_S = 1.5
_NO_FILES = 4  # cobra's ShellCompDirectiveNoFileComp
_DEFAULT = 0
_HIDDEN = frozenset({"IPAMBlock", "IPAMHandle"})


def kind_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Plurals, and the short names of those that begin so."""
    begun = incomplete.lower()
    found = [kind for kind in kinds.KINDS.values() if kind.kind not in _HIDDEN]
    plurals = [CompletionItem(kind.plural, help=kind.kind) for kind in found if kind.plural.startswith(begun)]
    if plurals or not begun:
        return plurals
    return [
        CompletionItem(name, help=kind.kind)
        for kind in found
        for name in (kind.singular, *kind.short_names, *kind.aliases)
        if name.startswith(begun)
    ]


def resource_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of the kind that stands before, without those that are there already."""
    kind = kinds.lookup(str(context.params.get("kind") or ""))
    if kind is None:
        return []
    namespace = str(context.params.get("namespace") or "default") if kind.namespaced else ""
    given = context.params.get("names") or ()
    return [
        CompletionItem(name)
        for name in _asked(_session(context), kind.kind, namespace)
        if name.startswith(incomplete) and name not in given
    ]


def node_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = _asked(_session(context), "Node", "")
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _session(context: click.Context) -> Session:
    with context.scope(cleanup=False):
        return session_of(
            context.params.get("config"), context=context.params.get("kube_context") or "", any_version=True
        )


def _asked(session: Session, kind: str, namespace: str) -> list[str]:
    async def work() -> list[str]:
        async with asyncio.timeout(DEADLINE_S), session.resources(guarded=False) as client:
            return [item.metadata.name for item in (await client.list(kind, namespace)).items]

    try:
        return asyncio.run(work())
    except Exception:  # a traceback in the middle of a command line helps nobody
        return []


def for_kubectl(arguments: Sequence[str]) -> str:
    """A line for each offer (`value<TAB>help`), and cobra's directive at the end (kubectl's plugin completion)."""
    from services.calicoctl.app import cli

    *before, incomplete = arguments or [""]
    offers = ShellComplete(cli, {}, "kubectl calico", "_CALICOCTL_COMPLETE").get_completions(list(before), incomplete)
    lines = [f"{offer.value}\t{offer.help}" if offer.help else str(offer.value) for offer in offers if offer.value]
    files = any(offer.type in ("file", "dir") for offer in offers)
    return "".join(f"{line}\n" for line in lines) + f":{_DEFAULT if files else _NO_FILES}\n"
