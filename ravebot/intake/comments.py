"""Comments to agents: what is said goes to the desk, an answer to its approval; both are answered where they stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from ravebot.agents import registry, routing
from ravebot.agents.approvals import Approvals
from ravebot.agents.desk import Addressed, DeskOutcome
from ravebot.agents.model import AgentDoor, ApprovalId, ApprovalState
from ravebot.agents.reception import Reception, refuse
from ravebot.commands.people import People
from ravebot.commands.permissions import Decision, Right
from ravebot.config.model import Config
from ravebot.errors import NotFound
from ravebot.gitlab.addressing import (
    AGENT_WORD,
    CANCEL,
    AgentComment,
    AgentHelpAsked,
    AgentMistake,
    AnswerGiven,
    CancelAsked,
    SaidToAgent,
)
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.events import CommentPosted
from ravebot.intake.answering import acknowledge
from ravebot.intake.loop import Step, only
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor
from ravebot.store import agent_queue, conversations, merge_requests, outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.targets import Kind, NoteLane

Act = Callable[[Transaction], Outcome]
_CANCEL = f"{AGENT_WORD} {CANCEL}"


@dataclass(frozen=True)
class AgentComments:
    """The part of GitLab's intake that concerns agents."""

    config: Config
    gitlab: GitLab
    people: People
    database: Database
    reception: Reception
    approvals: Approvals

    async def step(self, event: CommentPosted, said: AgentComment, *, at_most_every: timedelta | None) -> Step:
        """What a comment does. `at_most_every`: how often its author is answered, who has no role in the project."""
        if await self.gitlab.is_bot(event.author.id):
            return only("a bot's words address no agent")
        discussion = event.discussion_id
        if not discussion and at_most_every is None:  # a stranger's is not worth the search
            try:
                discussion = await self.gitlab.discussions.of_note(event.ref, event.note_id)
            except NotFound:
                return only("the comment was deleted meanwhile")
        match said:
            case AgentHelpAsked():
                text = self._help(event.project_path)
                return lambda tx: _tell(tx, event, Outcome(True, "help"), discussion, at_most_every, text)
            case AgentMistake(why=why):
                return lambda tx: _tell(tx, event, Outcome(False, why), discussion, at_most_every)
            case AnswerGiven(approval, granted):
                answering = await self.approvals.answer(
                    ApprovalId(approval), granted, event.author, place=NoteLane(event.ref).text
                )

                def answer(tx: Transaction) -> str:
                    answered = answering(tx)
                    if not answered.taken and not answered.text:  # it is said elsewhere, or nobody is to be told
                        return f"no answer to approval {approval}"
                    return _tell(tx, event, Outcome(answered.taken, answered.text), discussion, at_most_every)

                return answer
            case CancelAsked(name):
                stop = await self._cancel(event, name, discussion)

                def cancel(tx: Transaction) -> str:
                    outcome = stop(tx)
                    return _tell(tx, event, outcome, discussion, at_most_every, outcome.message)

                return cancel
            case SaidToAgent(name, text):
                act = await self._say(event, name, text, discussion)

                def say(tx: Transaction) -> str:
                    outcome = act(tx)
                    if outcome.accepted and not _is_worth_saying(tx, outcome, name):
                        return outcome.message
                    if outcome.accepted:
                        reply: dict[str, object] = {"text": outcome.message, "username": event.author.username}
                        outbox.add(tx, NoteLane(event.ref), Kind.REPLY, body={**reply, "discussion": discussion})
                        return outcome.message
                    return _tell(tx, event, outcome, discussion, at_most_every)

                return say

    async def _say(self, event: CommentPosted, name: str, text: str, discussion: str) -> Act:
        author = Actor("gitlab", event.author.username)
        decision = await self.people.from_comment(Right.COMMAND, event.ref.project_id, event.project_path, event.author)
        if not decision.allowed:
            return lambda tx: _refuse(tx, event, author, decision)
        agent = registry.find(self.config, name)
        if agent is None or not agent.serves(event.project_path):
            return lambda _: Outcome(False, self._no_such(name, event.project_path))
        if not text:
            return lambda _: Outcome(False, f"Say what {name} is to do: type `{AGENT_WORD} {name} TEXT`.")
        mr = await self.database.read(lambda tx: merge_requests.get(tx, event.ref))
        mr = mr or await self.gitlab.merge_request(event.ref)
        chain = await self.reception.may(name, author, mr)
        if not chain.allowed:
            return lambda tx: _refuse(tx, event, author, chain)
        said = Addressed(
            agent=name,
            door=AgentDoor.GITLAB,
            place=NoteLane(event.ref).text,
            thread=discussion,
            own_thread=False,
            mr=event.ref,
            key=str(event.note_id),
            author=author,
            text=text,
        )
        return lambda tx: self.reception.accept(tx, said, mr)

    async def _cancel(self, event: CommentPosted, name: str, discussion: str) -> Act:
        author = Actor("gitlab", event.author.username)
        decision = await self.people.from_comment(Right.COMMAND, event.ref.project_id, event.project_path, event.author)
        if not decision.allowed:
            return lambda tx: _refuse(tx, event, author, decision, CANCEL)

        def cancel(tx: Transaction) -> Outcome:
            place = NoteLane(event.ref).text
            here = conversations.in_thread(tx, AgentDoor.GITLAB, place, discussion) if discussion else ()
            meant = [one for one in here if name in ("", one.agent)]
            if len(meant) == 1:
                return self.reception.desk.cancel(tx, meant[0].id, author)
            if not here:
                return Outcome(False, f"No agent was spoken to in this thread: reply `{_CANCEL}` where one was.")
            names = " or ".join(f"`{_CANCEL} {one.agent}`" for one in here)
            return Outcome(False, f"Say which agent is to stop: type {names}.")

        return cancel

    def _no_such(self, name: str, project_path: str) -> str:
        there = [agent.name for agent in registry.serving(self.config, project_path)]
        meant = routing.but_for_capitals(name, there)
        if meant:
            return f"There is no such agent: did you mean `{meant}`? Type `{AGENT_WORD} {meant} TEXT`."
        return f"There is no such agent. {self._which(project_path)} `{AGENT_WORD} help` says more."

    def _help(self, project_path: str) -> str:
        return "\n".join(
            (
                f"`{AGENT_WORD} NAME TEXT` – say something to an agent; the text may go on in the next lines.",
                f"`{AGENT_WORD} approve ID` or `{AGENT_WORD} deny ID` – answer a question.",
                f"`{_CANCEL}` or `{_CANCEL} NAME` – have the agent of this thread stop what it does now.",
                "It must be the first line of a comment, and needs the role Developer in the project. The agent works"
                " in this merge request's sandbox, and answers in this thread.",
                self._which(project_path),
            )
        )

    def _which(self, project_path: str) -> str:
        names = ", ".join(f"`{agent.name}`" for agent in registry.serving(self.config, project_path))
        return f"Agents for this project: {names}." if names else "This project has no agents."


