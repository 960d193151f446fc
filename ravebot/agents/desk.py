"""What people ask of conversations: that a message is given to an agent, that a turn is cancelled or sent again.

Each method runs inside the caller's transaction; the caller has checked the asker's right on the merge request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.agents import registry
from ravebot.agents.asking import Asking
from ravebot.agents.ending import end_turn, record
from ravebot.agents.limits import (
    GUARDS,
    MOST_IN_A_ROW,
    PAIR_WITHIN,
    Spent,
    TalkGuard,
    day_of,
    guard_against,
    over_budget,
    person_of,
    talk,
)
from ravebot.agents.model import (
    AGENT,
    DEAD_LETTERS,
    LONGEST_MESSAGE,
    AgentDoor,
    AgentMessage,
    ApprovalState,
    Conversation,
    ConversationId,
    Turn,
    TurnId,
    TurnState,
)
from ravebot.agents.overview import given
from ravebot.agents.pausing import Pausing
from ravebot.agents.rights import by_configuration
from ravebot.agents.waiting import SandboxBinding, Surroundings
from ravebot.sandboxes.intents import Advice, Outcome
from ravebot.sandboxes.model import Actor, EventKind, MergeRequest, MergeRequestRef
from ravebot.store import agent_figures, agent_queue, conversations, merge_requests
from ravebot.store.database import Transaction

CANCEL_WITHIN = timedelta(minutes=1)
"""The time for telling an agent to stop; if it can't be reached, its turn is uncertain then."""


@dataclass(frozen=True)
class Addressed:
    """What was said to an agent, and where. `key`: its id at the door, so that the same is taken once."""

    agent: str
    door: AgentDoor
    place: str
    thread: str
    own_thread: bool
    mr: MergeRequestRef | None
    key: str
    author: Actor
    text: str
    root: Actor | None = None  # the first person, where the author is an agent
    hops: int = 0


@dataclass(frozen=True)
class DeskOutcome(Outcome):
    """The result of a request, the reply, and the turn that it concerns, if any."""

    turn_id: TurnId | None = None


