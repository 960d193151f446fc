"""A pipeline in the demo: a job leaves the image that the sandbox boots, another waits for the sandbox and names it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import aiohttp

from tests.support import leftovers
from tests.support.demo.screen import Screen
from tests.support.demo.watch import DemoError, Watch, fact
from tests.support.gitlab import Job, MergeRequest
from tests.support.stage import Stage

BUILD, REVIEW = "ravebot:build", "ravebot:review"
IMAGE = "image/sandbox.qcow2"
_SECONDS = 60


@dataclass
class Pipeline:
    """The jobs are played, as there is no runner; what they ask of ravebot, and what it answers, is real."""

    stage: Stage
    screen: Screen
    watch: Watch
    mr: MergeRequest
    states: list[str] = field(default_factory=list)

    async def build(self) -> Job:
        """The sandbox waits until the job has left its file. Returns the job that waits for the sandbox."""
        gitlab, screen = self.stage.gitlab, self.screen
        pipeline = gitlab.run_pipeline(self.mr, [BUILD, REVIEW])
        build, review = pipeline.job(BUILD), pipeline.job(REVIEW)
        gitlab.name_environment(review, f"review/mr-{self.mr.iid}", action="prepare")
        gitlab.start_job(build)
        screen.said("CI", BUILD, "runs, and makes the image for this sandbox")
        await self.watch.until("a note that says what it waits for", self._waits, _SECONDS)
        screen.seen("the sandbox waits for the image, as .rave.yml says, and the note says so")
        gitlab.finish_job(build, artifacts={IMAGE: self.stage.image})
        screen.said("CI", BUILD, f"has left {IMAGE}, {self.stage.image.stat().st_size >> 20} MiB")
        return gitlab.start_job(review)

    async def review(self, job: Job) -> None:
        """As the job `ravebot:review` does, wait until the sandbox is ready, with the token that GitLab gave it."""
        token = self.stage.gitlab.id_token(job, self.stage.http)
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        door = f"{self.stage.http}/api/v1/ci"
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.post(f"{door}/image") as answer:
                if answer.status != 200:
                    raise DemoError(
                        f"what {REVIEW} tells of the image is answered {answer.status}: {await answer.text()}"
                    )
            while True:
                async with session.get(f"{door}/sandbox", params={"wait": "3"}) as answer:
                    said = await answer.json()
                    self._tell(said)
                if answer.status == 200:
                    return
                if answer.status != 202:
                    raise DemoError(f"the job {REVIEW} is answered {answer.status}: {said}")

    async def shown(self, job: Job) -> None:
        """The machine runs from the job's image, and the merge request has "View app"."""
        self.stage.gitlab.finish_job(job)
        self.screen.said("CI", REVIEW, "passes: the sandbox is ready")
        (base,) = await asyncio.to_thread(leftovers.images, self.stage)
        if base.parent != self.stage.pipeline_images:
            raise DemoError(f"the machine runs from {base}, which is no image of a pipeline")
        self.screen.seen(f"the machine runs from the image of that job: {base.name}")
        web = fact(self.watch.note_rows, "Web")

        async def is_shown() -> bool:
            url = f"{self.stage.gitlab.url}/{self.mr.project.path}/-/merge_requests/{self.mr.iid}"
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return f'href="{web}" rel="noopener noreferrer nofollow">View app<' in await answer.text()

        await self.watch.until_async("“View app” on the merge request", is_shown, _SECONDS)
        self.screen.seen("the merge request has GitLab's own “View app”, which leads to the sandbox")

    def _waits(self) -> bool:
        return any("it waits for the image" in row.text for row in self.watch.note_rows)

    def _tell(self, said: dict[str, str]) -> None:
        state = ": ".join(filter(None, (said.get("state"), said.get("waits") or said.get("url"))))
        if state not in self.states:
            self.states.append(state)
            self.screen.said("CI", REVIEW, f"is told: {state}")
