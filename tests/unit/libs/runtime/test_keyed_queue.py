"""One key at a time, latest value wins, bounded, several keys at once."""

from __future__ import annotations

import asyncio

import pytest

from libs.runtime.keyed_queue import KeyedQueue, KeyedQueueClosed, KeyedQueueFull


async def test_values_of_one_key_coalesce_and_keys_come_in_order_of_arrival() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue()
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        queue.put_nowait(key, value)
    assert len(queue) == 2
    assert await queue.get() == ("a", 3)
    assert await queue.get() == ("b", 2)
    assert (len(queue), queue.busy) == (0, 2)


async def test_merge_decides_what_remains_of_two_waiting_values() -> None:
    queue: KeyedQueue[str, list[int]] = KeyedQueue(merge=lambda old, new: old + new)
    queue.put_nowait("a", [1])
    queue.put_nowait("a", [2])
    assert await queue.get() == ("a", [1, 2])


async def test_key_being_worked_on_waits_until_done() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue()
    queue.put_nowait("a", 1)
    await queue.get()
    queue.put_nowait("a", 2)
    queue.put_nowait("b", 3)
    assert await queue.get() == ("b", 3)
    next_one = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not next_one.done()
    queue.done("a")
    assert await next_one == ("a", 2)


async def test_full_queue_takes_new_values_of_waiting_keys_and_holds_back_new_keys() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue(max_keys=1)
    queue.put_nowait("a", 1)
    queue.put_nowait("a", 2)
    with pytest.raises(KeyedQueueFull):
        queue.put_nowait("b", 1)
    putting = asyncio.create_task(queue.put("b", 1))
    await asyncio.sleep(0)
    assert not putting.done()
    assert await queue.get() == ("a", 2)
    await putting
    assert await queue.get() == ("b", 1)


async def test_retry_keeps_a_newer_value() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue(max_keys=1)
    queue.put_nowait("a", 1)
    await queue.get()
    queue.put_nowait("b", 9)
    queue.retry("a", 1)  # beyond max_keys: work must not get lost
    assert [await queue.get(), await queue.get()] == [("b", 9), ("a", 1)]
    queue.put_nowait("a", 2)
    queue.retry("a", 1)
    queue.done("b")
    assert await queue.get() == ("a", 2)


async def test_closed_queue_hands_out_what_waits_and_then_ends() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue()
    queue.put_nowait("a", 1)
    queue.close()
    with pytest.raises(KeyedQueueClosed):
        queue.put_nowait("b", 1)
    assert await queue.get() == ("a", 1)
    with pytest.raises(KeyedQueueClosed):
        await queue.get()


async def test_closing_ends_those_who_wait() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue(max_keys=1)
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.close()
    with pytest.raises(KeyedQueueClosed):
        await getting


async def test_run_works_in_parallel_across_keys_and_join_waits_for_all() -> None:
    queue: KeyedQueue[int, int] = KeyedQueue()
    working: set[int] = set()
    widest = 0
    done: list[tuple[int, int]] = []

    async def work(key: int, value: int) -> None:
        nonlocal widest
        assert key not in working
        working.add(key)
        widest = max(widest, len(working))
        await asyncio.sleep(0.001)
        working.remove(key)
        done.append((key, value))

    runner = asyncio.create_task(queue.run(work, parallel=3))
    for value in range(5):
        for key in range(6):
            await queue.put(key, value)
        await asyncio.sleep(0)
    await queue.join()
    assert widest == 3
    assert dict(done) == dict.fromkeys(range(6), 4)
    queue.close()
    await runner


async def test_failure_of_the_work_ends_run_and_frees_the_key() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue()

    async def work(key: str, value: int) -> None:
        raise ValueError(key)

    queue.put_nowait("a", 1)
    with pytest.raises(ExceptionGroup) as caught:
        await queue.run(work, parallel=2)
    assert str(caught.value.exceptions[0]) == "a"
    assert queue.busy == 0


async def test_cancelled_getter_loses_nothing() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.put_nowait("a", 1)
    first.cancel()
    assert await second == ("a", 1)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_closed_queue_still_hands_out_what_came_for_a_busy_key() -> None:
    queue: KeyedQueue[str, int] = KeyedQueue()
    queue.put_nowait("a", 1)
    await queue.get()
    queue.put_nowait("a", 2)
    queue.close()
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not getting.done()
    queue.done("a")
    assert await getting == ("a", 2)
