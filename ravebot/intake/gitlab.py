"""Handles GitLab's webhooks: changes of merge requests, and `/sandbox …` comments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ravebot.commands.execute import execute, in_full
from ravebot.commands.people import People
from ravebot.commands.permissions import Asker
from ravebot.commands.verbs import VERBS, Door, Mistake, Show, Verb, explain, help_on
from ravebot.config.model import Config
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.commands import WORD, parse_comment
from ravebot.gitlab.events import CommentPosted, Ignored, MergeRequestChanged
from ravebot.gitlab.kept import read
from ravebot.intake.loop import Step
from ravebot.sandboxes.intents import Intents, Outcome
from ravebot.sandboxes.model import Actor
from ravebot.store import outbox
from ravebot.store.database import Transaction
from ravebot.store.inbox import Request
from ravebot.store.targets import Kind, NoteLane

ANSWER_STRANGERS_EVERY = timedelta(hours=1)
"""How often somebody without a role in the project is answered on one merge request: an answer costs two requests of
the bot's rate limit, and anybody may comment in a public project."""
ANSWER_FAILURES_EVERY = timedelta(minutes=1)
"""The same where a request failed, and it may not be known who has a role."""
ACCEPTED, REFUSED = "white_check_mark", "no_entry_sign"


@dataclass(frozen=True)
class GitLabIntake:
    """The handler of the inbox's `gitlab` rows."""

    config: Config
    gitlab: GitLab
    people: People
    intents: Intents
    verbs: Sequence[Verb] = VERBS

    async def handle(self, request: Request) -> Step:
        event = read(request.kind, request.body)
        match event:
            case MergeRequestChanged():
                return await self._merge_request(event)
            case CommentPosted():
                return await self.comment(event)
            case Ignored(why):
                return _only(why)

    def delayed(self, tx: Transaction, request: Request, why: str) -> None:
        """Do nothing: nobody expects an immediate answer to a comment; the emoji follows when GitLab is back."""

    def failed(self, tx: Transaction, request: Request, why: str) -> None:
        event = read(request.kind, request.body)
        if isinstance(event, CommentPosted) and self.config.serves(event.project_path):
            _answer(tx, event, Outcome(False, why), at_most_every=ANSWER_FAILURES_EVERY)

    async def _merge_request(self, event: MergeRequestChanged) -> Step:
        told = event.mr
        if not self.config.serves(told.project_path):
            return _only(f"{told.project_path} is not one of gitlab.projects")
        if not told.head_sha:
            told = await self.gitlab.merge_request(told.ref)
        actor = Actor("gitlab", event.by.username)
        return lambda tx: self.intents.merge_request_reported(tx, told, actor)

    async def comment(self, event: CommentPosted) -> Step:
        """A comment, from a webhook or found by polling."""
        if not self.config.serves(event.project_path):
            return _only(f"{event.project_path} is not one of gitlab.projects")
        if event.author.id == (await self.gitlab.me()).id:
            return _only("our own comment")
        command = parse_comment(event.text, self.verbs)
        if command is None:
            return _only("asks nothing of us")
        member = await self.people.is_member(event.ref.project_id, event.author)
        pause = None if member else ANSWER_STRANGERS_EVERY
        if isinstance(command, Mistake):
            mistaken = Outcome(False, explain(command, Door.COMMENT, WORD))
            return lambda tx: _answer(tx, event, mistaken, at_most_every=pause)
        verb = command.verb
        decision = await self.people.from_comment(verb.right, event.ref.project_id, event.project_path, event.author)
        if decision.allowed and verb.does is Show.HELP:
            about = command.about
            more: dict[str, object] = {"text": help_on(about, Door.COMMENT, WORD)} if about else {"help": True}
            return lambda tx: _answer(tx, event, Outcome(True, "help"), at_most_every=pause, reply=more)
        asker = Asker(Actor("gitlab", event.author.username), decision)
        target = (await self.people.head(verb, event.ref) if decision.allowed else None) or event.ref
        return lambda tx: _answer(tx, event, execute(self.intents, tx, command, asker, target), at_most_every=pause)


def _only(outcome: str) -> Step:
    def step(_: Transaction) -> str:
        return outcome

    return step


def _answer(
    tx: Transaction,
    event: CommentPosted,
    outcome: Outcome,
    *,
    at_most_every: timedelta | None,
    reply: dict[str, object] | None = None,
) -> str:
    """Acknowledge a command by an emoji. Reply only with `reply` or to an error: the status note shows the rest.

    With `at_most_every`, a person is answered only so often on one merge request.
    """
    lane = NoteLane(event.ref)
    merge_key = None
    if at_most_every is not None:
        merge_key = f"answer:{lane.text}:{event.author.id}"
        if outbox.acknowledged_lately(tx, merge_key, at_most_every):
            return f"{outcome.message}; not answered, as this person was answered lately"
    emoji = ACCEPTED if outcome.accepted else REFUSED
    outbox.add(tx, lane, Kind.EMOJI, body={"note_id": event.note_id, "emoji": emoji}, merge_key=merge_key)
    if reply is None and not outcome.accepted:
        reply = {"text": in_full(outcome, Door.COMMENT, WORD, "")}
    if reply is not None:
        outbox.add(tx, lane, Kind.REPLY, body={**reply, "username": event.author.username})
    return outcome.message
