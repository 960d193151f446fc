"""One trial of a configured agent in a sandbox, step by step, each with what to do if it fails.

The trial's program runs in a folder of its own in the guest, which is removed at the end; no conversation is made.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from ravebot.agents import registry
from ravebot.agents.model import TurnId
from ravebot.agents.reception import Reception
from ravebot.agents.transports.acp import protocol
from ravebot.agents.transports.acp.control import Destination, KeyRefused, NoSshClient, OtherHostKey
from ravebot.agents.transports.acp.driver import AcpDriver
from ravebot.agents.transports.acp.lines import LineReader
from ravebot.agents.transports.acp.protocol import (
    AUTH_REQUIRED,
    INITIALIZE,
    NEW_SESSION,
    VERSION,
    AgentAnswered,
    AgentAsks,
    AgentRequests,
    AgentWords,
    Chosen,
)
from ravebot.agents.transports.acp.session import AgentSession
from ravebot.agents.transports.acp.stdio import Attached, InGuest, Program, attach
from ravebot.agents.transports.webhook.sender import WebhookSender
from ravebot.config.model import AgentConfig, Config
from ravebot.operations.agents.reports import CheckResult, CheckStep
from ravebot.operations.agents.trialsteps import StepFailed, TrialSteps, may_ask, named
from ravebot.sandboxes.model import CODE_FOLDER, Actor, Machine, MergeRequest, SandboxState
from ravebot.store import machines, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction

ANSWER_SECONDS = 180.0
"""How long an agent may take for an answer; under emulation a large one takes a minute to start."""
PROMPT_SECONDS = 600.0
_WORDS_SHOWN = 200
_KILL_SECONDS = 20.0
_TRIAL_TURN = TurnId(2**40)
"""In the trial's own process, which never gets a conversation's turns."""
REMOVE = (
    'exec sh -c \'IFS= read -r f; cd "$HOME/.ravebot/agents" || exit 1; rm -rf "./$f"; [ ! -e "./$f" ] && echo gone\''
)
"""The command that removes the folder which it reads from its standard input."""


@dataclass(frozen=True)
class TrialParts:
    """What trials work with."""

    config: Config
    database: Database
    reception: Reception
    driver: AcpDriver
    webhooks: WebhookSender


@dataclass
class AgentTrial(TrialSteps):
    """What it needs from one step to the next."""

    parts: TrialParts
    name: str
    ref: str
    prompt: str
    actor: Actor
    _agent: AgentConfig | None = None
    _mr: MergeRequest | None = None
    _machine: Machine | None = None
    _attached: Attached | None = None
    _found: InGuest | None = None
    _session: AgentSession | None = None
    _session_id: str = ""
    _folder: str = field(default_factory=lambda: f"check-{secrets.token_hex(6)}")

    async def run(self) -> None:
        """Run every step; after one that fails, only the tidying up."""
        steps: tuple[tuple[str, Callable[[], Awaitable[str]]], ...] = (
            ("configuration", self._configuration),
            ("sandbox", self._sandbox),
            ("rights", self._rights),
            ("SSH connection", self._connect),
            ("program", self._program),
            ("initialize", self._initialize),
            ("session", self._begin_session),
            ("prompt", self._give_prompt),
        )
        failed = False
        try:
            for name, step in steps:
                if failed or (name == "prompt" and not self.prompt):
                    why = "an earlier step failed" if failed else "only with --prompt: a model may cost money"
                    self.steps.append(CheckStep(name, CheckResult.SKIPPED, why, 0.0))
                    continue
                failed = not await self._step(name, step)
            if self._attached is not None:
                await self._step("nothing stays behind", self._tidy_up)
        finally:
            if self._attached is not None:
                await self._attached.close()
            self.under_way, self.over = "", True

    async def _configuration(self) -> str:
        agent = registry.find(self.parts.config, self.name)
        if agent is None or agent.acp is None:
            known = ", ".join(sorted(registry.names(self.parts.config))) or "none"
            raise StepFailed("No agent of that name can be spoken to.", f"Add it to agents[]; there are: {known}.")
        self._agent = agent
        return f"`{shlex.join(agent.acp.command)}` for {', '.join(agent.projects)}"

    async def _sandbox(self) -> str:
        assert self._agent
        if self.ref:
            self._mr = await named(self.parts.reception.people, self.ref)
        serves = self._agent.serves

        def look(tx: Transaction) -> tuple[MergeRequest, Machine] | None:
            for sandbox in reversed(sandboxes.live(tx)):
                mr, machine = merge_requests.get(tx, sandbox.mr), machines.get(tx, sandbox.machine_id)
                wanted = mr is not None and (mr.ref == self._mr.ref if self._mr else serves(mr.project_path))
                if mr and machine and wanted and sandbox.state is SandboxState.READY and machine.address:
                    return mr, machine
            return None

        found = await self.parts.database.read(look)
        if found is None:
            which = self._mr.full_ref if self._mr else "any merge request that the agent serves"
            raise StepFailed(
                f"No sandbox of {which} is ready.",
                "Start one with `!rave start` or `/sandbox start`; `ravebot list` shows when it is ready.",
            )
        self._mr, self._machine = found
        return f"{self._mr.full_ref} on {self._machine.name}"

    async def _rights(self) -> str:
        """The agent's owner, the project, and forks."""
        assert self._mr
        assert self._agent
        return await may_ask(self.parts.reception, self._agent, self.actor, self._mr)

    async def _connect(self) -> str:
        try:
            await self._attach()
        except KeyRefused:
            assert self._machine
            assert self._mr
            await self.parts.driver.authorize(self._machine, self._mr)  # as for a conversation
            try:
                await self._attach()
            except KeyRefused as error:
                raise StepFailed(str(error), "Rebuild the sandbox.") from error
            return "the host key is the stored one; the control key had to be let in again"
        except OtherHostKey as error:
            raise StepFailed(str(error), "Rebuild the sandbox, and look at what its code does.") from error
        except NoSshClient as error:
            raise StepFailed(str(error), "Install it on ravebot's host.") from error
        return "the host key is the stored one, and the control key is let in"

    async def _attach(self) -> None:
        assert self._agent
        assert self._agent.acp
        program = Program(self._folder, self._agent.acp.command, self._agent.acp.environment)
        self._attached, self._found = await attach(
            self.parts.driver.connections, self._destination(), program, 0, may_start=True
        )

    def _destination(self) -> Destination:
        assert self._machine
        where = Destination.of(self._machine, self.parts.config.sandbox.user)
        return replace(where, port=self.parts.driver.ssh_port)

    async def _program(self) -> str:
        assert self._mr
        assert self._agent
        assert self._agent.acp
        assert self._attached
        command = self._agent.acp.command[0]
        if self._found is InGuest.MISSING:
            raise StepFailed(
                f"The sandbox's image has no program `{command}`.",
                f"Install it in the image, or change agents[].acp.command of {self.name}. A sandbox keeps the image "
                f"that it was started with: `!rave rebuild {self._mr.full_ref}` gives it the present one.",
            )
        self._session = AgentSession(self._attached, LineReader(0))
        return f"`{command}` was started"

    async def _initialize(self) -> str:
        answered = await self._ask("init", protocol.initialize(), INITIALIZE, ANSWER_SECONDS)
        if answered.error_code is not None:
            raise StepFailed(
                f"It does not begin: {answered.error or answered.error_code}", "Look at the agent's own documentation."
            )
        offers = protocol.capabilities(answered.result)
        if offers.version != VERSION or isinstance(offers.version, bool):
            raise StepFailed(
                f"It speaks version {str(offers.version)[:20]} of the Agent Client Protocol; ravebot speaks {VERSION}.",
                f"Put a version of the agent into the image that speaks {VERSION}.",
            )
        loads = "can load earlier sessions" if offers.can_load else "can't load earlier sessions"
        return f"{offers.name or 'it gives no name'}, protocol version {VERSION}, {loads}"

    async def _begin_session(self) -> str:
        answered = await self._ask("new", protocol.new_session(CODE_FOLDER), NEW_SESSION, ANSWER_SECONDS)
        if answered.error_code == AUTH_REQUIRED:
            raise StepFailed(
                "It wants a login first, and none can be typed here.",
                "Give it what it needs in the image or in agents[].acp.environment.",
            )
        session = protocol.session_of(answered)
        if session is None:
            why = answered.error or "its answer had no sessionId"
            raise StepFailed(f"It began no session: {why}", "Look at the agent's own documentation and logs.")
        self._session_id = session
        return f"in {CODE_FOLDER}"

    async def _give_prompt(self) -> str:
        words: list[str] = []
        line = protocol.prompt(_TRIAL_TURN, self._session_id, self.prompt)
        number = protocol.prompt_id(_TRIAL_TURN)
        answered = await self._ask("prompt", line, number, PROMPT_SECONDS, words.append)
        if answered.error_code is not None:
            why = answered.error or str(answered.error_code)
            raise StepFailed(f"It did not answer: {why}", "Check its model, its key and what `egress` lets out.")
        said = " ".join("".join(words).split())
        if not said:
            raise StepFailed("It answered without a word.", "Check its model and its key.")
        return f"it said: {said[:_WORDS_SHOWN]}{'…' if len(said) > _WORDS_SHOWN else ''}"

    async def _ask(
        self, key: str, line: bytes, rpc_id: int, seconds: float, said: Callable[[str], None] = lambda _: None
    ) -> AgentAnswered:
        """Give a request, and wait for its answer; nothing that the agent asks for meanwhile is allowed."""
        session = self._session
        assert session
        try:
            async with asyncio.timeout(seconds):
                await session.give(key, line)
                while True:
                    heard, answer = await session.heard(), None
                    for offset, one in heard:
                        match one:
                            case AgentAnswered() if one.rpc_id == rpc_id:
                                answer = one
                            case AgentAsks():
                                await session.answer(offset, one.rpc_id, Chosen.CANCELLED)
                            case AgentRequests():
                                await session.refuse(offset, one)
                            case AgentWords():
                                said(one.text[:_WORDS_SHOWN])
                            case _:
                                pass
                    if answer is not None:
                        return answer
                    if not heard:
                        await session.more(1.0)
        except TimeoutError as error:
            raise StepFailed(
                f"No answer came within {seconds:g} s.", "See the agent's own log in the sandbox."
            ) from error

    async def _tidy_up(self) -> str:
        """End the program, and remove its folder."""
        if self._session is not None and self._session.attached.end is None:
            await self._session.kill(_KILL_SECONDS)
        client = await self.parts.driver.connections.start(self._destination(), REMOVE)
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                output, _ = await client.process.communicate(f"{self._folder}\n".encode())
        except TimeoutError as error:
            raise StepFailed(
                f"The folder {self._folder} could not be removed in time.", "Rebuild the sandbox."
            ) from error
        finally:
            await client.close()
        if b"gone" not in output[-200:].split() and self._found is not InGuest.MISSING:
            raise StepFailed(f"~/.ravebot/agents/{self._folder} is still there.", "Remove it, or rebuild the sandbox.")
        return "the program has ended, and its folder is removed"