@dataclass(frozen=True)
class Desk(Pausing):
    """Takes messages to agents, and what people want of their turns."""

    @property
    def _binding(self) -> SandboxBinding:
        return SandboxBinding(self.config, self.telling)

    # Messages

    def accept(self, tx: Transaction, said: Addressed) -> DeskOutcome:
        """Take a message: a turn waits for its sandbox or its turn, in its conversation, which is begun if needed.

        A refused message of an agent is said in the agent's own conversation.
        """
        thread = conversations.in_thread(tx, said.door, said.place, said.thread)
        conversation = next((one for one in thread if one.agent == said.agent), None)
        if conversation and agent_queue.has_message(tx, conversation.id, said.key):
            return DeskOutcome(True, "It was taken before.")
        if said.author.kind == AGENT:
            if any(one.paused in GUARDS for one in thread):
                return DeskOutcome(False, "Agents are paused in this thread until a person writes to one of them.")
            if guard := self._guard(tx, said):
                return self._stop_talk(tx, said, thread, guard)
        refused = self._refused(tx, said, conversation)
        if refused is not None:
            self._tell_agent(tx, said, thread, refused)
            return refused
        if said.author.kind != AGENT:
            self.resume_thread(tx, thread, said.author)
        conversation = self._conversation(tx, said, conversation)
        root = said.root or said.author
        message = conversations.add_message(tx, conversation.id, said.key, said.author, root, said.text, said.hops)
        assert message
        return self._queue(tx, conversation, message, said.author)

    def steer(self, tx: Transaction, said: Addressed) -> DeskOutcome:
        """Cancel the turn that runs, and give this message next, before those that wait."""
        outcome = self.accept(tx, said)
        turn = conversations.turn(tx, outcome.turn_id) if outcome.turn_id else None
        if turn is None:
            return outcome
        agent_queue.put_behind(tx, turn)
        running = given(conversations.open_turns(tx, turn.conversation_id))
        if running is None:
            others = agent_queue.count_open(tx, turn.conversation_id) - 1
            is_next = others and turn.state is TurnState.QUEUED
            return replace(outcome, message=f"{said.agent} gets it next, before what waits.") if is_next else outcome
        if not running.cancelled_by:
            self._cancel_running(tx, running, said.author)
        return DeskOutcome(True, f"{said.agent} is told to stop, and gets this next.", turn_id=turn.id)

    def resend(self, tx: Transaction, turn_id: TurnId, by: Actor) -> DeskOutcome:
        """Give a message once more to its agent that did not get through to the end."""
        turn = conversations.turn(tx, turn_id)
        conversation = conversations.get(tx, turn.conversation_id) if turn else None
        if turn is None or conversation is None:
            return _no(f"There is no turn {turn_id}.")
        newest = conversations.turns_of(tx, turn.message_id)[-1]
        if not newest.state.is_over:
            again = "It was sent again already. " if newest.attempt > turn.attempt else ""
            if not newest.is_given:
                return _no(f"{again}{conversation.agent} was not given it yet, and gets it when its turn comes.")
            return _no(f"{again}{conversation.agent} is at it: cancel it first, if it is to begin anew.")
        if newest.state is TurnState.DONE:
            return _no(f"{conversation.agent} has answered it. To have it done again, write it again.")
        message = conversations.message(tx, turn.message_id)
        if not message.text:
            return _no("Its text is not kept any more: write it again.")
        mr = merge_requests.get(tx, conversation.mr) if conversation.mr else None
        refused = self._not_now(tx, conversation.agent, mr, message.root)
        if refused is not None:
            return refused
        thread = conversations.in_thread(tx, conversation.door, conversation.place, conversation.thread)
        self.resume_thread(tx, thread, by)
        conversation = conversations.get(tx, conversation.id) or conversation
        outcome = self._queue(tx, conversation, message, by)
        if newest.state is TurnState.UNCERTAIN:
            may = f"It is not known how far {conversation.agent} got the last time, so some of it may be done twice."
            return replace(outcome, message=f"{outcome.message} {may}")
        return outcome

    def resend_last(self, tx: Transaction, conversation_id: ConversationId, by: Actor) -> DeskOutcome:
        """Give the conversation's last message once more."""
        last = agent_queue.last_turn(tx, conversation_id)
        return self.resend(tx, last.id, by) if last else _no("Nothing was said here yet: there is nothing to resend.")

    # Turns

    def cancel(self, tx: Transaction, conversation_id: ConversationId, by: Actor) -> DeskOutcome:
        """Cancel the turn that runs, or, if none does, the one that waits longest."""
        turns = conversations.open_turns(tx, conversation_id)
        conversation = conversations.get(tx, conversation_id)
        if not turns or conversation is None:
            return _no("Nothing runs or waits here, so there is nothing to cancel.")
        turn, others = turns[0], len(turns) - 1
        wait = f" {others} more {'waits' if others == 1 else 'wait'} here." if others else ""
        if not turn.is_given:
            end_turn(tx, self.telling, turn, TurnState.CANCELLED, f"Cancelled by {by}.", by)
            return DeskOutcome(True, f"It is cancelled: {conversation.agent} was not given it.{wait}", turn_id=turn.id)
        if turn.cancelled_by:
            already = f"{conversation.agent} was told to stop already, by {turn.cancelled_by}."
            return DeskOutcome(True, f"{already} It is ended if it does not stop by itself.", turn_id=turn.id)
        self._cancel_running(tx, turn, by)
        return DeskOutcome(True, f"{conversation.agent} is told to stop.{wait}", turn_id=turn.id)

    def drop(self, tx: Transaction, turn_id: TurnId, by: Actor) -> DeskOutcome:
        """Take a message off the list of those that did not get through."""
        turn = conversations.turn(tx, turn_id)
        if turn is None:
            return _no(f"There is no turn {turn_id}.")
        if not turn.state.is_over:
            return _no(f"Turn {turn_id} is {turn.state.value}: cancel it instead.")
        newest = conversations.turns_of(tx, turn.message_id)[-1]
        if turn.state not in DEAD_LETTERS or newest.id != turn.id:
            return DeskOutcome(True, f"Turn {turn_id} is not on the list of dead letters.", turn_id=turn_id)
        dropped = replace(turn, state=TurnState.CANCELLED, why=f"Dropped by {by}. {turn.why}".strip()[:500])
        conversations.save_turn(tx, dropped)
        record(tx, EventKind.AGENT_DROPPED, by, dropped, {"was": turn.state.value})
        self.telling.answer(tx, dropped)
        return DeskOutcome(True, f"Turn {turn_id} is dropped.", turn_id=turn_id)

    # Steps

    def _refused(self, tx: Transaction, said: Addressed, conversation: Conversation | None) -> DeskOutcome | None:
        """Why a message is not taken; None: it is."""
        if len(said.text) > LONGEST_MESSAGE:
            return _no(f"That is too long for a message: an agent takes {LONGEST_MESSAGE:,} characters. Shorten it.")
        if not said.text.strip():
            return _no(f"Write what {said.agent} is to do, after its name.")
        bound = conversation.mr if conversation else None
        if bound and said.mr and bound != said.mr:
            mr = merge_requests.get(tx, bound)
            about = mr.full_ref if mr else f"!{bound.iid}"
            return _no(f"This thread is about {about}. Write about another merge request in another thread.")
        ref = bound or said.mr
        mr = merge_requests.get(tx, ref) if ref else None
        return self._not_now(tx, said.agent, mr, said.root or said.author)

    def _not_now(self, tx: Transaction, name: str, mr: MergeRequest | None, root: Actor) -> DeskOutcome | None:
        agent = registry.find(self.config, name)
        if agent is None:
            return _no(f"No agent called {name} is configured. Ask for one that is: `agents` lists them.")
        if mr is None:
            say = f"Say which, after its name (`@{name} !42 …`), or write in the thread of its card."
            return _no(f"{name} works on merge requests. {say}")
        if mr.state != "opened":
            return _no(f"{mr.full_ref} is {mr.state}. {name} works on open merge requests: open it again.")
        configured = by_configuration(agent, name, mr)
        if not configured.allowed:
            return _no(f"{configured.rule} {configured.advice}")
        day = day_of(tx.now)
        spent = Spent(day, agent_figures.messages_on(tx, day, Actor(AGENT, name)), agent.limits.messages_per_day)
        used = agent_figures.messages_on(tx, day, person_of(self.config, root))
        why = over_budget(name, spent, Spent(day, used, self.config.budgets.person.messages_per_day))
        return _no(why) if why else None

    def _conversation(self, tx: Transaction, said: Addressed, known: Conversation | None) -> Conversation:
        if known is None:
            return conversations.begin(
                tx, said.agent, said.door, said.place, said.thread, own_thread=said.own_thread, mr=said.mr
            )
        if known.mr is None and said.mr is not None:
            conversations.bind(tx, known.id, said.mr)
        found = conversations.get(tx, known.id)
        assert found
        return found

    def _queue(self, tx: Transaction, conversation: Conversation, message: AgentMessage, by: Actor) -> DeskOutcome:
        """Give a message its next turn."""
        around = self._binding.around(tx, conversation)
        before = agent_queue.count_open(tx, conversation.id)
        turn = conversations.add_turn(tx, message, TurnState.QUEUED if around.is_usable else TurnState.ACCEPTED)
        agent_figures.count_message(
            tx, day_of(tx.now), Actor(AGENT, conversation.agent), person_of(self.config, message.root)
        )
        record(tx, EventKind.AGENT_ASKED, by, turn)
        self.telling.receipt(tx, turn)
        text, is_said = f"{conversation.agent} gets it", True
        if around.is_usable:
            text += f" after the {'one' if before == 1 else before} before it." if before else "."
        else:
            text, is_said = self._wait_for_sandbox(tx, conversation, turn, message, around)
        paused = conversations.paused_agents(tx).get(conversation.agent)
        if paused:
            text += f" {conversation.agent} is paused, by {paused}: it gets nothing until somebody says `resume`."
        elif conversation.paused:
            text += f" This conversation is {conversation.paused}: nothing is given until somebody says `resume`."
        if not before and (not is_said or paused or conversation.paused) and _has_no_words(conversation, by):
            self.telling.remark(tx, conversation, text)
        return DeskOutcome(True, text, turn_id=turn.id)

    def _wait_for_sandbox(
        self, tx: Transaction, conversation: Conversation, turn: Turn, message: AgentMessage, around: Surroundings
    ) -> tuple[str, bool]:
        """Have a sandbox started for the turn, if a person says so; returns what it waits for, and whether a question
        says that."""
        mr, sandbox, agent = around.mr, around.sandbox, conversation.agent
        assert mr
        if around.is_unwell:
            return f"The machine of {mr.full_ref} does not answer: {agent} gets the message when it does.", False
        if sandbox is not None:
            return f"The sandbox of {mr.full_ref} is being started: {agent} gets the message when it is ready.", False
        asked = around.asked
        if asked is None or not (
            asked.state is ApprovalState.OPEN or (asked.state is ApprovalState.GRANTED and asked.done_at is None)
        ):
            asked = Asking(self.config, self.telling).ask_start(tx, turn, conversation, mr, message.root)
        why = f"{mr.full_ref} has no sandbox: approval {asked.id} asks {message.root.name} whether to start one."
        return f"{why} {agent} gets the message when it is ready.", True

    def _cancel_running(self, tx: Transaction, turn: Turn, by: Actor) -> None:
        latest = tx.now + CANCEL_WITHIN
        deadline = min(turn.deadline or latest, latest)
        conversations.save_turn(tx, replace(turn, cancelled_by=str(by), deadline=deadline, tries=0, next_try_at=None))
        record(tx, EventKind.AGENT_CANCEL_ASKED, by, turn)

    def _guard(self, tx: Transaction, said: Addressed) -> TalkGuard | None:
        newest = agent_figures.newest_in_thread(tx, said.door, said.place, said.thread, MOST_IN_A_ROW)
        pair = agent_figures.passed_on(tx, said.author.name, said.agent, PAIR_WITHIN)
        return guard_against(talk(newest, pair), said.text, said.hops)

    def _stop_talk(
        self, tx: Transaction, said: Addressed, thread: tuple[Conversation, ...], guard: TalkGuard
    ) -> DeskOutcome:
        """Pause a thread in which agents talk to each other too much, and say so once."""
        self.pause_thread(tx, thread, guard)
        outcome = _no(f"Paused: {guard.value}. It goes on when a person writes to one of them here.")
        self._tell_agent(tx, said, thread, outcome)
        return outcome

    def _tell_agent(
        self, tx: Transaction, said: Addressed, thread: tuple[Conversation, ...], outcome: DeskOutcome
    ) -> None:
        if said.author.kind != AGENT:
            return
        speaker = next((one for one in thread if one.agent == said.author.name), None)
        if speaker is not None:
            told = f"{said.agent} does not get what {said.author.name} wrote to it. {outcome.message}"
            self.telling.remark(tx, speaker, told)


def _no(message: str, *advice: str) -> DeskOutcome:
    return DeskOutcome(False, message, Advice(*advice) if advice else None)


def _has_no_words(conversation: Conversation, by: Actor) -> bool:
    """Whether nobody is told the outcome in words: a comment gets an emoji, and an agent nothing."""
    return by.kind == AGENT or conversation.door is AgentDoor.GITLAB
