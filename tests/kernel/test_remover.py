"""Many veth pairs removed in one request, and nothing else with them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from libs.netlink.remover import GROUP, LinkRemover
from libs.testkit.netns import Namespace, namespace, run

pytestmark = pytest.mark.kernel


@pytest.fixture
def node() -> Iterator[Namespace]:
    with namespace("rmv") as space:
        yield space


def pairs(node: Namespace, *names: str) -> None:
    for name in names:
        run(node, ["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"])


def links(node: Namespace) -> set[str]:
    shown = run(node, ["ip", "-br", "link"]).splitlines()
    return {line.split()[0].split("@")[0] for line in shown} - {"lo"}


def remove(node: Namespace, *names: str) -> tuple[list[bool], int]:
    """What each said, and how many requests it took."""

    async def work() -> tuple[list[bool], int]:
        remover = LinkRemover(node.path)
        try:
            return list(await asyncio.gather(*(remover.remove(name) for name in names))), remover.requests
        finally:
            await remover.close()

    return asyncio.run(work())


def test_those_asked_for_together_go_together_and_no_others(node: Namespace) -> None:
    pairs(node, *(f"cali{number}" for number in range(20)), "other")
    run(node, ["ip", "link", "add", "br0", "type", "bridge"])
    run(node, ["ip", "link", "set", "other", "group", "77"])
    found, requests = remove(node, *(f"cali{number}" for number in range(20)))
    assert all(found)
    assert requests == 1
    assert links(node) == {"other", "otherp", "br0"}


@pytest.mark.parametrize("others", [(), ("cali0",), ("cali0", "cali1")], ids=["alone", "with one", "with two"])
def test_what_is_not_there_or_no_veth_is_said_and_stays(node: Namespace, others: tuple[str, ...]) -> None:
    pairs(node, "cali0", "cali1")
    run(node, ["ip", "link", "add", "br0", "type", "bridge"])
    found, _ = remove(node, "missing", "br0", *others)
    assert found == [False, False, *(True for _ in others)]
    assert "br0" in links(node)
    assert not links(node) & set(others)


def test_asked_for_twice_at_once_it_is_removed_once_and_both_hear_of_it(node: Namespace) -> None:
    pairs(node, "cali0")
    assert remove(node, "cali0", "cali0") == ([True, True], 1)


def test_both_ends_in_one_request_are_no_trouble(node: Namespace) -> None:
    pairs(node, "cali0", "cali1")
    found, _ = remove(node, "cali0", "cali0p", "cali1")
    assert all(found)
    assert links(node) == set()


def test_what_a_process_left_in_the_group_goes_with_the_next(node: Namespace) -> None:
    """It was killed between the two steps; its journal would have it removed again in any case."""
    pairs(node, "cali0", "cali1", "cali2")
    run(node, ["ip", "link", "set", "cali2", "group", str(GROUP)])
    assert remove(node, "cali0", "cali1")[0] == [True, True]
    assert links(node) == set()


def test_a_caller_that_is_cancelled_ends_once_the_interface_is_gone(node: Namespace) -> None:
    pairs(node, "cali0")

    async def work() -> None:
        remover = LinkRemover(node.path)
        task = asyncio.ensure_future(remover.remove("cali0"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert links(node) == set()
        await remover.close()

    asyncio.run(work())


def test_what_comes_during_a_removal_goes_with_the_next(node: Namespace) -> None:
    pairs(node, *(f"cali{number}" for number in range(10)))

    async def work() -> None:
        remover = LinkRemover(node.path)
        first = asyncio.ensure_future(remover.remove("cali0"))
        await asyncio.sleep(0)
        rest = [asyncio.ensure_future(remover.remove(f"cali{number}")) for number in range(1, 10)]
        assert all(await asyncio.gather(first, *rest))
        assert remover.requests <= 2
        assert links(node) == set()
        await remover.close()

    asyncio.run(work())


@pytest.mark.parametrize("failure", [OSError(5, "no kernel"), ValueError("not understood")])
def test_after_any_failure_nobody_waits_and_the_next_removal_works(
    node: Namespace, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    pairs(node, "cali0")

    def failing(self: LinkRemover, names: Sequence[str]) -> set[str]:
        raise failure

    async def work() -> None:
        remover = LinkRemover(node.path)
        try:
            with monkeypatch.context() as broken:
                broken.setattr(LinkRemover, "_remove", failing)
                with pytest.raises(type(failure)):
                    await asyncio.wait_for(remover.remove("cali0"), 10)
            assert await asyncio.wait_for(remover.remove("cali0"), 10)
        finally:
            await remover.close()

    asyncio.run(work())
