"""Acts on GitLab's webhooks: merge requests as they change, and `/sandbox …` comments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ravebot.config.model import Config
from ravebot.config.values import parse_duration
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.commands import NoteCommand, NoteUsage, parse_comment
from ravebot.gitlab.events import CommentPosted, Ignored, MergeRequestChanged
from ravebot.gitlab.kept import read
from ravebot.intake.loop import Step
from ravebot.intake.people import People
from ravebot.sandboxes.intents import Intents, Outcome
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.store import events, merge_requests, outbox
from ravebot.store.database import Transaction
from ravebot.store.inbox import Request
from ravebot.store.targets import Kind, NoteLane

ACCEPTED, REFUSED = "white_check_mark", "no_entry_sign"
_NEEDS_HEAD = frozenset({"start", "rebuild"})


@dataclass(frozen=True)
class GitLabIntake:
    """The handler of the inbox's `gitlab` rows."""

    config: Config
    gitlab: GitLab
    people: People
    intents: Intents

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
        """Nobody waits for an answer in seconds here: the emoji comes when GitLab answers again."""

    def failed(self, tx: Transaction, request: Request, why: str) -> None:
        event = read(request.kind, request.body)
        if isinstance(event, CommentPosted) and self.config.serves(event.project_path):
            _answer(tx, event, Outcome(False, why))

    async def _merge_request(self, event: MergeRequestChanged) -> Step:
        told = event.mr
        if not self.config.serves(told.project_path):
            return _only(f"{told.project_path} is not one of gitlab.projects")
        if not told.head_sha:
            told = await self.gitlab.merge_request(told.ref)
        actor = Actor("gitlab", event.by.username)
        return lambda tx: self.intents.merge_request_told(tx, told, actor)

    async def comment(self, event: CommentPosted) -> Step:
        """A comment, from a webhook or found by polling."""
        if not self.config.serves(event.project_path):
            return _only(f"{event.project_path} is not one of gitlab.projects")
        if event.author.id == (await self.gitlab.me()).id:
            return _only("our own comment")
        command = parse_comment(event.text)
        if command is None:
            return _only("asks nothing of us")
        if isinstance(command, NoteUsage):
            return lambda tx: _answer(tx, event, Outcome(False, command.message))
        decision = await self.people.from_comment(
            command.verb, event.ref.project_id, event.author.id, event.author.username
        )
        actor = Actor("gitlab", event.author.username)
        if not decision.allowed:
            return lambda tx: self._refuse(tx, event, actor, command, decision.rule)
        if command.verb == "help":
            return lambda tx: _help(tx, event)
        fresh = await self.gitlab.merge_request(event.ref) if command.verb in _NEEDS_HEAD else None
        return lambda tx: self._obey(tx, event, actor, command, fresh)

    def _refuse(self, tx: Transaction, event: CommentPosted, actor: Actor, command: NoteCommand, rule: str) -> str:
        data: dict[str, object] = {"verb": command.verb, "rule": rule}
        events.append(tx, "command.refused", actor, mr=event.ref, data=data)
        return _answer(tx, event, Outcome(False, f"refused: {rule}"))

    def _obey(
        self, tx: Transaction, event: CommentPosted, actor: Actor, command: NoteCommand, fresh: MergeRequest | None
    ) -> str:
        if fresh is not None:
            _, mr = merge_requests.observe(tx, fresh)
        else:
            known = merge_requests.get(tx, event.ref)
            if known is None:
                return _answer(tx, event, Outcome(False, "this merge request has no sandbox"))
            mr = known
        wish = self._wishes()[command.verb]
        return _answer(tx, event, wish(tx, mr, actor, command.argument))

    def _wishes(self) -> dict[str, Callable[[Transaction, MergeRequest, Actor, str], Outcome]]:
        intents = self.intents
        return {
            "start": lambda tx, mr, actor, sha: intents.start(tx, mr, actor, sha or None),
            "stop": lambda tx, mr, actor, _: intents.stop(tx, mr, actor),
            "extend": lambda tx, mr, actor, by: intents.extend(tx, mr, actor, parse_duration(by) if by else None),
            "rebuild": lambda tx, mr, actor, _: intents.rebuild(tx, mr, actor),
        }


def _only(outcome: str) -> Step:
    def step(_: Transaction) -> str:
        return outcome

    return step


def _answer(tx: Transaction, event: CommentPosted, outcome: Outcome) -> str:
    """An emoji says that it was heard; words only where something is wrong, the note tells the rest."""
    lane = NoteLane(event.ref)
    emoji = ACCEPTED if outcome.accepted else REFUSED
    outbox.add(tx, lane, Kind.EMOJI, body={"note_id": event.note_id, "emoji": emoji})
    if not outcome.accepted:
        body: dict[str, object] = {"text": outcome.message, "username": event.author.username}
        outbox.add(tx, lane, Kind.REPLY, body=body)
    return outcome.message


def _help(tx: Transaction, event: CommentPosted) -> str:
    lane = NoteLane(event.ref)
    outbox.add(tx, lane, Kind.EMOJI, body={"note_id": event.note_id, "emoji": ACCEPTED})
    outbox.add(tx, lane, Kind.REPLY, body={"help": True, "username": event.author.username})
    return "help"
