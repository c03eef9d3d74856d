"""The keyed queue against a model of three dictionaries: nothing lost, nothing twice, never two workers on a key."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.runtime.keyed_queue import KeyedQueue, KeyedQueueClosed, KeyedQueueFull

KEYS = st.sampled_from("abcd")
MAX_KEYS = 3


class QueueMachine(RuleBasedStateMachine):
    """`order`: keys that may be handed out, oldest first; `waiting`: newest value by key; `busy`: with a worker."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.queue: KeyedQueue[str, int] = KeyedQueue(MAX_KEYS)
        self.waiting: dict[str, int] = {}
        self.order: list[str] = []
        self.busy: dict[str, int] = {}
        self.getters: list[asyncio.Task[tuple[str, int]]] = []
        self.number = 0
        self.closed = False

    def teardown(self) -> None:
        for task in self.getters:
            task.cancel()
        if self.getters:
            self.loop.run_until_complete(asyncio.wait(self.getters))
        self.loop.close()

    def settle(self) -> None:
        """Let every task run until it waits again, then compare what was handed out with the model."""
        for _ in range(20):
            self.loop.run_until_complete(asyncio.sleep(0))
        for getter in [t for t in self.getters if t.done()]:
            self.getters.remove(getter)
            if getter.exception() is not None:
                assert isinstance(getter.exception(), KeyedQueueClosed)
                assert self.closed
                assert not self.waiting
                continue
            key, value = getter.result()
            assert self.order, f"{key} was handed out and nothing should be"
            assert key == self.order.pop(0)
            assert value == self.waiting.pop(key)
            assert key not in self.busy
            self.busy[key] = value

    def model_put(self, key: str, value: int) -> None:
        if key not in self.waiting and key not in self.busy:
            self.order.append(key)
        self.waiting[key] = value

    @precondition(lambda self: not self.closed)
    @rule(key=KEYS)
    def put(self, key: str) -> None:
        self.number += 1
        full = key not in self.waiting and len(self.waiting) >= MAX_KEYS
        if full:
            with pytest.raises(KeyedQueueFull):
                self.queue.put_nowait(key, self.number)
        else:
            self.queue.put_nowait(key, self.number)
            self.model_put(key, self.number)
        self.settle()

    @rule()
    def get(self) -> None:
        self.getters.append(self.loop.create_task(self.queue.get()))
        self.settle()

    @precondition(lambda self: self.getters)
    @rule(data=st.data())
    def give_up_getting(self, data: st.DataObject) -> None:
        getter = data.draw(st.sampled_from(self.getters))
        getter.cancel()
        self.loop.run_until_complete(asyncio.wait([getter]))
        self.getters.remove(getter)
        self.settle()

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), again=st.booleans())
    def finish(self, data: st.DataObject, again: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.busy)))
        value = self.busy.pop(key)
        if again:
            self.queue.retry(key, value)
            self.waiting.setdefault(key, value)
        else:
            self.queue.done(key)
        if key in self.waiting:
            self.order.append(key)
        self.settle()

    @precondition(lambda self: not self.closed and self.number >= 8)  # late: little can follow
    @rule()
    def close(self) -> None:
        self.closed = True
        self.queue.close()
        with pytest.raises(KeyedQueueClosed):
            self.queue.put_nowait("a", 0)
        self.settle()

    @invariant()
    def counts_agree_and_nobody_waits_in_vain(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.busy == len(self.busy)
        assert not (self.getters and self.order)


TestKeyedQueue = QueueMachine.TestCase
