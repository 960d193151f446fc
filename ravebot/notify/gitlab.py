"""Sends to merge requests: the status note and its edits; warnings and replies as separate notes; emoji."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.errors import Forbidden, NotFound
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.notes import (
    HISTORY_LINES,
    marker,
    render_fork_waiting,
    render_help,
    render_never_started,
    render_none,
    render_note,
    render_reply,
    render_start_waiting,
    render_warning,
)
from ravebot.notify.delivery import Sent
from ravebot.notify.discussions import DiscussionSender
from ravebot.notify.requests import NoteRequests
from ravebot.notify.talks import TALK_KINDS, TalkFacts
from ravebot.notify.warnings import is_due
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, SandboxId
from ravebot.sandboxes.settings import of_merge_request
from ravebot.sandboxes.starting import StartWait, start_wait
from ravebot.sandboxes.view import SandboxView
from ravebot.store import merge_requests, outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Message
from ravebot.store.targets import Kind, NoteLane


@dataclass(frozen=True)
class _NoteFacts:
    """The current state of what a row is about; no `view` for a warning that is not true any more."""

    view: SandboxView | None = None
    mr: MergeRequest | None = None
    wait: StartWait | None = None  # what its sandbox waits for, if it starts by itself


class GitLabSender:
    """Edits a note by its stored id; before it posts one, it searches for it by author and hidden marker."""

    def __init__(self, database: Database, views: Views, gitlab: GitLab) -> None:
        self._database = database
        self._views = views
        self._gitlab = gitlab
        self._requests = NoteRequests(database, gitlab, views.config.gitlab.request_limit)
        self._talk = DiscussionSender(views.config.matrix, database, gitlab, self._requests)

    def look(self, tx: Transaction, message: Message) -> _NoteFacts | TalkFacts:
        if message.kind in TALK_KINDS:
            return self._talk.look(tx, message)
        ref = NoteLane.read(message.lane).ref
        match message.kind:
            case Kind.NOTE:
                mr, config = merge_requests.get(tx, ref), self._views.config
                wait = start_wait(config, mr, of_merge_request(tx, config, mr)) if mr else None
                return _NoteFacts(self._views.latest(tx, ref, events=HISTORY_LINES), mr, wait)
            case Kind.WARNING:
                view = self._views.one(tx, SandboxId(message.sandbox_id or 0))
                return _NoteFacts(view if view and is_due(tx, message, view.sandbox) else None)
            case _:
                return _NoteFacts()

    async def send(self, message: Message, facts: _NoteFacts | TalkFacts) -> Sent:
        ref = NoteLane.read(message.lane).ref
        try:
            if isinstance(facts, TalkFacts):
                return await self._talk.send(ref, message, facts)
            match message.kind:
                case Kind.NOTE:
                    return await self._note(ref, message, facts)
                case Kind.EMOJI:
                    await self._gitlab.react(ref, _number(message, "note_id"), str(message.body["emoji"]))
                    return Sent("awarded")
                case Kind.WARNING | Kind.REPLY:
                    return await self._comment(ref, message, facts.view)
                case _:  # a bug: `outbox.add` refuses kinds that the target's row does not name
                    raise NotImplementedError(f"GitLab takes no {message.kind}")
        except NotFound as error:
            return Sent(f"dropped: {error}")

    async def _note(self, ref: MergeRequestRef, message: Message, facts: _NoteFacts) -> Sent:
        mark = marker(ref, self._database.instance_id)
        mr, view = facts.mr, facts.view
        body = _status(mr, view, mark, facts.wait) if mr else None
        if mr is None or body is None:
            return Sent("dropped: nothing to tell")
        if mr.note_id is not None:
            try:
                return await self._edit(ref, mr.note_id, body, message)
            # It was deleted, or belongs to the user of an earlier token.
            except (NotFound, Forbidden):
                pass
        note_id = await self._gitlab.find_note(ref, await self._requests.own_id(), mark)
        if note_id is None:
            posted = await self._create(ref, body, message)
            return Sent(str(posted), lambda tx: merge_requests.set_note(tx, ref, posted))
        found = note_id
        await self._database.write(lambda tx: self._keep(tx, ref, found, message))
        return await self._edit(ref, found, body, replace(message, unanswered_for=None))

    def _keep(self, tx: Transaction, ref: MergeRequestRef, note_id: int, message: Message) -> None:
        """Store a note that was found: the request that created it was carried out, but got no answer."""
        merge_requests.set_note(tx, ref, note_id)
        outbox.note_answer(tx, message.id)

    async def _comment(self, ref: MergeRequestRef, message: Message, view: SandboxView | None) -> Sent:
        mark = marker(ref, self._database.instance_id, f"{message.kind.value}-{message.key}")
        body = _comment_body(message, view, mark)
        if body is None:
            return Sent("dropped: nothing to tell any more")
        # A restored backup has rows as unsent that were sent after the backup was made.
        may_be_there = message.attempted or message.created_at < self._database.opened_at
        discussion = str(message.body.get("discussion", ""))
        if may_be_there and (found := await self._find(ref, mark, discussion)) is not None:
            return Sent(str(found))
        return Sent(str(await self._create(ref, body, message, discussion)))

    async def _find(self, ref: MergeRequestRef, mark: str, discussion: str) -> int | None:
        own_id = await self._requests.own_id()
        if discussion:
            return await self._gitlab.discussions.find_reply(ref, discussion, own_id, mark)
        return await self._gitlab.find_note(ref, own_id, mark)

    async def _create(self, ref: MergeRequestRef, body: str, message: Message, discussion: str = "") -> int:
        """Post a note that was not found; with a `discussion` it is a reply there."""
        if discussion:
            return await self._requests.post(message, lambda: self._gitlab.discussions.reply(ref, discussion, body))
        return await self._requests.post(message, lambda: self._gitlab.create_note(ref, body))

    async def _edit(self, ref: MergeRequestRef, note_id: int, body: str, message: Message) -> Sent:
        """Rewrite a note. While GitLab may be working on an earlier edit, which would overwrite this one with an older
        text, it is written now and again when that can't happen any more."""
        left = timedelta(seconds=self._requests.seconds_at_work(message))
        await self._requests.make(message, lambda: self._gitlab.edit_note(ref, note_id, body))

        def write_again(tx: Transaction) -> None:
            lane = NoteLane(ref, again=True)
            outbox.add(tx, lane, Kind.NOTE, merge_key=f"note:{lane.text}", delay=left)

        return Sent(str(note_id), write_again if left else None)


