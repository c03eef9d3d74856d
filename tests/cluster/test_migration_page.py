"""docs/install/migration.md: its commands run as written on a node that a real Calico left, as far as one node goes.

`sh` blocks are run in one shell in the order of the page; a `text` block after one is its whole output
(`tests.kube.test_docs`). Settings that name places on a disk stand in the environment.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from libs.netlink.netns import in_netns
from libs.testkit.cluster import Cluster
from tests.cluster.calico_node import BLOCKS, CalicoNode, write_cluster
from tests.cluster.conftest import open_world
from tests.cluster.test_node_supervised import Stage
from tests.kube.test_docs import pattern, run, steps

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
PAGE = Path(__file__).resolve().parents[2] / "docs/install/migration.md"


def unindented(text: str) -> str:
    """Blocks inside lists stand at the margin."""
    return re.sub(r"^( +)```.*?^\1```$", lambda block: textwrap.dedent(block.group()), text, flags=re.M | re.S)


def programs(directory: Path) -> Path:
    """A directory with the commands that the page uses, which an installation has on the path."""
    made = directory / "bin"
    made.mkdir()
    for name, module in (("calicoctl", "calicoctl"), ("calico-node", "node"), ("calico-typha", "typha")):
        (made / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m services.{module} "$@"\n')
        (made / name).chmod(0o755)
    return made


def bash(netns: Path, directory: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """It leads a process group."""
    with in_netns(netns):
        return subprocess.Popen(
            ["bash", "--norc", "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, cwd=directory, env=env, start_new_session=True,
        )  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shell(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[subprocess.Popen[str]]:
    """bash on node2, which Calico has just left: a pod, addresses, BIRD's blackhole."""
    directory = tmp_path_factory.mktemp("page")
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, services=False, daemons=("bgp",), fill=write_cluster)
        world = await open_world(stack, cluster)
        node = cluster.node("node2")
        calico = CalicoNode(cluster, node)
        await calico.write(world.store)
        await calico.plug(world.store, "web", {"app": "web"})
        node.namespace.ip([f"route add blackhole {BLOCKS[4]} proto bird"])
        env = Stage(world).env(node) | {
            "PATH": os.pathsep.join([str(programs(directory)), os.environ["PATH"]]),
            "PYTHONPATH": str(PAGE.parents[2]), "LC_ALL": "C.UTF-8",
            "FELIX_HEALTHHOST": "localhost", "CALICO_BGP_HEALTHHOST": "localhost",
            "CALICO_NODE_HEALTHHOST": "localhost", "TYPHA_HEALTHHOST": "localhost", "TYPHA_HEALTHPORT": "9098",
        }  # fmt: skip
        made = bash(node.namespace.path, directory, env)
        try:
            yield made
        finally:
            os.killpg(made.pid, signal.SIGKILL)
            made.wait()


async def test_the_pages_commands_do_what_it_says(shell: subprocess.Popen[str]) -> None:
    page = steps(unindented(PAGE.read_text()))
    assert len(page) > 7
    for number, step in enumerate(page):
        printed = run(shell, f"{step.script}\necho status-$?", number)
        printed, _, status = printed.rpartition("status-")
        assert status.strip() == "0", f"{step.script}\nprinted:\n{printed}"
        if step.expected is not None:
            assert pattern(step.expected).fullmatch(printed), (
                f"{step.script}\nprinted:\n{printed}\nexpected:\n{step.expected}"
            )
