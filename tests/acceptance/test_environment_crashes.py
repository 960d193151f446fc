"""`kill -9` at each step of an environment's life: one environment, one deployment a commit, each as it should be."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import pytest

from tests.support import leftovers
from tests.support.crashes import rows
from tests.support.gitlab import MergeRequest
from tests.support.stage import Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]
ONCE = ("sandbox.queued", "sandbox.starting", "machine.booted", "sandbox.ready", "sandbox.ended")


@dataclass(frozen=True)
class Step:
    """A request that changes something. `late`: GitLab carries it out when ravebot is dead, and what makes something
    only when ravebot came back and looked for it; else before ravebot dies, so that its answer is lost."""

    method: str
    path: str
    late: bool

    @property
    def comes_back_first(self) -> bool:
        return self.late and self.method == "POST" and "stop" not in self.path


CREATE, DEPLOY = Step("POST", "/environments$", late=True), Step("POST", "/deployments$", late=False)
READY = [
    Step(method, path, late)
    for method, path in (("PUT", "/environments/[0-9]+$"), ("PUT", "/deployments/[0-9]+$"))
    for late in (True, False)
]
END = [
    Step("POST", "/environments/[0-9]+/stop$", late=False),
    *(Step("DELETE", "/environments/[0-9]+$", late) for late in (True, False)),
]


async def die_at(stage: Stage, step: Step, next_one: Step | None) -> None:
    """Kill ravebot while GitLab works on that request, and start it again; the next one waits for the same then."""
    await stage.until(lambda: stage.gitlab.waiting, 90, f"it never came to {step}")
    await stage.bot.kill()
    if not step.late:
        stage.gitlab.restore()
    elif not step.comes_back_first:
        await stage.gitlab.let_go()
    if next_one:
        arm(stage, next_one)
    before = len(stage.gitlab.requests)
    stage.bot.start()
    if step.comes_back_first:
        assert not (next_one and next_one.late), "it would be let go with this one"

        def looks() -> bool:
            asked = (one for one in stage.gitlab.requests[before:] if one.method == "GET")
            return any(re.search(step.path, one.path) and re.search("=review/mr-[0-9]", one.query) for one in asked)

        await stage.until(looks, 30, f"it does not look for what {step} made")
        await stage.gitlab.let_go()


def arm(stage: Stage, step: Step) -> None:
    if step.late:
        stage.gitlab.hold(1, method=step.method, path=step.path)
    else:
        stage.gitlab.drop(1, method=step.method, path=step.path, after=True)


async def one_life(stage: Stage) -> MergeRequest:
    """Opened, ready, merged, ended; killed at each step, and twice where it then takes the step again."""
    arm(stage, CREATE)
    mr = stage.open_merge_request()
    for step, next_one in pairwise([CREATE, DEPLOY, *READY, END[0]]):
        await die_at(stage, step, next_one)
    await stage.until(lambda: shown(stage, mr) == ["success"], 30, "its deployment is no success")
    (environment,) = stage.project.environments.values()
    assert (environment.name, environment.state) == (f"review/mr-{mr.iid}", "available")
    assert environment.external_url == stage.web_url(await stage.ready(mr))
    stage.gitlab.merge(mr)
    for step, next_one in zip_longest(END, END[1:]):
        await die_at(stage, step, next_one)
    await stage.until(lambda: not stage.project.environments, 30, "its environment is not deleted")
    await stage.note_says(mr, "Sandbox ended", 60)
    return mr


def shown(stage: Stage, mr: MergeRequest) -> list[str]:
    """The states of its commit's deployments."""
    return [one.status for one in stage.project.deployments.values() if one.sha == mr.sha]


async def told_everything(stage: Stage) -> bool:
    """But for notes that are written again, as GitLab may have been at work on the first when ravebot was killed."""
    to_tell = rows(stage, "SELECT 1 FROM outbox WHERE delivered_at IS NULL AND lane NOT LIKE '% again'")
    to_show = rows(stage, "SELECT 1 FROM environments WHERE changes <> settled")
    return not to_tell and not to_show and not leftovers.machines(stage)


async def test_killed_at_each_step_there_is_one_environment_and_one_deployment_and_nothing_in_the_end() -> None:
    # Kills would strike a commit status by chance, whose end is then waited for: others try that.
    async with Stage({"gitlab": {"poll": "5s", "request_limit": "5s", "commit_status": False}}) as stage:
        await stage.start()
        mr = await one_life(stage)
        await stage.until(lambda: told_everything(stage), 60, "something is still to be told")
        made = [one for one in stage.gitlab.requests if one.method == "POST" and one.status in (201, None)]
        named = [one.path for one in made if f'"review/mr-{mr.iid}"'.encode() in one.body]
        assert Counter(path.rpartition("/")[2] for path in named) == {"environments": 1, "deployments": 1}
        assert stage.project.deployments == {}
        ours = [note for note in stage.gitlab.notes(mr) if note.author is stage.ravebot]
        assert len(ours) == len(await stage.cards(mr)) == 1
        sandboxes = rows(stage, "SELECT state, end_reason FROM sandboxes")
        assert [tuple(row) for row in sandboxes] == [("ended", "merged")]
        kinds = Counter(row["kind"] for row in rows(stage, "SELECT kind FROM events WHERE iid = ?", mr.iid))
        assert {kind: kinds[kind] for kind in ONCE} == dict.fromkeys(ONCE, 1), kinds
