"""The calls of GitLab's API for discussions, the threads of comments on a merge request, and for emoji on comments.

Every comment is in a discussion; one that nobody replied to is alone in its own (`individual_note`). Emoji are given to
comments, not to discussions.
https://docs.gitlab.com/api/discussions/#merge-requests and https://docs.gitlab.com/api/emoji_reactions/
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ravebot.errors import NotFound
from ravebot.gitlab import answers, fields
from ravebot.gitlab.answers import Note
from ravebot.gitlab.calls import in_thread, mr_address, readable
from ravebot.gitlab.fields import Json
from ravebot.gitlab.transport import Transport
from ravebot.sandboxes.model import MergeRequestRef

_DISCUSSIONS_PER_PAGE = "20"  # each has all its notes, which may be a megabyte long


class Discussions:
    """Raises what `GitLab` raises; NotFound also for a discussion or comment that was deleted."""

    def __init__(self, transport: Transport, pool: ThreadPoolExecutor, note_pool: ThreadPoolExecutor) -> None:
        self._transport = transport
        self._pool, self._note_pool = pool, note_pool

    async def reply(self, ref: MergeRequestRef, discussion_id: str, body: str) -> int:
        """Post a reply; returns its id. A comment that was alone becomes the first of a thread."""
        address = f"{_discussion(ref, discussion_id)}/notes"
        return await in_thread(self._note_pool, lambda: answers.note_id(self._transport.post(address, {"body": body})))

    async def find_reply(self, ref: MergeRequestRef, discussion_id: str, author_id: int, marker: str) -> int | None:
        """The first comment of a discussion by that author that begins with the marker."""

        def search() -> int | None:
            for note in _notes(self._transport.get(_discussion(ref, discussion_id))):
                if note.author.id == author_id and note.text.startswith(marker):
                    return note.id
            return None

        return await in_thread(self._pool, search)

    async def of_note(self, ref: MergeRequestRef, note_id: int) -> str:
        """The id of the discussion that a comment is in; the API does not tell it with the comment."""
        address = f"{mr_address(ref)}/discussions"

        def search() -> str:
            for found in self._transport.list(address, per_page=_DISCUSSIONS_PER_PAGE):
                identity = fields.discussion_id(found, "id")
                if identity and any(note.id == note_id for note in _notes(found)):
                    return identity
            raise NotFound(f"the comment {note_id} is not there any more")

        return await in_thread(self._pool, search)

    async def award(self, ref: MergeRequestRef, note_id: int, name: str) -> int:
        """Add an emoji (`eyes`, `white_check_mark`, …) to a comment, if it is not there; returns the award's id."""
        address = _awards(ref, note_id)

        def give() -> int:
            try:
                return fields.identifier(self._transport.post(address, {"name": name}), "id")
            except NotFound:
                # GitLab answers 404 if the note is gone, and also if we gave the emoji before.
                me = answers.person(self._transport.get("/user")).id
                given = (answers.award(item) for item in self._transport.list(address))
                before = next((one.id for one in given if (one.user_id, one.name) == (me, name)), None)
                if before is None:
                    raise
                return before

        return await in_thread(self._pool, give)

    async def remove_award(self, ref: MergeRequestRef, note_id: int, award_id: int) -> None:
        """Take an emoji of ours back; it may be gone already."""

        def take() -> None:
            with suppress(NotFound):
                self._transport.delete(f"{_awards(ref, note_id)}/{award_id:d}")

        await in_thread(self._pool, take)


def _discussion(ref: MergeRequestRef, discussion_id: str) -> str:
    if fields.discussion_id({"id": discussion_id}, "id") != discussion_id or not discussion_id:
        raise NotFound("that is no discussion's id")
    return f"{mr_address(ref)}/discussions/{discussion_id}"


def _awards(ref: MergeRequestRef, note_id: int) -> str:
    return f"{mr_address(ref)}/notes/{note_id:d}/award_emoji"


def _notes(discussion: Json) -> Iterator[Note]:
    listed = discussion.get("notes")
    items = listed if isinstance(listed, list) else ()
    return readable((item for item in items if isinstance(item, dict)), answers.note)
