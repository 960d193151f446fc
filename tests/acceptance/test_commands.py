"""What people may type, who may, and what they are answered: in rooms, in merge requests, in a shell."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support import dashboards
from tests.support.crashes import rows
from tests.support.gitlab import DEVELOPER, Job, MergeRequest, Note, User
from tests.support.pipelinejobs import OF_A_MERGE_REQUEST, LocalPipeline
from tests.support.prometheus import Watchers
from tests.support.receivers import SIGNING_KEY
from tests.support.stage import ROOT, Stage
from tests.support.synapse import MatrixUser, Message

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

HOOK_PORT = 9000  # in the client's namespace; the API has the next one on the host
_BUILT = "image/sandbox.qcow2"
_PIPELINE = """\
include:
  - local: .gitlab/ravebot.yml
ravebot:build:
  extends: .ravebot
  stage: build
  script: [mkdir -p image, echo this is no image >image/sandbox.qcow2, announce image/sandbox.qcow2]
  artifacts: {paths: [image/sandbox.qcow2]}
"""
ABOUT_ONE = ("show", "start", "stop", "extend", "rebuild", "retry", "logs", "why")


@dataclass
class Place:
    """The stage with its people, and a draft whose sandbox a person must ask for."""

    stage: Stage
    draft: MergeRequest
    umar: MatrixUser  # in the room, but tied to nobody on GitLab
    elsewhere: str  # a room that is mapped to nothing
    direct: str  # ops alone with the bot
    api: str  # where the API listens
    reviewer: Path  # what the agent reviewer has on its machine: its SSH key, its signing key
    alerts: str  # the operators' room
    watchers: Watchers  # Prometheus and Alertmanager, which look at the bot all the time

    async def ask(self, who: MatrixUser, text: str, room: str = "") -> Message:
        """Say that and return what the bot answers to it."""
        asked = await who.send(room or self.stage.room, text)
        bot = self.stage.matrix_bot.user_id
        return await who.wait_for(
            room or self.stage.room, lambda m: m.sender == bot and asked in json.dumps(m.original), 20
        )

    async def said(self, who: MatrixUser, text: str, room: str = "") -> str:
        return (await self.ask(who, text, room)).body

    async def comment(self, mr: MergeRequest, user: User, text: str) -> tuple[str, str]:
        """Comment and return the bot's emoji, and its answer when there is one."""
        before = {note.id for note in self.stage.gitlab.notes(mr)}
        note = self.stage.gitlab.comment(mr, user, text)
        assert note
        await self.stage.until(lambda: note.awards, 20, f"no emoji for {text}")
        (award,) = note.awards
        assert award.user is self.stage.ravebot
        if award.name == "white_check_mark" and "help" not in text:
            return award.name, ""

        def answer() -> list[Note]:
            return [
                n
                for n in self.stage.gitlab.notes(mr)
                if n.author is self.stage.ravebot and n.id not in before and " status -->" not in n.body
            ]

        found = await self.stage.until(answer, 20, f"no answer to {text}")
        return award.name, re.sub(r"[\u2060\\]", "", found[0].body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    reviewer = tmp_path_factory.mktemp("reviewer")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(reviewer / "id")], check=True)
    (reviewer / "signing-key").write_text(SIGNING_KEY)
    (reviewer / "signing-key").chmod(0o600)
    changes: dict[str, Any] = {"gitlab": {"drafts": "wait", "ci": {}}, "provider": {"pipeline_images": {}}}
    stage = Stage(changes)
    api = f"{stage.host}:{HOOK_PORT + 1}"
    hook = {"url": f"http://{stage.elsewhere}:{HOOK_PORT}/", "signing_key_file": str(reviewer / "signing-key")}
    known = {"owner": "alice", "projects": ["group/*"]}
    changes["api"] = {"listen": api}
    changes["agents"] = [
        {"name": "helper", **known, "inbox": True},
        {"name": "reviewer", **known, "webhook": hook, "ssh_keys": [(reviewer / "id.pub").read_text().strip()]},
    ]
    token = reviewer / "alertmanager-token"
    token.write_text("correct horse")
    token.chmod(0o600)
    changes["matrix"] = {"operations_room": "#alerts:localhost"}
    changes["monitoring"] = {"alertmanager_token_file": str(token)}
    async with stage, AsyncExitStack() as stack:
        watchers = await stack.enter_async_context(Watchers(reviewer / "watchers", stage.http, token))
        alerts = await stage.matrix_ops.create_room("alerts", invite=[stage.matrix_bot.user_id], name="alerts")
        await stage.start()
        umar = await stage.synapse.user("umar")
        await stage.matrix_ops.invite(stage.room, umar.user_id)
        await umar.join(stage.room)
        elsewhere = await stage.matrix_ops.create_room(
            invite=[stage.matrix_bot.user_id, stage.matrix_alice.user_id], name="elsewhere"
        )
        await stage.matrix_alice.join(elsewhere)
        direct = await stage.matrix_ops.direct_chat(stage.matrix_bot.user_id)
        await stage.until(lambda: is_in(stage, elsewhere, direct), 20, "the bot does not follow the admin's invites")
        draft = stage.open_merge_request("Not yet", "draft", draft=True)
        await stage.note_says(draft, "Sandbox waits: this is a draft")
        yield Place(stage, draft, umar, elsewhere, direct, api, reviewer, alerts, watchers)


