"""Threads that may be stuck for ever: few, shared fairly, and nobody waits for them at the end."""

from __future__ import annotations

import threading
import time

import pytest

from ravebot.providers.libvirt.threads import Threads


def test_what_a_call_returns_or_raises_is_the_futures() -> None:
    threads = Threads(2, "some")
    assert threads.submit(lambda: 7).result(1) == 7
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(1)
    threads.close()


def test_there_are_no_more_than_so_many_and_an_idle_one_is_used_again() -> None:
    threads = Threads(3, "counted")

    def alive() -> int:
        return sum(thread.name.startswith("counted") for thread in threading.enumerate())

    for _ in range(5):
        threads.submit(lambda: None).result(1)
        time.sleep(0.02)
    assert alive() == 1
    stuck = threading.Event()
    futures = [threads.submit(stuck.wait) for _ in range(10)]
    time.sleep(0.05)
    assert alive() == 3
    stuck.set()
    assert all(future.result(1) for future in futures)
    threads.close()
    time.sleep(0.05)
    assert alive() == 0


def test_who_cancels_before_the_turn_comes_is_passed_over() -> None:
    threads, stuck, called = Threads(1, "one"), threading.Event(), threading.Event()
    first = threads.submit(stuck.wait)
    assert threads.submit(called.set).cancel()
    stuck.set()
    first.result(1)
    threads.submit(lambda: None).result(1)
    assert not called.is_set()


def test_closing_cancels_what_waits_and_waits_for_nothing() -> None:
    threads, stuck = Threads(1, "closed"), threading.Event()
    under_way = threads.submit(stuck.wait)
    time.sleep(0.02)
    waiting = threads.submit(lambda: None)
    threads.close()
    assert waiting.cancelled()
    stuck.set()
    assert under_way.result(1)
