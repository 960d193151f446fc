"""Slow actions in flight, at most one per machine; the loop starts them and does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import structlog

from ravebot.backoff import Backoff
from ravebot.errors import RavebotError
from ravebot.sandboxes.decide import Do
from ravebot.sandboxes.model import MachineId

log = structlog.get_logger()

_PAUSES = Backoff.growing(1.0, 30.0)


@dataclass
class _Flight:
    do: Do
    task: asyncio.Task[None]


class Flights:
    """The running actions by machine, and the backoff of machines whose action failed."""

    def __init__(self, group: asyncio.TaskGroup, on_end: Callable[[], None]) -> None:
        self._group = group
        self._on_end = on_end
        self._flights: dict[MachineId, _Flight] = {}
        self._failures: dict[MachineId, int] = {}
        self._not_before: dict[MachineId, float] = {}

    def busy(self, machine_id: MachineId) -> Do | None:
        """The running action of a machine."""
        flight = self._flights.get(machine_id)
        return flight.do if flight else None

    def any(self) -> bool:
        return bool(self._flights)

    def may_start(self, machine_id: MachineId) -> bool:
        now = asyncio.get_running_loop().time()
        return machine_id not in self._flights and self._not_before.get(machine_id, 0.0) <= now

    def cancel(self, machine_id: MachineId) -> None:
        """Cancel the running action: the machine's wanted state has changed."""
        if flight := self._flights.get(machine_id):
            flight.task.cancel()
        self._not_before.pop(machine_id, None)

    def start(self, machine_id: MachineId, do: Do, action: Coroutine[object, object, None]) -> None:
        task = self._group.create_task(self._run(machine_id, do, action))
        self._flights[machine_id] = _Flight(do, task)

        def ended(_: asyncio.Task[None]) -> None:
            action.close()  # a task that is cancelled before its first step never runs
            del self._flights[machine_id]
            self._on_end()

        task.add_done_callback(ended)

    async def _run(self, machine_id: MachineId, do: Do, action: Coroutine[object, object, None]) -> None:
        try:
            await action
        except RavebotError as error:
            pause = self._failed(machine_id)
            log.warning("action failed, tried again", machine=machine_id, action=do.value, error=str(error), in_s=pause)
        # A bug that a hostile guest triggers must end neither the bot nor the care for other sandboxes.
        except Exception:
            pause = self._failed(machine_id)
            log.exception("action failed: this is a bug of ravebot's", machine=machine_id, action=do.value, in_s=pause)
        else:
            self._failures.pop(machine_id, None)
            self._not_before.pop(machine_id, None)

    def _failed(self, machine_id: MachineId) -> float:
        """Start the machine's backoff; returns its seconds."""
        failures = self._failures.get(machine_id, 0) + 1
        pause = _PAUSES.after(failures)
        self._failures[machine_id] = failures
        self._not_before[machine_id] = asyncio.get_running_loop().time() + pause
        return pause