async def is_in(stage: Stage, *rooms: str) -> bool:
    return all([stage.matrix_bot.user_id in await stage.matrix_ops.members(room) for room in rooms])


async def test_everybody_in_a_mapped_room_may_read_help_and_list(place: Place) -> None:
    stage = place.stage
    for who in (place.umar, stage.matrix_gina, stage.matrix_alice, stage.matrix_ops):
        assert "!rave extend REF [1h]" in await place.said(who, "!rave help")
        assert "There is no sandbox now" in await place.said(who, "!rave list")
        assert f"You are {who.user_id}" in await place.said(who, "!rave whoami")


async def test_every_refusal_names_its_rule_and_is_in_the_log(place: Place) -> None:
    stage, ref = place.stage, f"!{place.draft.iid}"
    before = len(rows(stage, "SELECT 1 FROM events WHERE kind = 'command.refused'"))
    for verb in ABOUT_ONE:
        refused = await place.said(stage.matrix_gina, f"!rave {verb} {ref}")
        assert refused.startswith("Refused: gina is Guest in group/app. This needs the role Developer"), refused
        assert "not tied to a GitLab user" in await place.said(place.umar, f"!rave {verb} {ref}")
    assert "not tied to a GitLab user" in await place.said(place.umar, "!rave queue")
    other = await place.said(stage.matrix_alice, f"!rave start group/app{ref}", place.elsewhere)
    assert "This room is not mapped to that project" in other
    assert "not mapped" in await place.said(stage.matrix_alice, "!rave list", place.elsewhere)
    assert "not mapped" in await place.said(stage.matrix_ops, f"!rave stop group/app{ref}", place.elsewhere)
    assert "not mapped" in await place.said(stage.matrix_alice, "!rave stop other/thing!1")
    refusals = rows(stage, "SELECT data FROM events WHERE kind = 'command.refused'")[before:]
    assert len(refusals) == 2 * len(ABOUT_ONE) + 5
    assert all(json.loads(row["data"])["rule"] for row in refusals)
    assert not rows(stage, "SELECT 1 FROM sandboxes")


