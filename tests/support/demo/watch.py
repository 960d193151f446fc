"""Watches the room and the merge request: prints changes, and waits for expected ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import aiohttp

from tests.support.demo.readable import Kind, Row, rows_of
from tests.support.demo.screen import Screen
from tests.support.gitlab import MergeRequest, Note
from tests.support.gitlab.markdown import emoji, to_html
from tests.support.stage import Stage
from tests.support.synapse.user import MatrixError

T = TypeVar("T")
_LOOK_SECONDS = 0.1
_SECONDS = 120  # for what takes one or two where the host is idle
_MOST_LINES = 5


class DemoError(Exception):
    """Something that the demo tells of did not happen; the message says what."""


@dataclass(frozen=True)
class Said:
    """One message of the room, with its newest edit."""

    sender: str
    body: str
    rows: tuple[Row, ...]
    mentions: tuple[str, ...]
    thread: bool
    reply: bool

    @property
    def card(self) -> bool:
        return "\nOwner " in self.body and not self.thread and not self.reply

    @property
    def state(self) -> str:
        """Of a card: the line under its title."""
        return self.body.splitlines()[1]


@dataclass
class Watch:
    """What was seen so far, of one merge request; `room` and `merge_request` look until they are cancelled."""

    stage: Stage
    screen: Screen
    since: str  # where the room's story begins
    mr: MergeRequest | None = None
    messages: dict[str, Said] = field(default_factory=dict)
    versions: list[Said] = field(default_factory=list)  # the same, and what they said before they were edited
    reactions: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # to a message: by whom, and what
    first_card_at: datetime | None = None
    note: Note | None = None
    note_rows: tuple[Row, ...] = ()
    _notes: dict[int, str] = field(default_factory=dict)
    _awards: set[tuple[int, str]] = field(default_factory=set)

    @property
    def cards(self) -> list[Said]:
        return [message for message in self.messages.values() if message.card]

    def card_state(self) -> str:
        """The state that the newest card shows; empty while there is none."""
        return self.cards[-1].state if self.cards else ""

    def card_is_over(self) -> bool:
        """Whether the newest card shows a sandbox that ended or failed; one that waits may be tried again at a time."""
        state = self.card_state()
        return " at " in state and not state.startswith("Waits")

    def note_headline(self) -> str:
        return next((row.text for row in self.note_rows if row.kind is Kind.HEADING), "")

    def find(self, fits: Callable[[Said], bool]) -> str:
        """The event of the newest message that fits; empty when there is none."""
        return next((event for event, said in reversed(self.messages.items()) if fits(said)), "")

    def was_said(self, fits: Callable[[Said], bool]) -> bool:
        """Whether ravebot said that in the room, whatever became of the message since."""
        return any(fits(said) for said in self.versions if said.sender == "ravebot" and not (said.card or said.thread))

    def reacted(self, event: str, who: str, key: str) -> bool:
        """Whether that person's reaction to a message is there, whether or not it asks for colour (U+FE0F)."""
        return (who, key) in self.reactions.get(event, [])

    async def until(self, what: str, condition: Callable[[], T], timeout: float = _SECONDS) -> T:
        """Wait until the condition is true, and return its value. Raises DemoError, saying `what` was not seen."""

        async def look() -> T:
            return condition()

        return await self.until_async(what, look, timeout)

    async def until_async(self, what: str, condition: Callable[[], Awaitable[T]], timeout: float = _SECONDS) -> T:
        """The same for a condition that must be waited for."""
        deadline = time.monotonic() + timeout
        while not (found := await condition()):
            process = self.stage.bot.process
            if process is None or process.poll() is not None:
                raise DemoError(f"ravebot ended while the demo waited for this: {what}")
            if time.monotonic() > deadline:
                card = f". The card says: {self.card_state()}" if self.cards else ""
                raise DemoError(f"this was not seen in {timeout:.0f} s: {what}{card}")
            await asyncio.sleep(_LOOK_SECONDS)
        return found

    async def room(self) -> None:
        """As Alice's client sees it. Raises DemoError when Synapse is gone."""
        since = self.since
        while True:
            try:
                answer = await self.stage.matrix_alice.sync(since, timeout_ms=5000)
            except (aiohttp.ClientError, MatrixError) as error:
                raise DemoError(f"Synapse does not answer any more: {error}") from error
            since = str(answer["next_batch"])
            room = answer.get("rooms", {}).get("join", {}).get(self.stage.room, {})
            for event in room.get("timeline", {}).get("events", []):
                if event["type"] == "m.room.message":
                    self._heard(event)
                elif event["type"] == "m.reaction":
                    self._reacted(event)

    def _heard(self, event: dict[str, Any]) -> None:
        content = event["content"]
        relation = content.get("m.relates_to", {})
        edited = relation.get("event_id") if relation.get("rel_type") == "m.replace" else None
        shown = content["m.new_content"] if edited else content
        before = self.messages.get(edited or "")
        thread, reply = relation.get("rel_type") == "m.thread", "m.in_reply_to" in relation
        html = shown.get("formatted_body")
        said = Said(
            sender=_name(event["sender"]),
            body=shown["body"],
            rows=tuple(rows_of(html)) if html else (Row(Kind.TEXT, shown["body"]),),
            mentions=tuple(shown.get("m.mentions", {}).get("user_ids", ())),
            thread=before.thread if before else thread,
            reply=before.reply if before else reply,
        )
        self.messages[edited or event["event_id"]] = said
        self.versions.append(said)
        if said.card:
            self.first_card_at = self.first_card_at or datetime.now(UTC)
            if before is None or before.state != said.state:
                self.screen.said("room", "ravebot", f"{'edits the' if edited else 'posts a'} card: {said.state}")
        elif before is None or before.body != said.body:
            how = f"{'(in the thread) ' if said.thread else ''}{'(edited) ' if edited else ''}"
            self.screen.said("room", said.sender, f"{how}{_beginning(said.body)}")

    def _reacted(self, event: dict[str, Any]) -> None:
        relation = event["content"].get("m.relates_to", {})
        to, who = str(relation.get("event_id")), _name(event["sender"])
        key = str(relation.get("key")).replace("\ufe0f", "")
        self.reactions.setdefault(to, []).append((who, key))
        said = self.messages.get(to)
        about = said.body.splitlines()[0] if said and said.body else "a message"
        self.screen.said("room", who, f"reacts with {key} to “{about[:60]}{'…' if len(about) > 60 else ''}”")

    async def merge_request(self) -> None:
        while True:
            if self.mr:
                for note in self.stage.gitlab.notes(self.mr):
                    self._look(note)
            await asyncio.sleep(_LOOK_SECONDS)

    def _look(self, note: Note) -> None:
        self._read(note)
        for name in self.stage.gitlab.emoji(note):
            if (note.id, name) not in self._awards:
                self._awards.add((note.id, name))
                self.screen.said("MR", "ravebot", f"reacts with {emoji(name)} to “{note.body}”")

    def _read(self, note: Note) -> None:
        if self._notes.get(note.id) == note.body:
            return
        first = note.id not in self._notes
        self._notes[note.id] = note.body
        if " status -->" not in note.body:
            shown = "\n".join(row.text for row in rows_of(to_html(note.body)))
            self.screen.said("MR", note.author.username, shown)
            return
        before = self.note_headline()
        self.note, self.note_rows = note, tuple(rows_of(to_html(note.body)))
        if self.note_headline() != before:
            self.screen.said("MR", "ravebot", f"{'posts' if first else 'edits'} the note: {self.note_headline()}")


def _beginning(body: str) -> str:
    """So much of a message that the story can be followed; whole messages are shown where they matter."""
    lines = body.split("\n")
    more = len(lines) - _MOST_LINES
    return "\n".join([*lines[:_MOST_LINES], f"… ({more} more lines)"]) if more > 1 else body


def _name(user_id: str) -> str:
    return user_id.removeprefix("@").partition(":")[0]


def fact(rows: tuple[Row, ...], label: str) -> str:
    """The text of the row with that label; empty when there is none."""
    return next((row.text for row in rows if row.label == label), "")
