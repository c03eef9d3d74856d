"""The plugin binary from shim.c."""

from __future__ import annotations

import json
from pathlib import Path

from libs.runtime.compile_c import compile_c

SOURCE = Path(__file__).with_name("shim.c")


def build(*, socket: str | None = None, cache: Path | None = None) -> Path:
    """Path of the compiled plugin. socket: Felix's socket that is compiled in, instead of the usual one.

    Raises libs.runtime.compile_c.CompileError.
    """
    return compile_c(SOURCE, defines={"CALICO_CNI_SOCKET": json.dumps(socket)} if socket else None, cache=cache)
