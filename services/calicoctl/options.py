"""Options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import click

from services.calicoctl.session import session_of

Command = TypeVar("Command", bound=Callable[..., Any])

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """`30s`, `1m30s`, `500ms`, or plain seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        parts = _DURATION.findall(text)
        try:
            seconds = float(text)
        except ValueError:
            if "".join(number + unit for number, unit in parts) != text or not parts:
                self.fail(f"{text!r} is not a duration like 30s or 1m30s", param, ctx)
            seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
        if not math.isfinite(seconds) or seconds <= 0:
            self.fail(f"{text!r} is not above zero", param, ctx)
        return seconds


def _with(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of the help text."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_connection = _with(
    click.option(
        "-c",
        "--config",
        metavar="PATH",
        type=click.Path(),
        help="Connection settings, YAML or JSON (kind CalicoAPIConfig).",
    ),
    click.option("--context", "kube_context", metavar="NAME", help="kubeconfig context; no effect with etcd."),
    click.option("--allow-version-mismatch", is_flag=True, help="Work with a cluster of another version."),
)  # fmt: skip


def common(command: Command) -> Command:
    """The options that say where to connect to; the command gets them as one argument, `session`."""

    @wraps(command)
    def with_session(
        *args: Any, config: str | None, kube_context: str | None, allow_version_mismatch: bool, **kwargs: Any
    ) -> Any:
        session = session_of(config, context=kube_context or "", any_version=allow_version_mismatch)
        return command(*args, session=session, **kwargs)

    return cast(Command, _connection(with_session))


namespaced = click.option("-n", "--namespace", default="", metavar="NAME", help="`default` when not given.")
_recursive = click.option("-R", "--recursive", is_flag=True, help="Go into the directories of a directory.")
_skip_empty = click.option("--skip-empty", is_flag=True, help="Files without resources are no error.")


def _filenames(*, required: bool) -> Callable[[Any], Any]:
    return click.option(
        "-f", "--filename", "files", multiple=True, required=required, metavar="FILE|DIR|-", type=click.Path(),
        help="Resources to work on; may be given several times.",
    )  # fmt: skip


from_files = _with(_filenames(required=True), _recursive, _skip_empty)
or_files = _with(_filenames(required=False), _recursive, _skip_empty)


@dataclass(frozen=True, slots=True)
class Writing:
    """wait_s: how long to wait for the nodes, None not at all. dry_run: none | client | server."""

    wait_s: float | None = None
    dry_run: str = "none"


_writing = _with(
    click.option("--wait", "waiting", is_flag=True, help="Return when every node concerned has it in its kernel."),
    click.option("--timeout", "timeout_s", type=Duration(), default="30s", show_default=True, help="Limit for --wait."),
    click.option(
        "--dry-run", type=click.Choice(["none", "client", "server"]), default="none", show_default=True,
        help="Change nothing. client: check each resource by itself. server: check all against the datastore, and "
             "show what would change.",
    ),
)  # fmt: skip


def writes(command: Command) -> Command:
    """The options of writing; the command gets them as one argument, `how`."""

    @wraps(command)
    def with_how(*args: Any, waiting: bool, timeout_s: float, dry_run: str, **kwargs: Any) -> Any:
        if waiting and dry_run != "none":
            raise click.UsageError("--wait has nothing to wait for with --dry-run")
        return command(*args, how=Writing(timeout_s if waiting else None, dry_run), **kwargs)

    return cast(Command, _writing(with_how))
