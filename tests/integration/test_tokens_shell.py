"""`ravebot token …` as processes, against a real admin socket: a new token is on standard output, once, and alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ravebot.tools import tokens
from ravebot.web import admin, admintokens
from ravebot.web.admin import socket_path
from tests.integration.test_cli import Installation
from tests.integration.test_web_admin import Bot
from tests.support.api_yard import ApiYard, an_api_yard

pytestmark = pytest.mark.integration
MAKE = ("token", "create", "--owner", "alice", "--name", "laptop", "--scope", "read", "--project", "group/app")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[tuple[Installation, ApiYard]]:
    installed = Installation(tmp_path)
    async with an_api_yard(tmp_path / "yard") as yard:
        app = admin.make_app(Bot())
        admintokens.add_routes(app, yard.tokens)
        async with admin.serve(app, socket_path(installed.state)):
            yield installed, yard


async def test_a_token_is_made_used_listed_and_revoked(here: tuple[Installation, ApiYard]) -> None:
    installed, yard = here
    code, output, errors = await installed.run(*MAKE)
    assert code == 0, errors
    assert tokens.hash_of(output.strip()), "nothing else is on standard output"
    assert output.strip() not in errors
    assert "It is shown only now." in errors
    assert (await yard.get("/whoami", output.strip())).body["owner"] == "alice"
    code, listed, _ = await installed.run("token", "list", "--json")
    [line] = json.loads(listed)
    assert (line["name"], line["scopes"], line["problem"]) == ("laptop", ["read"], "")
    assert output.strip() not in listed
    code, told, _ = await installed.run("token", "revoke", str(line["id"]))
    assert (code, "is revoked" in told) == (0, True)
    assert (await yard.get("/whoami", output.strip())).status == 401
    code, told, _ = await installed.run("token", "list")
    assert told.split("\t")[-1].strip() == "was revoked"


async def test_mistakes_and_refusals_say_what_to_do(here: tuple[Installation, ApiYard]) -> None:
    installed, yard = here
    for more, status, word in (
        (("--scope", "all"), 2, "there is no scope"),
        (("--expires", "2y"), 2, "duration"),
        (("--project", "elsewhere/x"), 1, "not among gitlab.projects"),
    ):
        code, output, errors = await installed.run(*MAKE, *more)
        assert (code, output, word in errors.replace("\n", " ")) == (status, "", True), errors
    code, _, errors = await installed.run("token", "revoke", "99")
    assert (code, "There is no token 99" in errors) == (1, True)
    assert await yard.tokens.tokens() == ()
