"""A group whose commands are imported when one of them runs: `calicoctl get` need not load what `tap` needs.

Its listing is a table, so that `--help` and completion load nothing either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem


@dataclass(frozen=True, slots=True)
class Lazy:
    """target: `module:attribute`, a click command. help: its line in the listing of the group."""

    target: str
    help: str

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command), self.target
        return found


class LazyGroup(click.Group):
    def __init__(self, *args: Any, commands_by_name: Mapping[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(commands_by_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = self.lazy.get(cmd_name)
        return found.load() if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy[name].help) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        # Of the options only: the commands of a click.Group would be loaded one and all.
        return [CompletionItem(name, help=self.lazy[name].help) for name in names] + click.Command.shell_complete(
            self, ctx, incomplete
        )