async def test_a_draft_waits_for_a_person_and_the_room_commands_its_sandbox_from_start_to_stop(place: Place) -> None:
    stage, mr, alice = place.stage, place.draft, place.stage.matrix_alice
    ref = f"!{mr.iid}"
    assert "never had a sandbox" in await place.said(alice, f"!rave show {ref}")
    assert "is on its way" in await place.said(alice, f"!rave start {ref}")
    note = await stage.ready(mr)
    assert "Nobody waits" in await place.said(alice, "!rave queue")
    assert "has a sandbox already: it is ready." in await place.said(alice, f"!rave start {ref}")
    shown = await place.said(alice, f"!rave show {ref}")
    assert "ssh -o HostKeyAlias=" in shown
    assert "ready after" in await place.said(alice, f"!rave why group/app{ref}")
    assert "have printed nothing so far" in await place.said(alice, f"!rave logs {mr.iid}")
    listed = await place.said(place.umar, "!rave list")
    assert f"group/app{ref}" in listed
    assert "ssh" not in listed
    assert "(1 h more)" in await place.said(alice, f"!rave extend {ref}")
    assert "(30 min more)" in await place.said(alice, f"!rave extend {ref} 30m")
    assert "not 2 d: 8 h is the longest lifetime" in await place.said(alice, f"!rave extend {ref} 2d")
    await alice.send(stage.room, f"!rave extend {ref} 1h")
    refused = await alice.wait_for(stage.room, lambda m: "has its longest lifetime already" in m.body)
    assert "An admin of ravebot is asked" in refused.body
    assert "copied in and set up again" in await place.said(alice, f"!rave retry {ref}")
    assert "you may command" in await place.said(alice, "!rave whoami")
    assert "you may not command" in await place.said(stage.matrix_gina, "!rave whoami")
    before = re.search("HostKeyAlias=([^ ]+)", note.body)
    assert before
    assert "The old one ends first." in await place.said(alice, f"!rave rebuild {ref}")
    await stage.until(lambda: is_another(stage, mr, before[1]), 90, "it was not rebuilt")
    assert f"group/app{ref}" in await place.said(stage.matrix_ops, "!rave list", place.direct)
    direct = await place.said(stage.matrix_ops, f"!rave stop group/app{ref}", place.direct)
    assert "is being stopped" in direct
    await stage.note_says(mr, "Sandbox ended: somebody stopped it")
    assert "has no sandbox" in await place.said(alice, f"!rave stop {ref}")
    nothing = await place.said(alice, f"!rave extend {ref}")
    assert "there is nothing to extend. To start one, type `!rave start group/app" in nothing


async def is_another(stage: Stage, mr: MergeRequest, before: str) -> bool:
    note = stage.note(mr)
    return bool(note and "HostKeyAlias=" in note.body and before not in note.body)


async def test_comments_on_the_merge_request_command_its_sandbox_and_are_acknowledged(place: Place) -> None:
    stage, mr = place.stage, place.draft
    yes, no = "white_check_mark", "no_entry_sign"
    emoji, answer = await place.comment(mr, stage.guest_user, "/sandbox start")
    assert emoji == no
    assert "gina is Guest in group/app. This needs" in answer
    assert stage.gitlab.comment(mr, stage.bob, "I like `/sandbox stop`, and\n> /sandbox stop\n")
    assert await place.comment(mr, stage.bob, "Please.\n/sandbox start") == (yes, "")
    await stage.ready(mr)
    assert await place.comment(mr, stage.bob, "/sandbox extend 45m") == (yes, "")
    await stage.note_says(mr, "extended by 45 min")
    emoji, answer = await place.comment(mr, stage.bob, "/sandbox help")
    assert (emoji, "/sandbox rebuild" in answer) == (yes, True)
    emoji, answer = await place.comment(mr, stage.bob, "/sandbox start deadbeefdeadbeef")
    assert emoji == no
    assert "The head of group/app" in answer
    (sandbox,) = rows(stage, "SELECT id FROM sandboxes WHERE state <> 'ended'")
    assert await place.comment(mr, stage.bob, "/sandbox stop") == (yes, "")
    await stage.note_says(mr, "Sandbox ended: somebody stopped it")
    emoji, answer = await place.comment(mr, stage.bob, "/sandbox rebuild")
    assert emoji == yes
    await stage.until(lambda: newest(stage, mr) > sandbox["id"], 10, "nothing was rebuilt")
    assert await place.comment(mr, stage.bob, "/sandbox stop") == (yes, "")


def newest(stage: Stage, mr: MergeRequest) -> int:
    found = rows(stage, "SELECT MAX(id) AS id FROM sandboxes WHERE iid = ?", mr.iid)
    return int(found[0]["id"] or 0)


