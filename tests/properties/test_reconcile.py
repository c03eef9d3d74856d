"""The reconciler's steps, which look only at what was touched, against a world that somebody else changes too."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.reconcile import Diff, Reconciler

KEYS, VALUES = st.sampled_from("abcd"), st.integers(1, 3)
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, VALUES),
    st.tuples(st.just("drop"), KEYS, st.none()),
    st.tuples(st.just("replace"), st.dictionaries(KEYS, VALUES), st.none()),
    st.tuples(st.just("lost"), KEYS, st.none()),  # taken from the world
    st.tuples(st.just("foreign"), KEYS, VALUES),  # changed by somebody, and noticed: compare everything
    st.tuples(st.just("refuse"), KEYS, st.none()),
)
EXAMPLES = settings(max_examples=max(300, settings().max_examples))


class World:
    def __init__(self) -> None:
        self.things: dict[str, int] = {}
        self.refused: set[str] = set()
        self.reads = 0

    async def read(self) -> dict[str, int]:
        self.reads += 1
        return dict(self.things)

    async def apply(self, todo: Diff[str, int]) -> dict[str, Exception]:
        assert todo
        for key in todo.drop:
            del self.things[key]  # KeyError: dropped what was not there
        for key, value in todo.put.items():
            assert self.things.get(key) != value, "written without need"
            if key not in self.refused:
                self.things[key] = value
        return {key: OSError("refused") for key in todo.put if key in self.refused}


@EXAMPLES
@given(st.lists(st.tuples(STEPS, st.booleans()), max_size=20))
def test_after_a_step_the_world_is_as_desired(steps: list[tuple[tuple, bool]]) -> None:
    async def scenario() -> None:
        world, wanted = World(), dict[str, int]()
        reconciler = Reconciler(world)
        reconciler.in_sync = True
        for (kind, key, value), then_step in steps:
            match kind:
                case "put":
                    wanted[key] = value
                    reconciler.put(key, value)
                case "drop":
                    wanted.pop(key, None)
                    reconciler.drop(key)
                case "replace":
                    wanted = dict(key)
                    reconciler.desired = key
                case "lost":
                    world.things.pop(key, None)
                    reconciler.lost(key)
                case "foreign":
                    world.things[key] = value + 10
                    reconciler.resync()
                case "refuse":
                    world.refused ^= {key}
            if then_step:
                failed = await reconciler.step()
                assert failed.keys() <= world.refused
                kept = {k: v for k, v in world.things.items() if k not in failed}
                assert kept == {k: v for k, v in wanted.items() if k not in failed}
            assert reconciler.desired == wanted

    asyncio.run(scenario())


@given(st.lists(st.tuples(KEYS, VALUES, st.booleans()), max_size=20))
def test_what_is_asked_for_during_a_write_is_written_by_the_next_step(asked: list[tuple[str, int, bool]]) -> None:
    async def scenario() -> None:
        world, todo = World(), list(asked)
        reconciler = Reconciler(world)
        reconciler.in_sync = True
        apply = world.apply

        async def apply_while_more_comes(diff: Diff[str, int]) -> dict[str, Exception]:
            failed = await apply(diff)
            if todo:
                key, value, lost = todo.pop()
                reconciler.put(key, value)
                if lost:
                    world.things.pop(key, None)
                    reconciler.lost(key)
            return failed

        world.apply = apply_while_more_comes  # type: ignore[method-assign]
        reconciler.put("a", 9)
        for _ in range(len(asked) + 2):
            await reconciler.step()
        reads = world.reads
        await reconciler.step()
        assert world.reads == reads == 1, "compared everything without need"
        if not todo:
            assert world.things == reconciler.desired

    asyncio.run(scenario())
