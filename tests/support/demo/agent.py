"""The demo's chapter with a coding agent: asked in the room, it asks before it changes a file; the change is committed.

The agent is ours and small, written with the SDK of the Agent Client Protocol: `tests/support/agents/sdk.py`. It needs
no model, so it does what it is told word by word; all the rest is as with any other agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.support.demo.doors import Doors
from tests.support.demo.sample import GREETING
from tests.support.demo.screen import Screen
from tests.support.demo.watch import DemoError, Said, Watch
from tests.support.gitlab import MergeRequest
from tests.support.stage import Stage

CONFIGURED: dict[str, Any] = {
    "name": "coder",
    "owner": "alice",
    "projects": ["group/*"],
    "acp": {"command": ["sdk-agent", "--sessions", "/home/agent/sessions"]},
    "approve": ["edit"],
}
"""The agent, as the configuration has it; the Debian image holds its program."""
_NEW = "Hello from the agent!"
_ANSWER_SECONDS = 300  # without KVM its Python takes some seconds to begin, and a minute where others compute, too
_STEP_SECONDS = 180


@dataclass
class Chapter:
    """Tells it, on a sandbox that is ready. Raises DemoError at the first thing that does not happen."""

    stage: Stage
    screen: Screen
    watch: Watch
    mr: MergeRequest
    doors: Doors

    async def tell(self) -> None:
        screen = self.screen
        screen.chapter("4 · Alice asks a coding agent, which works in the sandbox")
        asked = await self._asked()
        await self._allowed(asked)
        await self._committed()

    async def _asked(self) -> str:
        stage, watch = self.stage, self.watch
        text = f"@coder !{self.mr.iid} please edit page.html: {GREETING} => {_NEW}"
        asked = await stage.matrix_alice.send(stage.room, text, **{"m.mentions": {}})
        async with self.screen.waiting("The agent starts in the sandbox, and reads what Alice wants"):
            await watch.until(
                "a question in the agent's thread",
                lambda: self._question("Edit page.html"),
                _ANSWER_SECONDS,
            )
        return asked

    async def _allowed(self, asked: str) -> None:
        stage, watch, screen = self.stage, self.watch, self.screen
        question = self._question("Edit page.html")
        screen.message("Matrix: the question, in the agent's thread", watch.messages[question].rows, "magenta")
        if _NEW in await self.doors.fetch():
            raise DemoError("the page was changed before anybody allowed it")
        screen.seen("nothing is changed yet: configured with `approve: [edit]`, the agent waits for a person")
        await stage.matrix_alice.react(stage.room, question, "✅")
        await watch.until(
            "ravebot's ✅ on what Alice asked", lambda: watch.reacted(asked, "ravebot", "✅"), _STEP_SECONDS
        )
        await self._page_shows(_NEW)
        screen.seen(f"the agent has changed the file, and {self.doors.web} shows it")

    async def _committed(self) -> None:
        stage, watch, screen, mr = self.stage, self.watch, self.screen, self.mr
        before = mr.sha
        await stage.matrix_alice.send(stage.room, f"!rave diff !{mr.iid}")
        await watch.until(
            "the diff", lambda: watch.find(lambda said: "differs from commit" in said.body), _STEP_SECONDS
        )
        question = await watch.until(
            "a question whether it is committed",
            lambda: self._question("Commit what coder changed"),
            _STEP_SECONDS,
        )
        screen.message("Matrix: what is asked before anything is committed", watch.messages[question].rows, "magenta")
        await stage.matrix_alice.react(stage.room, question, "✅")
        await watch.until("a commit on the merge request's branch", lambda: mr.sha != before, _STEP_SECONDS)
        commit = mr.source_project.facts[mr.sha]
        screen.said("MR", "ravebot", f"commits {mr.sha[:12]} to {mr.branch}\n{commit.message.strip()}")
        changed = {
            name
            for name, content in mr.source_project.commits[mr.sha].items()
            if mr.source_project.commits[before].get(name) != content
        }
        if changed != {"page.html"} or commit.parent != before:
            raise DemoError(f"the commit should change page.html alone, but it changes {sorted(changed)}")
        for trailer in ("Ravebot-Agent: coder", "Ravebot-Asked-By: alice", "Ravebot-Approved-By: alice"):
            if trailer not in commit.message.splitlines():
                raise DemoError(f"the commit has no line {trailer}: {commit.message}")
        screen.seen(
            "exactly what was shown is on the branch, and the commit names the agent, who asked and who approved"
        )
        await self._page_shows(mr.sha)
        screen.seen("the sandbox has taken the new commit, like any push")

    async def _page_shows(self, text: str) -> None:
        async def look() -> bool:
            try:
                return text in await self.doors.fetch()
            except DemoError:  # while new code takes the old one's place
                return False

        await self.watch.until_async(f"a page with {text}", look, _STEP_SECONDS)

    def _question(self, text: str) -> str:
        """The event of ravebot's newest message that asks for ✅ or ❌ and holds the text."""

        def fits(said: Said) -> bool:
            body = said.body.replace("[.]", ".")  # which keeps clients from making links of others' words
            return said.sender == "ravebot" and text in body and "✅ or ❌" in body

        return self.watch.find(fits)