async def test_a_fork_starts_only_for_the_very_commit_that_a_developer_let_in(place: Place) -> None:
    stage = place.stage
    mallory = stage.gitlab.add_user("mallory", [stage.public_key("mallory")])
    fork = stage.gitlab.add_project("mallory/app", {"README.md": "# A fork\n"}, public=True)
    stage.gitlab.set_role(fork, mallory, DEVELOPER)
    mr = stage.gitlab.open_merge_request(
        fork, mallory, "Trust me", "patch", {"feature.txt": "forked\n"}, fork_of=stage.project
    )
    note = await stage.note_says(mr, "Sandbox waits for a Developer")
    assert f"/sandbox start {mr.sha}" in note.body
    no = "no_entry_sign"
    emoji, answer = await place.comment(mr, mallory, f"/sandbox start {mr.sha}")
    assert (emoji, "is no member of group/app on GitLab" in answer) == (no, True)
    emoji, answer = await place.comment(mr, stage.bob, "/sandbox start")
    assert (emoji, mr.sha in answer) == (no, True)
    old = mr.sha
    stage.gitlab.push(mr, {"feature.txt": "changed while somebody looked\n"}, mallory)
    emoji, answer = await place.comment(mr, stage.bob, f"/sandbox start {old}")
    assert (emoji, "Look at it first" in answer) == (no, True)
    assert newest(stage, mr) == 0
    assert await place.comment(mr, stage.bob, f"/sandbox start {mr.sha}") == ("white_check_mark", "")
    note = await stage.ready(mr)
    let_in = mr.sha
    assert stage.ssh(note, "mallory", "cat", "/srv/merge-request/feature.txt").stdout.startswith("changed")
    stage.gitlab.push(mr, {"feature.txt": "evil\n"}, mallory)
    await stage.note_says(mr, f"start {mr.sha}")
    assert stage.ssh(note, "mallory", "cat", "/srv/merge-request/feature.txt").stdout.startswith("changed")
    assert rows(stage, "SELECT running_sha FROM sandboxes WHERE iid = ?", mr.iid)[0]["running_sha"] == let_in
    assert await place.comment(mr, stage.bob, f"/sandbox start {mr.sha}") == ("white_check_mark", "")
    await stage.note_says(mr, f"now runs {mr.sha[:8]}")
    assert stage.ssh(note, "mallory", "cat", "/srv/merge-request/feature.txt").stdout == "evil\n"


