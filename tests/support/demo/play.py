"""`--keep`: everything goes on, and people can work it: by hand, or with this command's subcommands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
from aiohttp import web

from tests.support.demo import sample
from tests.support.demo.screen import Screen
from tests.support.demo.watch import DemoError
from tests.support.gitlab import MergeRequest
from tests.support.gitlab.control import control_app
from tests.support.stage import ROOT, Stage
from tests.support.synapse import MatrixUser

FACTS = ROOT / ".cache" / "demo.json"
PROJECT = "group/app"


@dataclass(frozen=True)
class Facts:
    """What another process needs to work a demo that was kept. The tokens are as throwaway as the rest."""

    control: str
    matrix: str
    room: str
    users: dict[str, str]  # name: access token


def page(stage: Stage, mr: MergeRequest) -> str:
    """The merge request's web page."""
    return f"{stage.gitlab.url}/{mr.project.path}/-/merge_requests/{mr.iid}"


@asynccontextmanager
async def playground(stage: Stage, mr: MergeRequest, screen: Screen) -> AsyncIterator[None]:
    """Open the stand-in's control port, and say what can be done, while the block runs."""
    runner = web.AppRunner(control_app(stage.gitlab), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        people = {"alice": stage.matrix_alice, "ops": stage.matrix_ops, "gina": stage.matrix_gina}
        control = f"http://127.0.0.1:{runner.addresses[0][1]}"
        tokens = {name: user.access_token for name, user in people.items()}
        _remember(Facts(control, stage.synapse.url, stage.room, tokens))
        _tell(stage, mr, screen, people)
        yield
    finally:
        FACTS.unlink(missing_ok=True)
        await runner.cleanup()


def _remember(facts: Facts) -> None:
    FACTS.parent.mkdir(parents=True, exist_ok=True)
    FACTS.unlink(missing_ok=True)
    FACTS.touch(0o600)
    FACTS.write_text(json.dumps(asdict(facts)))


def _tell(stage: Stage, mr: MergeRequest, screen: Screen, people: dict[str, MatrixUser]) -> None:
    screen.chapter("Yours to play with, until Ctrl-C")
    screen.say("What happens goes on being shown here. Everything listens on this host only.")
    screen.say("\nThe merge request's page, with the note:")
    screen.copyable(page(stage, mr))
    screen.say("The room #dev on the homeserver (for curl, or Element on this host), and who is in it:")
    screen.copyable(stage.synapse.url)
    for name, user in people.items():
        screen.copyable(f"{user.user_id}  password {user.password}" + ("  (an admin)" if name == "ops" else ""))
    screen.say("From another terminal:")
    for command in (
        "say '!rave help'                 # as Alice, in the room",
        "say --as gina '!rave stop !1'    # she is no Developer",
        "comment '/sandbox rebuild'       # as Alice, on the merge request",
        "push 'Good morning!'             # new code on the branch",
        "open 'Another idea'              # the third waits in the queue",
        "close                            # or merge, or reopen",
    ):
        screen.copyable(f"./dev demo {command}")
    screen.say("ravebot's own commands:")
    screen.copyable(f"sudo .venv/bin/ravebot list -c {stage.bot.config}")


async def work(what: str, text: str, who: str, ref: str) -> str:
    """Do one thing to a demo that was kept; what was done. Raises DemoError when there is none, or it refuses."""
    try:
        facts = Facts(**json.loads(FACTS.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DemoError("no demo was kept running: start one with `./dev demo --keep` in another terminal") from error
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:
        try:
            if what == "say":
                return await _say(session, facts, text, who)
            return await _control(session, facts, what, text, who, ref)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoError(f"the demo that was kept does not answer ({error}): has it ended?") from error


async def _say(session: aiohttp.ClientSession, facts: Facts, text: str, who: str) -> str:
    if who not in facts.users:
        raise DemoError(f"in the room there are {', '.join(facts.users)}")
    user = MatrixUser(facts.matrix, who, "", facts.users[who], "")
    try:
        await user.send(facts.room, text)
    finally:
        await user.close()
    return f"{who} said it; the answer is shown where the demo runs"


async def _control(session: aiohttp.ClientSession, facts: Facts, what: str, text: str, who: str, ref: str) -> str:
    mr = ref if ref.startswith(PROJECT) else f"{PROJECT}!{ref.lstrip('!')}"
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "comment": ("comment", {"mr": mr, "user": who, "body": text}),
        "push": ("push", {"mr": mr, "files": sample.change(text)}),
        "open": (
            "open_merge_request",
            {"project": PROJECT, "author": who, "title": text, "branch": "idea", "files": sample.change(text)},
        ),
        "close": ("close", {"mr": mr}),
        "merge": ("merge", {"mr": mr}),
        "reopen": ("reopen", {"mr": mr}),
    }
    method, arguments = calls[what]
    async with session.post(f"{facts.control}/{method}", json=arguments) as answer:
        told = await answer.json()
        if answer.status != 200:
            raise DemoError(f"GitLab's stand-in refused: {told['error']}")
    return f"done: {told.get('url', method)}" if isinstance(told, dict) else f"done: {method}"