def _is_worth_saying(tx: Transaction, outcome: Outcome, name: str) -> bool:
    """Whether somebody whose message was taken must know more: the receipt on the comment says that it was taken, and a
    question whether to start a sandbox speaks for itself."""
    turn = conversations.turn(tx, outcome.turn_id) if isinstance(outcome, DeskOutcome) and outcome.turn_id else None
    if turn is None or outcome.message == f"{name} gets it.":
        return False
    asked = agent_queue.start_asked(tx, turn.conversation_id)
    return asked is None or asked.state is not ApprovalState.OPEN


def _refuse(tx: Transaction, event: CommentPosted, author: Actor, decision: Decision, verb: str = "agent") -> Outcome:
    refuse(tx, author, verb, f"{event.project_path}!{event.ref.iid}", decision)
    return Outcome(False, decision.refusal)


def _tell(
    tx: Transaction,
    event: CommentPosted,
    outcome: Outcome,
    discussion: str,
    at_most_every: timedelta | None,
    text: str = "",
) -> str:
    """Acknowledge a comment in its discussion; with a text if it is given, or if something was refused."""
    said = text or ("" if outcome.accepted else outcome.message)
    reply: dict[str, object] | None = {"text": said} if said else None
    if reply is not None and discussion:
        reply["discussion"] = discussion
    return acknowledge(tx, event, outcome, at_most_every=at_most_every, reply=reply)