async def test_an_agent_on_another_machine_hears_works_in_the_sandbox_by_ssh_and_answers_in_the_room(
    place: Place,
) -> None:
    """docs/receiver.py, with the function and the answer that docs/agents.md names for work in the sandbox."""
    stage, folder = place.stage, place.reviewer
    mr = stage.open_merge_request("By webhook", "hook", files={"from-the-hook.txt": "new\n"})
    await stage.ready(mr)
    page = (ROOT / "docs" / "agents.md").read_text()
    [block] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    [answer] = re.findall(r"^Answer with `(.*?)`", page, re.MULTILINE)
    source = (ROOT / "docs" / "receiver.py").read_text()
    echo = "f\"You wrote: {message['text']}\""
    assert source.count(echo) == 1
    (folder / "receiver.py").write_text(source.replace("\n\ndef work", f"\n{block}\n\ndef work").replace(echo, answer))
    made = await stage.bot.command(
        "token", "create", "--owner", "alice", "--name", "reviewer", "--agent", "reviewer", "--scope", "agent",
        "--project", "group/app",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (folder / "token").write_text(made.stdout)
    environment = {
        "SIGNING_KEY_FILE": "signing-key", "TOKEN_FILE": "token", "SSH_KEY_FILE": "id",
        "LISTEN": stage.elsewhere, "PORT": str(HOOK_PORT),
    }  # fmt: skip
    words = [f"{name}={value}" for name, value in environment.items()]
    with subprocess.Popen(
        [*stage.client.prefix, "env", *words, sys.executable, "receiver.py"], cwd=folder, stderr=subprocess.PIPE
    ) as process:
        try:

            async def is_well() -> bool:
                checked = await stage.bot.command("agent", "check", "reviewer", f"group/app!{mr.iid}")
                return checked.returncode == 0 and "✗" not in checked.stdout

            await stage.until(is_well, 30, "the webhook is not well")
            alice = stage.matrix_alice
            asked = await alice.send(stage.room, f"@reviewer !{mr.iid} what is in it?", **{"m.mentions": {}})

            async def heard() -> Message | None:
                said = [one for one in await alice.messages(stage.room) if one.thread_root == asked]
                return next((one for one in said if one.sender == stage.matrix_bot.user_id), None)

            answered: Message = await stage.until(heard, 40, "the agent does not answer")
        finally:
            process.kill()
            print((await asyncio.to_thread(process.communicate))[1].decode())
    assert "from-the-hook" in answered.body
    assert "README" in answered.body
    assert await place.comment(mr, stage.bob, "/sandbox stop") == ("white_check_mark", "")
    await stage.note_says(mr, "Sandbox ended: somebody stopped it")


async def test_reopening_starts_a_new_sandbox_and_the_shell_shows_and_ends_it(place: Place) -> None:
    stage = place.stage
    fork = next(mr for mr in stage.gitlab.state.merge_requests if mr.source_project is not mr.project)
    mr = stage.open_merge_request("Comes and goes", "again")
    await stage.until(lambda: newest(stage, mr), 20, "there is no sandbox")
    first = newest(stage, mr)
    stage.gitlab.close(mr)
    await stage.note_says(mr, "Sandbox ended: the merge request was closed")
    stage.gitlab.reopen(mr)
    await stage.until(lambda: newest(stage, mr) > first, 20, "reopening starts nothing")
    await stage.ready(mr)
    listed = json.loads((await stage.bot.command("list", "--json")).stdout)
    assert {line["ref"]: line["state"] for line in listed} == {
        f"group/app!{fork.iid}": "ready",
        f"group/app!{mr.iid}": "ready",
    }
    ended = await stage.bot.command("stop", f"group/app!{mr.iid}")
    assert (ended.returncode, "is being stopped" in ended.stdout) == (0, True)
    await stage.note_says(mr, "Sandbox ended: somebody stopped it")
    again = await stage.bot.command("stop", f"group/app!{mr.iid}")
    assert (again.returncode, "has no sandbox" in again.stderr) == (1, True)
    assert (await stage.bot.command("stop", "nonsense")).returncode == 1


def objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects, one behind the other."""
    place, decoder = 0, json.JSONDecoder()
    while place < len(text):
        found, place = decoder.raw_decode(text, place)
        yield found
        while text[place : place + 1].isspace():
            place += 1


async def test_programs_do_by_the_api_what_its_page_shows(place: Place, tmp_path: Path) -> None:
    """The blocks of docs/api.md, one after the other, as they stand but for address, merge request and agent."""
    stage = place.stage
    opened = stage.open_merge_request("By the API", "api", draft=True)
    await stage.note_says(opened, "Sandbox waits: this is a draft")
    page = (ROOT / "docs" / "api.md").read_text()
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    for shown, here in (
        ("https://ravebot-api.example.org", f"http://{place.api}"),
        ("group/app!42", f"group/app!{opened.iid}"),
        ('"coder"', '"helper"'),
    ):
        assert shown in script
        script = script.replace(shown, here)
    command = tmp_path / "ravebot"
    command.write_text(f'#!/bin/sh\ncd {ROOT}\nexec {sys.executable} -m ravebot "$@" -c {stage.bot.config}\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-eu", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    token = (tmp_path / "token").read_text().strip()
    told = list(objects(done.stdout))
    assert told[0]["owner"] == "alice"
    run = json.loads((tmp_path / "output").read_text())
    assert (run["run"]["state"], run["run"]["exit_code"]) == ("done", 0)
    assert run["output"].endswith("done\n")
    assert [one["files"] for one in told if "files" in one] == [[]]
    assert told[-1]["message"] == f"The sandbox of group/app!{opened.iid} is being stopped."
    calls = [json.loads(row["data"])["tool"] for row in rows(stage, "SELECT data FROM events WHERE kind = 'api.call'")]
    assert calls == ["sandbox_start", "run_start", "message_send", "sandbox_extend", "sandbox_stop"]
    assert token not in stage.bot.log.read_text() + done.stdout + done.stderr


async def test_a_pipeline_s_jobs_wait_for_the_sandbox_tell_why_it_failed_and_stop_it(
    place: Place, tmp_path: Path
) -> None:
    """The jobs of `ravebot project init`, run by what others made."""
    stage, gitlab = place.stage, place.stage.gitlab
    pipeline = await asyncio.to_thread(LocalPipeline.begin, tmp_path / "app", stage.http, {".gitlab-ci.yml": _PIPELINE})
    setup = "#!/bin/sh\necho about to fail\nexit 3\n"
    files = {".rave/setup": setup, ".rave.yml": "image_job: {job: 'ravebot:build', otherwise: default}\n"}
    mr = stage.open_merge_request("With a pipeline", "pipeline", files=files)
    environment = f"review/mr-{mr.iid}"
    written = await asyncio.to_thread(pipeline.expanded, OF_A_MERGE_REQUEST)
    audience = written["ravebot:review"]["id_tokens"]["RAVEBOT_TOKEN"]["aud"]

    def begun(*names: str, action: str = "prepare", mr: MergeRequest = mr) -> Job:
        made = gitlab.run_pipeline(mr, names)
        job = made.job(names[-1])
        gitlab.name_environment(job, f"review/mr-{mr.iid}", action=action)
        return gitlab.start_job(job)

    async def run(job: Job) -> tuple[str, str]:
        source = {"CI_PIPELINE_SOURCE": job.pipeline.source, "CI_MERGE_REQUEST_IID": str(mr.iid)}
        token = {"RAVEBOT_TOKEN": gitlab.id_token(job, audience)}
        done = await asyncio.to_thread(pipeline.run, job.name, variables={**source, **token})
        print(done.stdout, done.stderr)
        (verdict,) = re.findall(rf"^ (PASS|WARN|FAIL) +{job.name}(?: +pre_script)?$", done.stdout, re.MULTILINE)
        left = {_BUILT: pipeline.folder / _BUILT} if job.name == "ravebot:build" else {}
        gitlab.finish_job(job, "success" if verdict == "PASS" else "failed", artifacts=left)
        return verdict, done.stdout

    async def build_and_review() -> tuple[str, str]:
        review = begun("ravebot:build", "ravebot:review")
        built, said = await run(gitlab.start_job(review.pipeline.job("ravebot:build")))
        assert (built, "> Image: the image of group/app!" in said) == ("PASS", True)
        return await run(review)

    verdict, printed = await build_and_review()
    assert verdict == "FAIL"
    assert re.search(r"\d\d:\d\d:\d\d (queued|starting): ", printed)
    assert re.search(r"about to fail\n.*The sandbox failed: .*ended with code 3", printed)
    gitlab.push(mr, {".rave/setup": "#!/bin/sh\n"})
    verdict, printed = await build_and_review()
    assert verdict == "PASS"
    note = await stage.ready(mr)
    assert "⚠️ the default image is used: the image that the job ravebot:" in note.body.replace("\u2060", "")
    ssh = next(line for line in note.body.splitlines() if line.startswith("ssh "))
    assert f"SSH: {ssh}" in printed
    address = f"{gitlab.url}/group/app/-/merge_requests/{mr.iid}"
    async with aiohttp.ClientSession() as session, session.get(address) as answer:
        page = await answer.text()
    assert f"Deployed to <b>{environment}</b> <a href=" in page
    assert ">View app</a>" in page
    stop = begun("ravebot:stop", action="stop")
    verdict, printed = await run(stop)
    assert (verdict, "The sandbox ends: " in printed) == ("PASS", True)
    again = gitlab.start_job(gitlab.retry_job(stop))
    verdict, printed = await run(again)
    assert (verdict, "there is nothing to stop" in printed) == ("PASS", True)
    await stage.note_says(mr, "Sandbox ended: ")
    verdict, printed = await run(begun("ravebot:review", mr=place.draft))
    assert verdict == "WARN"
    assert re.search("There is no sandbox of this commit: .* drafts wait for a person", printed)
    await stage.until(lambda: gitlab.environment(stage.project, environment) is None, 20, "the environment is there")
    scheduled = gitlab.run_branch_pipeline(stage.project, jobs=["ravebot:clean-up"], source="schedule")
    verdict, printed = await run(gitlab.start_job(scheduled.job("ravebot:clean-up")))
    assert (verdict, "ravebot looks at this project's merge requests now." in printed) == ("PASS", True)


async def _used_by_everybody(place: Place) -> int:
    """The merge request of a ready sandbox; people, a job and a program have just asked for something."""
    stage = place.stage
    ready = "SELECT iid, ssh_port, web_port FROM sandboxes WHERE state = 'ready' ORDER BY id DESC LIMIT 1"
    if not rows(stage, ready):
        await stage.ready(stage.open_merge_request("Watched", "watched"))
    (live,) = rows(stage, ready)
    for port in (live["ssh_port"], live["web_port"]):
        await stage.client.aconnect(stage.host, port)
    async with aiohttp.ClientSession() as session:
        for url in (f"http://{place.api}/api/v1/openapi.json", f"{stage.http}/api/v1/ci/sandbox"):
            async with session.get(url) as answer:
                await answer.read()
    return int(live["iid"])


async def test_a_real_prometheus_has_data_for_every_panel_and_its_alert_is_told_once_and_marked_when_over(
    place: Place,
) -> None:
    """Prometheus has looked on while sandboxes of the tests before this one lived, failed and ended."""
    stage, watchers, ops = place.stage, place.watchers, place.stage.matrix_ops
    live = await _used_by_everybody(place)
    values = {
        "project": "group/app",
        "mr": f"group/app!{live}",
        "instance": stage.http.removeprefix("http://"),
    }
    values |= dict.fromkeys(dashboards.BUILT_IN, "1m")
    queries = [
        (path.name, title, expression)
        for path in dashboards.DASHBOARDS
        for title, expression in dashboards.queries(path, values)
    ]
    assert len(queries) > 30
    without: list[tuple[str, str, str]] = queries

    async def all_have_data() -> bool:  # what is measured every few seconds is not there at once
        nonlocal without
        without = [one for one in without if not await watchers.query(one[2])]
        return not without

    with suppress(AssertionError):
        await stage.until(all_have_data, 60, "a query has no data")
    assert without == []
    assert {rule["name"]: rule["lastError"] for rule in await watchers.rules() if rule["health"] != "ok"} == {}
    texts = {"summary": "A trial", "runbook": "Wait."}
    trial = {"alert": "Trial", "labels": {"severity": "warning"}, "annotations": texts}

    async def told() -> list[Message]:
        return [message for message in await ops.messages(place.alerts) if "Trial" in message.body]

    await watchers.add({**trial, "expr": 'up{job="ravebot"} == 1'})
    [message] = await stage.until(told, 30, "nobody is told of the alert")
    assert "A trial" in message.body
    assert "What to do: Wait." in message.body
    await asyncio.sleep(5)  # Alertmanager repeats it every two seconds
    assert [one.event_id for one in await told()] == [message.event_id]
    await watchers.add({**trial, "expr": 'up{job="ravebot"} == 0'})

    async def marked() -> bool:
        return "Resolved" in (await told())[0].body

    await stage.until(marked, 30, "the alert is not marked as resolved")
    assert [one.event_id for one in await told()] == [message.event_id]
    assert 'ravebot_alerts_received_total{result="' in await stage.metrics()


async def test_the_other_shell_commands_answer_beside_the_running_bot(place: Place) -> None:
    stage = place.stage
    used = json.loads((await stage.bot.command("usage", "--json")).stdout)
    [line] = used
    assert (line["project"], line["sandboxes"] >= 4) == ("group/app", True)
    counted = (
        "hours",
        "machine_hours",
        "cpu_hours",
        "memory_gib_hours",
        "disk_peak_bytes",
        "received_bytes",
        "sent_bytes",
    )
    assert [name for name in counted if line[name] <= 0] == []
    audit = await stage.bot.command("audit", "--verify")
    assert audit.returncode == 0
    assert "events are intact" in audit.stdout
    assert "fork.approved" in (await stage.bot.command("audit", "--limit", "1000")).stdout
    asked = ("--project", "group/app", "--kind", "fork.", "--kind", "access.", "--since", "1h")
    exported = await stage.bot.command("audit", "--export", "-", *asked)
    assert "events are intact" in exported.stderr
    lines = [json.loads(line) for line in exported.stdout.splitlines()]
    kinds = {line["event"]["kind"] for line in lines if line["type"] == "event"}
    assert {"fork.approved", "access.first"} <= kinds
    assert all(kind.startswith(("fork.", "access.")) for kind in kinds)
    assert [line for line in lines if line["type"] == "access" and line["service"] == "ssh" and line["connections"] > 0]
    checked = await stage.bot.command("check-config")
    assert (checked.returncode, "is right" in checked.stdout) == (0, True), checked.stderr
    doctor = await stage.bot.command("doctor", "--json")
    findings = json.loads(doctor.stdout)
    assert [f for f in findings if f["verdict"] == "failed"] == []
    assert "Traceback" not in doctor.stderr + stage.bot.log.read_text()
