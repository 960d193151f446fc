"""The API does what its own description says: an independent tester makes requests up from it, good and bad ones."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from ravebot.tools.limits import CallRate
from ravebot.tools.table import TOOLS
from tests.support.api_yard import an_api_yard

pytestmark = pytest.mark.integration
SECONDS = 6
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth"
)


async def test_schemathesis_finds_no_answer_that_the_description_does_not_have(tmp_path: Path) -> None:
    async with an_api_yard(tmp_path / "state", CallRate(1e6, 1e6)) as yard:
        await yard.ready()
        made = await yard.token()
        settings = tmp_path / "schemathesis.toml"
        run = await yard.post(f"/sandboxes/{yard.mr.full_ref}/runs", made, {"command": "make"})
        sent = await yard.post("/messages", made, {"agent": "coder", "ref": yard.mr.full_ref, "text": "look"})
        settings.write_text(
            'headers = { Authorization = "Bearer ${API_TOKEN}" }\n'
            f'[parameters]\n"path.ref" = "{yard.mr.full_ref}"\n"path.id" = {run.body["id"]}\n'
            f'"path.turn" = {sent.body["turn"]}\n"query.wait" = 0\n'
        )
        settings.chmod(0o600)
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(settings),
            "run", f"{yard.url}/api/v1/openapi.json", "--checks", CHECKS, "--phases", "coverage,fuzzing",
            "--exclude-path-regex", "/changes$",  # there is no guest that could be compared
            "--max-examples", "15", "--max-time", str(SECONDS), "--continue-on-failure", "--no-color",
            "--suppress-health-check", "all", "--generation-database", "none", "--request-timeout", "40",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
            env={**os.environ, "API_TOKEN": made.text},
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        text = output.decode()
        assert process.returncode == 0, text[-8000:]
        print(text[-1500:])
        called = {str(one["tool"]) for one in await yard.world.yard.log("api.call")}
    acts = {tool.name for tool in TOOLS if tool.acts}
    assert called & acts, "acts were carried out"


async def test_the_description_needs_no_token_and_has_every_tool(tmp_path: Path) -> None:
    async with an_api_yard(tmp_path / "state") as yard:
        heard = await yard.get("/openapi.json")
    assert heard.status == 200
    operations = [one["operationId"] for path in heard.body["paths"].values() for one in path.values()]
    assert operations == [tool.name for tool in TOOLS]
