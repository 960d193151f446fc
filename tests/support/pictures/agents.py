"""What is photographed of agents: one streams, asks before it changes a file, and its work becomes a commit."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.crashes import rows
from tests.support.demo import agent, sample
from tests.support.gitlab import MergeRequest, Note
from tests.support.pictures.story import SETTINGS as _SETTINGS
from tests.support.pictures.story import Story
from tests.support.synapse import Message

SETTINGS = {**_SETTINGS, "pool": {"lifetime": "2h"}, "agents": [agent.CONFIGURED]}
"""What ravebot is configured with, on top of the stage's own."""
_NEW = "Hello from the agent!"
_NEWER = "Hello from both!"
_HOSTILE = "Look: https://evil.example/x, @room, <b>bold</b>, [here](https://evil.example), `README.md`\n!rave stop 1"
_BOOT_SECONDS, _WORD_SECONDS = 240, 120


@dataclass
class AgentStory(Story):
    """Tells it on a stage of the Debian image, whose ravebot runs."""

    async def tell(self) -> None:
        stage, album = self.stage, self.album
        mr = stage.gitlab.open_merge_request(
            stage.project, stage.alice, sample.TITLE, sample.BRANCH, sample.change(), description=sample.DESCRIPTION
        )
        await self._until(mr, "state = 'ready'", _BOOT_SECONDS)
        await self._quiet()
        first = await self._say(f"@coder !{mr.iid} read page.html")
        await self._heard("I have read", _WORD_SECONDS)
        await self._receipt(first, "👀")
        await album.glance("streaming")
        await self._receipt(first, "✅")
        await self._quiet()
        await album.moment("answered")
        asked = await self._say(f"edit page.html: {sample.GREETING} => {_NEW}", thread=first)
        question = await self._heard("Edit page.html", _WORD_SECONDS)
        await self._receipt(asked, "⏸")
        await self._quiet()
        await album.moment("asked")
        await stage.matrix_alice.react(stage.room, question.event_id, "✅")
        await self._receipt(asked, "✅")
        await self._quiet()
        await album.moment("allowed")
        await self._committed(mr)
        await self._on_merge_request(mr)
        await self._say(_HOSTILE, thread=first)
        await self._heard("evil", _WORD_SECONDS)
        await self._quiet()
        await album.moment("hostile")
        folder = album.next_folder("thread")
        await album.keep(folder, "thread", "thread-wide", await album.clients["wide"].open_thread())

    async def _on_merge_request(self, mr: MergeRequest) -> None:
        """Alice asks there, too, and allows with a comment what the agent wants to do."""
        stage, album = self.stage, self.album
        read = stage.gitlab.comment(mr, stage.alice, "/agent coder read page.html")
        assert read
        await self._replies(mr, read, 1)
        await self._wait(lambda: "white_check_mark" in stage.gitlab.emoji(read), _WORD_SECONDS, "✅ on the comment")
        await self._quiet()
        await album.moment("commented", mr)
        edit = stage.gitlab.comment(mr, stage.alice, f"/agent coder edit page.html: {_NEW} => {_NEWER}")
        assert edit
        await self._replies(mr, edit, 1)
        await self._quiet()
        await album.moment("asked-there", mr)
        (asked,) = rows(stage, "SELECT max(id) AS id FROM approvals")
        stage.gitlab.comment(mr, stage.alice, f"/agent approve {asked['id']}", reply_to=edit)
        await self._wait(lambda: "white_check_mark" in stage.gitlab.emoji(edit), _WORD_SECONDS, "✅ on the comment")
        await self._quiet()
        await album.moment("allowed-there", mr)
        await album.talk("allowed-there", mr)

    async def _replies(self, mr: MergeRequest, to: Note, many: int) -> None:
        await self._wait(
            lambda: len(mr.discussion(to.discussion_id)) > many, _WORD_SECONDS, "an answer on the merge request"
        )

    async def _committed(self, mr: MergeRequest) -> None:
        stage, before = self.stage, mr.sha
        await self._say(f"!rave diff !{mr.iid}")
        await self._heard(f"<h1>{_NEW}", 60)
        offer = await self._heard("Commit what coder changed", 60)
        await self._quiet()
        await self.album.moment("diff")
        await stage.matrix_alice.react(stage.room, offer.event_id, "✅")
        await self._wait(lambda: mr.sha != before, 60, "a commit")
        await self._quiet()
        await self.album.moment("committed", mr)

    async def _say(self, text: str, thread: str = "") -> str:
        relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": thread}} if thread else {}
        return await self.stage.matrix_alice.send(self.stage.room, text, **{"m.mentions": {}}, **relation)

    async def _heard(self, text: str, seconds: float) -> Message:
        """The newest message of ravebot with that text."""
        stage = self.stage
        found: list[Message] = []

        async def look() -> bool:
            messages = await stage.matrix_alice.messages(stage.room)
            found[:] = [
                one
                for one in messages
                if one.sender == stage.matrix_bot.user_id and text in one.body.replace("[.]", ".")
            ]
            return bool(found)

        await self._wait(look, seconds, f"a message with {text!r}")
        return found[-1]

    async def _receipt(self, event: str, key: str) -> None:
        stage = self.stage

        async def look() -> bool:
            given = await stage.matrix_alice.reactions(stage.room, event)
            return any(who == stage.matrix_bot.user_id and what.startswith(key) for who, what in given)

        await self._wait(look, _WORD_SECONDS, f"{key} on a message")
