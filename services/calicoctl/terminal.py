"""What is only for people at a terminal: colours on it, progress on standard error. In a pipe there is neither."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import click

PROGRESS_AFTER_S = 1.0
"""Work that is done sooner shows none."""


def coloured(stream: TextIO | None = None) -> bool:
    """NO_COLOR (no-color.org) and TERM=dumb turn colours off, FORCE_COLOR on."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream or sys.stdout).isatty()


def echo(text: str, colour: str | None = None) -> None:
    click.echo(click.style(text, fg=colour) if colour and coloured() else text)


@contextmanager
def progress(total: int, what: str, stream: TextIO | None = None) -> Iterator[Callable[[int], None]]:
    """`applied 320 of 1000`, in place, once it takes longer than a moment. The function is told how many more."""
    out = stream or sys.stderr
    shown_to_people = out.isatty()
    begun, done, shown = time.monotonic(), 0, False

    def more(count: int) -> None:
        nonlocal done, shown
        done += count
        if shown_to_people and time.monotonic() - begun > PROGRESS_AFTER_S:
            out.write(f"\r{what} {done} of {total}")
            out.flush()
            shown = True

    try:
        yield more
    finally:
        if shown:
            out.write("\r\033[K")
            out.flush()


@contextmanager
def stage(what: str, stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """`collecting nodes …`, in place, at a terminal; the function is told the part that begins."""
    out = stream or sys.stderr
    shown_to_people = out.isatty()

    def begin(part: str) -> None:
        if shown_to_people:
            out.write(f"\r\033[K{what} {part} …")
            out.flush()

    try:
        yield begin
    finally:
        if shown_to_people:
            out.write("\r\033[K")
            out.flush()
