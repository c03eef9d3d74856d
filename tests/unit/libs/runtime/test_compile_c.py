"""C programs are compiled once for each content."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from libs.runtime.compile_c import CompileError, cache_dir, compile_c


def test_same_text_is_compiled_once_and_other_text_or_defines_anew(tmp_path: Path) -> None:
    source, cache = tmp_path / "a.c", tmp_path / "cache"
    source.write_text("int main(void) { return N; }\n")
    first = compile_c(source, defines={"N": "3"}, cache=cache)
    assert subprocess.run([first], check=False).returncode == 3
    stamp = first.stat().st_mtime_ns
    assert compile_c(source, defines={"N": "3"}, cache=cache) == first
    assert first.stat().st_mtime_ns == stamp
    assert compile_c(source, defines={"N": "4"}, cache=cache) != first
    source.write_text("int main(void) { return N + 1; }\n")
    assert subprocess.run([compile_c(source, defines={"N": "3"}, cache=cache)], check=False).returncode == 4


def test_compiler_errors_are_told_and_nothing_stays_behind(tmp_path: Path) -> None:
    source, cache = tmp_path / "a.c", tmp_path / "cache"
    source.write_text("int main(void) { return missing; }\n")
    with pytest.raises(CompileError, match="missing"):
        compile_c(source, cache=cache)
    assert list(cache.iterdir()) == []


def test_cache_directory_can_be_chosen() -> None:
    assert cache_dir({"CALICO_CACHE_DIR": "/x"}) == Path("/x")
    assert cache_dir({"XDG_CACHE_HOME": "/y"}) == Path("/y/calico")
