"""Who goes first when several want to write."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ravebot.store.turns import Turns


class Line:
    """Takes turns and remembers in which order."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.order: list[str] = []
        self.inside = 0

    async def go(self, name: str, *, urgent: bool = False) -> None:
        async with self.turns.take(urgent=urgent):
            self.inside += 1
            assert self.inside == 1
            self.order.append(name)
            await asyncio.sleep(0)
            self.inside -= 1


async def test_the_urgent_go_first_and_otherwise_the_order_is_kept() -> None:
    line = Line()
    async with asyncio.TaskGroup() as group:
        for name in ("a", "b", "c", "D", "E"):
            group.create_task(line.go(name, urgent=name.isupper()))
    assert line.order == ["a", "D", "E", "b", "c"]


async def test_one_that_gives_up_waiting_holds_up_nobody_not_even_in_the_moment_of_its_turn() -> None:
    line = Line()
    tasks = [asyncio.create_task(line.go(name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert line.order == ["a", "c"]
    async with line.turns.take():
        waiting = [asyncio.create_task(line.go(name)) for name in "de"]
        await asyncio.sleep(0)
    waiting[0].cancel()  # its turn has come, and it does not know yet
    await asyncio.gather(*waiting, return_exceptions=True)
    assert line.order == ["a", "c", "e"]


async def test_a_turn_that_fails_is_passed_on() -> None:
    line = Line()
    with suppress(ValueError):
        async with line.turns.take():
            raise ValueError
    await line.go("a")
    assert line.order == ["a"]
