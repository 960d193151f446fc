"""Room for bodies whose senders are not proven: who gets it, who waits, who is sent away."""

from __future__ import annotations

import asyncio

import pytest

from ravebot.gitlab.unproven import FREE_BYTES, NoRoom, Share, Unproven


async def waiting(unproven: Unproven, size_bytes: int) -> tuple[Share, asyncio.Task[None]]:
    share = Share(unproven)
    task = asyncio.create_task(share.grow(FREE_BYTES + size_bytes))
    await asyncio.sleep(0)
    return share, task


async def test_a_body_that_grows_takes_only_what_it_has_not_and_nothing_for_its_beginning() -> None:
    unproven = Unproven(1000, 0.01)
    share, other = Share(unproven), Share(unproven)
    for size in (0, FREE_BYTES, FREE_BYTES + 400, FREE_BYTES + 900, FREE_BYTES + 900):
        await share.grow(size)
    await other.grow(FREE_BYTES + 100)
    with pytest.raises(NoRoom):
        await other.grow(FREE_BYTES + 101)


async def test_what_was_given_back_goes_to_whoever_waits_and_is_given_back_once() -> None:
    unproven = Unproven(1000, 5)
    first, _ = await waiting(unproven, 1000)
    _, second = await waiting(unproven, 600)
    _, third = await waiting(unproven, 600)
    assert not second.done()
    first.give_back()
    first.give_back()
    await second
    assert not third.done()
    third.cancel()


async def test_a_small_body_passes_a_large_one_that_waits() -> None:
    unproven = Unproven(1000, 5)
    await waiting(unproven, 700)
    _, large = await waiting(unproven, 500)
    _, small = await waiting(unproven, 300)
    await small
    assert not large.done()
    large.cancel()


async def test_one_that_went_away_while_it_waited_holds_nothing() -> None:
    unproven = Unproven(1000, 5)
    first, _ = await waiting(unproven, 1000)
    share, task = await waiting(unproven, 1000)
    task.cancel()
    await asyncio.wait({task})
    share.give_back()
    first.give_back()
    _, last = await waiting(unproven, 1000)
    assert last.done()


async def test_only_so_many_wait_and_others_are_sent_away_at_once() -> None:
    unproven = Unproven(1000, 5)
    await waiting(unproven, 1000)
    tasks = [(await waiting(unproven, 1))[1] for _ in range(33)]
    assert [task.done() for task in tasks] == [False] * 32 + [True]
    with pytest.raises(NoRoom):
        await tasks[-1]
    for task in tasks:
        task.cancel()
