"""A caller in a sandbox, known by its socket: there is only that sandbox, and it acts only while a turn runs there.

Anything in the machine can ask, so nothing tells which of several turns does. What is done is therefore what each of
them may: a turn that one person may less in keeps all others from more, and none can borrow another's rights.
"""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.agents.model import AGENT, Conversation, Turn
from ravebot.agents.rights import ChainRights
from ravebot.commands.permissions import Decision
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxId
from ravebot.store import agent_work, conversations, merge_requests, sandboxes
from ravebot.store.api_tokens import Scope
from ravebot.store.database import Transaction
from ravebot.tools.callers.contract import CallerKind, Reached
from ravebot.tools.limits import CallRate
from ravebot.tools.problems import ProblemKind, ToolProblem
from ravebot.tools.shapes import Me
from ravebot.tools.workbench import Workbench

OWN = "."
"""What a caller in a sandbox means where it names no merge request."""
_READS = Decision(True, "It is the sandbox that asks.")
_RUNS = CallRate(burst=30, per_second=0.5)
_OTHER_ACTS = CallRate(burst=10, per_second=1 / 30)
_NO_TURN = (
    "No turn of an agent runs in this sandbox. Outside one, nothing is done for it: speak to the agent, and have it do"
    " this in its turn."
)
_ANOTHER_TURN = "Another turn of an agent began in this sandbox meanwhile, which may be allowed less: try again."
Running = tuple[Conversation, Turn]


@dataclass(frozen=True)
class SandboxCaller:
    """Whatever runs in that sandbox; nothing that it says of itself is believed."""

    sandbox_id: SandboxId
    kind = CallerKind.SANDBOX
    token = None

    @property
    def name(self) -> str:
        return str(self.sandbox_id)

    def lacks(self, _: Scope) -> str:
        return ""

    def act_rate(self, scope: Scope | None) -> CallRate:
        return _RUNS if scope is Scope.RUN else _OTHER_ACTS

    async def me(self, bench: Workbench) -> Me:
        mr = await bench.database.read(self._own)
        return Me(
            owner="", token="", scopes=(), projects=(mr.project_path,), agent="", expires_at=None, sandbox=mr.full_ref
        )

    async def reach(self, bench: Workbench, written: str, *, acts: bool = False) -> Reached:
        mr = await bench.database.read(self._own)
        if written not in (OWN, mr.full_ref):
            why = f"From this sandbox only its own merge request is reached, {mr.full_ref}: leave `ref` out."
            raise ToolProblem(ProblemKind.FORBIDDEN, why)
        if not acts:
            return Reached(mr, Actor(AGENT, mr.full_ref), _READS)
        running = await bench.database.read(self._running)
        if not running:
            raise ToolProblem(ProblemKind.FORBIDDEN, _NO_TURN)  # not recorded: a guest could fill the log
        rights = ChainRights(bench.config, bench.database, bench.people)
        decisions = [await rights.still_may(conversation, turn) for conversation, turn in running]
        decision = next((one for one in decisions if not one.allowed), decisions[0])
        newest, _ = running[0]
        return Reached(mr, Actor(AGENT, newest.agent), decision, frozenset(turn.id for _, turn in running))

    async def may_see(self, bench: Workbench, mr: MergeRequest) -> bool:
        sandbox = await bench.database.read(lambda tx: sandboxes.get(tx, self.sandbox_id))
        return sandbox is not None and sandbox.mr == mr.ref

    def recheck(self, _: Transaction) -> None:
        """Its socket ends with its sandbox."""

    def acting(self, tx: Transaction, reached: Reached | None) -> Actor:
        running = {turn.turn_id for turn in agent_work.running_in(tx, self.sandbox_id)}
        if not running or reached is None:
            raise ToolProblem(ProblemKind.FORBIDDEN, _NO_TURN)
        if not running <= reached.turns:
            raise ToolProblem(ProblemKind.REFUSED, _ANOTHER_TURN)
        return reached.actor

    def marks(self, reached: Reached | None) -> dict[str, object]:
        return {"sandbox": self.sandbox_id, "turns": sorted(reached.turns) if reached else []}

    def _own(self, tx: Transaction) -> MergeRequest:
        """The sandbox's merge request. Raises ToolProblem if it has ended."""
        sandbox = sandboxes.get(tx, self.sandbox_id)
        mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
        if sandbox is None or mr is None or sandbox.ended_at is not None:
            raise ToolProblem(ProblemKind.NOT_FOUND, "This sandbox has ended: nothing more can be asked from here.")
        return mr

    def _running(self, tx: Transaction) -> list[Running]:
        """The turns that run there, the one that was given last first."""
        found = []
        for one in agent_work.running_in(tx, self.sandbox_id):
            conversation, turn = conversations.get(tx, one.conversation_id), conversations.turn(tx, one.turn_id)
            assert conversation
            assert turn
            found.append((conversation, turn))
        return found