def _comment_body(message: Message, view: SandboxView | None, mark: str) -> str | None:
    """An answer's or a warning's text; None for a warning that is not true any more."""
    if message.kind is Kind.WARNING:
        return render_warning(view, view.mr.author.username, mark) if view else None
    username = str(message.body.get("username") or "") or None
    if message.body.get("help"):
        return render_help(username, mark)
    return render_reply(str(message.body.get("text", "")), username, mark)


def _status(mr: MergeRequest, view: SandboxView | None, mark: str, wait: StartWait | None) -> str | None:
    """The status note's text; None if there is nothing to say about the merge request."""
    if view is not None and (view.live or mr.state != "opened"):
        return render_note(view, mark)
    if mr.state == "opened" and mr.from_fork and mr.approved_sha != mr.head_sha:
        return render_fork_waiting(mr, mark)
    if view is not None:
        return render_note(view, mark)
    if mr.state == "opened" and wait is not None:
        return render_start_waiting(mr, mark, wait)
    if mr.note_id is not None:  # it is out of date: it says that a sandbox waits, or what a lost database knew
        return render_none(mr, mark) if mr.state == "opened" else render_never_started(mr, mark)
    return None


def _number(message: Message, key: str) -> int:
    value = message.body.get(key)
    assert isinstance(value, int)
    return value
