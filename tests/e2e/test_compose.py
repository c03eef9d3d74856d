"""README.md, "With docker compose": its commands run exactly as written, on a Docker daemon of the test's own.

`sh` blocks are run in the order of the page; a `text` block after one is its whole output (`tests.kube.test_docs`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.testkit import netns
from libs.testkit.docker import DockerDaemon, NotHere
from tests.kube.test_docs import pattern, steps

ROOT = Path(__file__).resolve().parents[2]
STATE = """
docker compose ps -a
for node in node1 node2 node3; do
    docker compose exec $node sh -c 'ip addr; ip neigh; ip route; calico-node status show' || :
done
docker compose logs --tail 20
"""
TITLE = "## With docker compose\n"
_TIMEOUT_S = 600.0

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(_TIMEOUT_S)]


def section() -> str:
    page = (ROOT / "README.md").read_text()
    assert page.count(TITLE) == 1
    return re.split(r"^## ", page.split(TITLE)[1], maxsplit=1, flags=re.M)[0]


@pytest.fixture
def daemon() -> Iterator[DockerDaemon]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    if not (ROOT / ".run" / "image.tar").exists():
        pytest.skip("the container image is not here")
    try:
        made = DockerDaemon()
    except NotHere as lack:
        pytest.skip(str(lack))
    with made:
        yield made


def test_the_readmes_commands_print_what_it_shows(daemon: DockerDaemon) -> None:
    walk = steps(section())
    assert len(walk) >= 5
    for step in walk:
        done = daemon.run(step.script)
        state = "" if done.returncode == 0 else daemon.run(STATE).stdout
        assert done.returncode == 0, f"{step.script}\nended with {done.returncode}:\n{done.stdout}\n{state[-12000:]}"
        if step.expected is not None:
            assert pattern(step.expected).fullmatch(done.stdout), (
                f"{step.script}\nprinted:\n{done.stdout}\nexpected:\n{step.expected}"
            )
    left = daemon.run("docker ps -aq; docker volume ls -q; docker network ls -q --filter type=custom").stdout
    assert left == ""
