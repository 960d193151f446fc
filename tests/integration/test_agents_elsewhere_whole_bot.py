"""The whole bot as a process, on libvirt's in-memory driver, with the agents of docs/agents.md that work elsewhere.

Alice speaks to them in a room on Synapse and on GitLab's stand-in; one takes webhooks, the other has an inbox.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.gitlab import DEVELOPER, MAINTAINER, GitLabServer
from tests.support.pages import DOCS
from tests.support.receivers import SIGNING_KEY
from tests.support.stage import Bot
from tests.support.synapse import Message, Synapse
from tests.support.synapse.user import reactions

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def secret(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


@asynccontextmanager
async def running(example: str, **environment: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(DOCS / example), env={**os.environ, **environment}, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def shell(bot: Bot, *words: str) -> str:
    """What `ravebot …` prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ravebot", *words, "-c", str(bot.config),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, (output, errors)
    return output.decode()


async def until(look: Callable[[], Any], bot: Bot, seconds: float = 40) -> Any:
    """Wait until it gives something."""
    async with asyncio.timeout(seconds):
        while True:
            found = look()
            found = await found if asyncio.iscoroutine(found) else found
            if found:
                return found
            assert bot.process
            assert bot.process.poll() is None, bot.log.read_text()[-4000:]
            await asyncio.sleep(0.1)


async def test_a_webhook_and_an_inbox_answer_in_the_room_also_after_a_crash(synapse: Synapse, tmp_path: Path) -> None:
    assert len([line for line in (DOCS / "receiver.py").read_text().splitlines() if line]) <= 30
    hook, api, state = free_port(), free_port(), tmp_path / "state"
    state.mkdir()
    async with GitLabServer() as server:
        alice, ravebot = server.add_user("alice"), server.add_user("ravebot")
        project = server.add_project("group/app")
        server.set_role(project, alice, DEVELOPER)
        server.set_role(project, ravebot, MAINTAINER)
        account, her = await synapse.user("ravebot"), await synapse.user("alice")
        room = await her.create_room("elsewhere", invite=[account.user_id], name="elsewhere")
        known = {"owner": "alice", "projects": ["group/*"]}
        key = secret(tmp_path / "key", SIGNING_KEY)
        reviewer = {"webhook": {"url": f"http://127.0.0.1:{hook}/", "signing_key_file": key}}
        config = {
            "instance": "elsewhere",
            "state_dir": str(state),
            "matrix": {
                "homeserver": synapse.url,
                "user_id": account.user_id,
                "password_file": secret(tmp_path / "password", account.password),
                "admins": [her.user_id],
                "users": {her.user_id: "alice"},
                "rooms": [{"room": room, "projects": ["group/*"]}],
            },
            "gitlab": {
                "url": server.url,
                "token_file": secret(tmp_path / "token", server.token_for(ravebot)),
                "projects": ["group/*"],
                "drafts": "wait",
                "poll": "2s",
                "webhook": {"secret_token_file": secret(tmp_path / "secret", "correct horse battery")},
            },
            "http": {"listen": f"127.0.0.1:{(http := free_port())}"},
            "api": {"listen": f"127.0.0.1:{api}"},
            "sandbox": {"host": "sandboxes.example.org"},
            "provider": {
                "uri": "test:///default", "network": "none", "image": str(tmp_path / "image"),
                "storage_pool": str(tmp_path / "disks"),
            },
            "agents": [{"name": "reviewer", **known, **reviewer}, {"name": "helper", **known, "inbox": True}],
        }  # fmt: skip
        server.add_hook(project, f"http://127.0.0.1:{http}/webhooks/gitlab", secret_token="correct horse battery")
        bot = Bot(tmp_path / "config.yaml", tmp_path / "log")
        bot.config.write_text(yaml.safe_dump(config))
        bot.start()

        async def says(text: str) -> Message | None:
            said = (one for one in await her.messages(room) if one.sender == account.user_id and text in one.body)
            return next(said, None)

        async def done(event: str) -> bool:
            return (account.user_id, "✅") in reactions(await her.events(room), event)

        try:
            mr = server.open_merge_request(project, alice, "Draft: Add a feature", "feature", {"feature.txt": "new\n"})
            await until(lambda: "matrix_room_ready" in bot.log.read_text(), bot)
            asked = await her.send(room, f"@reviewer !{mr.iid} does it build?")
            await until(lambda: says("can't be reached: connection refused"), bot)
            await bot.kill()
            bot.start()
            await until(lambda: bot.log.read_text().count("ravebot runs") == 2, bot)
            for name in ("reviewer", "helper"):
                how = ("--owner", "alice", "--agent", name, "--scope", "agent", "--project", "group/app")
                secret(tmp_path / f"{name}-token", await shell(bot, "token", "create", "--name", name, *how))
            hooks = {"PORT": str(hook), "SIGNING_KEY_FILE": key, "TOKEN_FILE": str(tmp_path / "reviewer-token")}
            inbox = {"API": f"http://127.0.0.1:{api}/api/v1", "TOKEN_FILE": str(tmp_path / "helper-token")}
            async with running("receiver.py", **hooks), running("inbox.py", **inbox):
                answer = await until(lambda: says("You wrote: does it build?"), bot)
                assert (answer.thread_root, answer.kind) == (asked, "m.text")
                await until(lambda: done(asked), bot)
                other = await her.send(room, f"@helper !{mr.iid} and you?")
                answer = await until(lambda: says("You wrote: and you?"), bot)
                assert answer.thread_root == other
                await until(lambda: done(other), bot)
                comment = server.comment(mr, alice, "/agent helper good morning")
                assert comment
                await until(lambda: len(mr.discussion(comment.discussion_id)) == 2, bot)
                assert "You wrote: good morning" in mr.discussion(comment.discussion_id)[1].body
                async with (
                    aiohttp.ClientSession() as session,
                    session.post(f"http://127.0.0.1:{hook}/", data="{}") as forged,
                ):
                    assert forged.status == 401
                assert "✗" not in await shell(bot, "agent", "check", "reviewer", f"group/app!{mr.iid}")
                with closing(sqlite3.connect(state / "ravebot.db")) as connection:
                    assert connection.execute("SELECT * FROM sandboxes").fetchall() == []
        finally:
            await bot.stop()
        log = bot.log.read_text()
        assert SIGNING_KEY not in log
        assert "rave_" not in log
