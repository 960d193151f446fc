"""Handles GitLab's webhooks: changes of merge requests, and comments with a command or words to an agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ravebot.commands.execute import execute
from ravebot.commands.people import People
from ravebot.commands.permissions import Asker
from ravebot.commands.verbs import VERBS, Door, Mistake, Show, Verb, explain, help_on
from ravebot.config.model import Config
from ravebot.gitlab.addressing import parse_agent_comment
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.commands import WORD, parse_comment
from ravebot.gitlab.events import ApprovalChange, CommentPosted, Ignored, MergeRequestChanged
from ravebot.gitlab.kept import read
from ravebot.intake.answering import ANSWER_FAILURES_EVERY, ANSWER_STRANGERS_EVERY, acknowledge
from ravebot.intake.comments import AgentComments
from ravebot.intake.loop import Step, only
from ravebot.sandboxes.intents import Intents, Outcome
from ravebot.sandboxes.model import RAVEBOT, Actor, EventKind
from ravebot.store.database import Transaction
from ravebot.store.inbox import Request


@dataclass(frozen=True)
class GitLabIntake:
    """The handler of the inbox's `gitlab` rows."""

    config: Config
    gitlab: GitLab
    people: People
    intents: Intents
    agents: AgentComments
    verbs: Sequence[Verb] = VERBS

    async def handle(self, request: Request) -> Step:
        event = read(request.kind, request.body)
        match event:
            case MergeRequestChanged():
                return await self._merge_request(event)
            case CommentPosted():
                return await self.comment(event)
            case Ignored(why):
                return only(why)

    def delayed(self, tx: Transaction, request: Request, why: str) -> None:
        """Do nothing: nobody expects an immediate answer to a comment; the emoji follows when GitLab is back."""

    def failed(self, tx: Transaction, request: Request, why: str) -> None:
        event = read(request.kind, request.body)
        if isinstance(event, CommentPosted) and self.config.serves(event.project_path):
            acknowledge(tx, event, Outcome(False, why), at_most_every=ANSWER_FAILURES_EVERY)

    async def _merge_request(self, event: MergeRequestChanged) -> Step:
        told = event.mr
        if not self.config.serves(told.project_path):
            return only(f"{told.project_path} is not one of gitlab.projects")
        if not told.head_sha:
            told = await self.gitlab.merge_request(told.ref)
        await self.people.files.know(told)
        actor = Actor("gitlab", event.by.username)

        def step(tx: Transaction) -> str:
            done = self.intents.merge_request_reported(tx, told, actor)
            return self._approval(tx, event) or done

        return step

    def _approval(self, tx: Transaction, event: MergeRequestChanged) -> str:
        match event.approval:
            case None:
                return ""
            case ApprovalChange.GIVEN | ApprovalChange.COMPLETED:
                kind = EventKind.MR_APPROVED
            case ApprovalChange.TAKEN_BACK | ApprovalChange.INCOMPLETED:
                kind = EventKind.MR_UNAPPROVED
        complete = event.approval is ApprovalChange.COMPLETED
        by = RAVEBOT if event.by_gitlab else Actor("gitlab", event.by.username)
        return self.intents.approval_reported(tx, event.mr.ref, kind, by, complete=complete)

    async def comment(self, event: CommentPosted) -> Step:
        """A comment, from a webhook or found by polling."""
        if not self.config.serves(event.project_path):
            return only(f"{event.project_path} is not one of gitlab.projects")
        if event.author.id == await self.gitlab.own_id():
            return only("our own comment")
        said = parse_agent_comment(event.text)
        command = None if said else parse_comment(event.text, self.verbs)
        if said is None and command is None:
            return only("asks nothing of us")
        member = await self.people.is_member(event.ref.project_id, event.author)
        pause = None if member else ANSWER_STRANGERS_EVERY
        if command is None:
            return await self.agents.step(event, said, at_most_every=pause) if said else only("asks nothing of us")
        if isinstance(command, Mistake):
            mistaken = Outcome(False, explain(command, Door.COMMENT, WORD))
            return lambda tx: acknowledge(tx, event, mistaken, at_most_every=pause)
        verb = command.verb
        decision = await self.people.from_comment(verb.right, event.ref.project_id, event.project_path, event.author)
        if decision.allowed and verb.does is Show.HELP:
            about = command.about
            more: dict[str, object] = {"text": help_on(about, Door.COMMENT, WORD)} if about else {"help": True}
            return lambda tx: acknowledge(tx, event, Outcome(True, "help"), at_most_every=pause, reply=more)
        asker = Asker(Actor("gitlab", event.author.username), decision)
        target = (await self.people.head(verb, event.ref) if decision.allowed else None) or event.ref
        return lambda tx: acknowledge(tx, event, execute(self.intents, tx, command, asker, target), at_most_every=pause)
