"""Compile one C file into a small static program, once for each content: with musl where it is installed."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

# In order of preference; a static musl program runs on every Linux of its architecture, whatever libc the host has.
_COMPILERS = (("musl-gcc", "-static"), ("cc", "-static"), ("cc",))
_FLAGS = ("-Os", "-s", "-std=gnu11", "-Wall", "-Wextra")


class CompileError(RuntimeError):
    """No compiler could make the program. The text has what each of them said."""


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """CALICO_CACHE_DIR, else calico under XDG_CACHE_HOME or ~/.cache."""
    if named := environ.get("CALICO_CACHE_DIR"):
        return Path(named)
    home = environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "calico"


def compile_c(source: Path, *, defines: Mapping[str, str] | None = None, cache: Path | None = None) -> Path:
    """Path of the program, compiled now or earlier from the same text with the same defines.

    defines: name -> C expression (a string constant with its quotes). Safe to call from several processes at once.
    Raises CompileError.
    """
    macros = [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]
    text = source.read_bytes()
    key = hashlib.sha256(b"\0".join([text, platform.machine().encode(), *(m.encode() for m in (*macros, *_FLAGS))]))
    directory = cache or cache_dir()
    target = directory / f"{source.stem}-{key.hexdigest()[:16]}"
    if target.exists():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
        made = Path(scratch) / source.stem
        for compiler, *mode in _COMPILERS:
            if shutil.which(compiler) is None:
                said.append(f"{compiler}: not installed")
                continue
            command = [compiler, *_FLAGS, *mode, *macros, "-o", str(made), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made.rename(target)
                return target
            said.append(f"{' '.join(command)}:\n{done.stderr.strip()}")
    raise CompileError(f"{source} could not be compiled.\n" + "\n".join(said))
