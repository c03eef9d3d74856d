"""docs/reference/apiserver.md says what happens: its commands run as written, in one shell, and print what it shows.

In a network namespace of its own, so that the usual ports are free. `sh` blocks are run; what stands in the `text`
block after one is its whole output, where `…` stands for anything, also for several lines when it is alone on a line.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from libs.netlink.netns import in_netns
from libs.testkit import netns
from libs.testkit.kube.programs import program
from libs.testkit.servers import EtcdServer, NatsServer
from tests.kube.conftest import needs

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reference/apiserver.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Step:
    """expected None: the output does not matter."""

    script: str
    expected: str | None


def steps(text: str) -> list[Step]:
    found: list[Step] = []
    for language, content in _BLOCK.findall(text):
        if language == "sh":
            found.append(Step(content, None))
        elif language == "text":
            assert found, "output before any command"
            assert found[-1].expected is None, "two outputs of one command"
            found[-1] = Step(found[-1].script, content)
        else:
            raise AssertionError(f"a block that is neither sh nor text: {language}")
    return found


def pattern(expected: str) -> re.Pattern[str]:
    """`…` in a line: anything within it; alone on a line: any lines."""
    lines = []
    for line in expected.splitlines():
        if line == "…":
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(".*".join(re.escape(part) for part in line.split("…")) + r"\n")
    return re.compile("".join(lines))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """bash in a namespace with etcd and NATS, in a directory of its own. It leads a process group that ends with it."""
    needs("kubectl")
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    path = os.pathsep.join([str(Path(sys.executable).parent), str(program("kubectl").parent), os.environ["PATH"]])
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "ETCD", "NATS", "APISERVER"))
    }
    space = netns.create("docs")
    try:
        with EtcdServer(netns=space.name), NatsServer(netns=space.name), in_netns(space.path):
            made = subprocess.Popen(
                ["bash", "--norc", "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, cwd=tmp_path, start_new_session=True,
                env=plain | {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
            try:
                yield made
            finally:
                os.killpg(made.pid, signal.SIGKILL)
                made.wait()
    finally:
        netns.delete(space)


def run(shell: subprocess.Popen[str], script: str, number: int) -> str:
    """What one block printed. The shell tells its end by a line that no block prints."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    end = f"end-of-block-{number}"
    shell.stdin.write(f"{script}\necho {end}\n")
    shell.stdin.flush()
    lines = []
    for line in shell.stdout:
        if line.rstrip("\n").endswith(end):
            lines.append(line.rstrip("\n").removesuffix(end))
            break
        lines.append(line)
    return "".join(lines)


@pytest.mark.timeout(_TIMEOUT_S)
def test_the_pages_commands_print_what_it_shows(shell: subprocess.Popen[str], tmp_path: Path) -> None:
    page = steps(PAGE.read_text())
    assert len(page) > 10
    for number, step in enumerate(page):
        printed = run(shell, step.script, number)
        if printed and not printed.endswith("\n"):
            printed += "\n"
        log = tmp_path / "apiserver.log"
        tail = log.read_text()[-3000:] if log.exists() else ""
        if step.expected is None:
            continue
        assert pattern(step.expected).fullmatch(printed), (
            f"{step.script}\nprinted:\n{printed}\nexpected:\n{step.expected}\n{tail}"
        )


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("one\n", "one\n", True),
        ("one\n", "one\ntwo\n", False),
        ("o…e\n", "o n e\n", True),
        ("o…e\n", "o\ne\n", False),
        ("a\n…\nb\n", "a\nb\n", True),
        ("a\n…\nb\n", "a\nx\ny\nb\n", True),
        ("a\n…\n", "b\n", False),
        ("1.0\n", "1x0\n", False),
    ],
)
def test_expected_output_is_compared_to_the_last_line(expected: str, printed: str, same: bool) -> None:
    assert bool(pattern(expected).fullmatch(printed)) is same
