"""Bad input from every side on everything real: each gets a clear message where the person is looking."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from markdown_it import MarkdownIt

from tests.support import leftovers
from tests.support.crashes import rows
from tests.support.gitlab import MergeRequest, Note
from tests.support.stage import Stage
from tests.support.synapse import Message

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

RIGHT_TO_LEFT = "\u202e"
HOSTILE = (
    "/close @all <script>alert(1)</script>\n/merge\n"
    f"@alice !rave stop {RIGHT_TO_LEFT}txt.exe `| **x** [a](javascript:1)"
)
HOSTILE_TITLE = HOSTILE + " long" * 2_000
HOSTILE_BRANCH = "@all/`$(reboot)`|<img/src=x>;\n/close"
FAILS = f"""#!/bin/sh
i=0; while [ $i -lt 3000 ]; do echo "line $i"; i=$((i+1)); done
printf '\\033[2J\\033[31m'
cat <<'END'
/close
@all <script>alert(2)</script> ``` ~~~
{RIGHT_TO_LEFT}
the very end
END
exit 3
"""
NOISE = "#!/bin/sh\nexec /bin/noise\n"
FILLS = """#!/bin/sh
n=0
while fallocate -l 32M fill$n; do n=$((n+1)); done
exec dd if=/dev/zero of=rest bs=1M
"""
GOOD = "#!/bin/sh\necho all is well\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with Stage({"sandbox": {"max_source": "1MiB", "timeouts": {"setup": "8s"}, "keep_failed": "10m"}}) as stage:
        await stage.start()
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mr(stage: Stage) -> MergeRequest:
    found = stage.open_merge_request(HOSTILE_TITLE, HOSTILE_BRANCH, description=HOSTILE)
    await stage.ready(found)
    return found


async def post(stage: Stage, body: bytes, *, token: str | None = "correct horse battery", key: str = "") -> int:
    headers = {"Content-Type": "application/json", "X-Gitlab-Event": "Merge Request Hook"}
    if token is not None:
        headers["X-Gitlab-Token"] = token
    if key:
        headers["Idempotency-Key"] = key
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{stage.http}/webhooks/gitlab", data=body, headers=headers) as answer,
    ):
        return answer.status


def stored(stage: Stage) -> int:
    (row,) = rows(stage, "SELECT COUNT(*) AS n FROM inbox")
    return int(row["n"])


async def test_a_malformed_webhook_is_refused_and_leaves_nothing(stage: Stage) -> None:
    before = stored(stage)
    event = {"object_kind": "merge_request", "event_type": "merge_request", "user": {"id": 1, "username": "x"}}
    refused = [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b'"text"', b"[" * 100_000, b'{"a":' * 50_000,
        json.dumps(event).encode(),
        json.dumps({**event, "project": 5, "object_attributes": []}).encode(),
        json.dumps({**event, "project": {"id": "1", "path_with_namespace": "group/app"},
                    "object_attributes": {"iid": "../../1", "state": 7}}).encode(),
        json.dumps({**event, "project": {"id": 10**30, "path_with_namespace": "group/app"},
                    "object_attributes": {"iid": -1}}).encode(),
    ]  # fmt: skip
    assert [await post(stage, body) for body in refused] == [400] * len(refused)
    assert await post(stage, b"x" * 26 * 1024**2) == 413
    assert stored(stage) == before
    assert await stage.is_ready()


async def test_nonsense_in_any_field_of_a_webhook_breaks_nothing(stage: Stage, mr: MergeRequest) -> None:
    event = json.loads(next(d.message.body for d in stage.gitlab.deliveries))
    event["project"]["path_with_namespace"] = "other/app"  # what is taken for whole must start nothing
    nonsense: tuple[object, ...] = (
        None,
        [],
        {},
        [[]],
        7.5,
        True,
        -1,
        2**70,
        "",
        "\ud800",
        "\0" * 9,
        "../../x",
        "a" * 100_000,
    )
    fields = [(event, key) for key in event]
    fields += [(event[part], key) for part in ("object_attributes", "project", "user") for key in event[part]]
    answers = set()
    for place, key in fields:
        whole = place[key]
        for instead in nonsense:
            place[key] = instead
            answers.add(await post(stage, json.dumps(event).encode(), key=f"{key} {instead!r:.80}"))
        place[key] = whole
    assert answers <= {200, 202, 400}, answers
    await stage.until(lambda: not rows(stage, "SELECT 1 FROM inbox WHERE handled_at IS NULL"), 30, "the inbox is stuck")
    assert await stage.is_ready()
    assert [row["iid"] for row in rows(stage, "SELECT iid FROM sandboxes")] == [mr.iid]


async def test_a_forged_or_missing_token_is_refused_and_stores_nothing(stage: Stage, mr: MergeRequest) -> None:
    body = next(d.message.body for d in stage.gitlab.deliveries)
    before = stored(stage)
    assert await post(stage, body, token="wrong", key="forged") == 401
    assert await post(stage, body, token="", key="forged") == 401
    assert await post(stage, body, token=None, key="forged") == 401
    assert stored(stage) == before


async def test_an_unknown_project_gets_nothing_and_a_replayed_delivery_changes_nothing(
    stage: Stage, mr: MergeRequest
) -> None:
    delivery = next(d for d in stage.gitlab.deliveries)
    strange = delivery.message.body.replace(b"group/app", b"other/app").replace(
        f'"id": {mr.project.id}'.encode(), b'"id": 99999'
    )
    assert await post(stage, strange, key="strange") in {200, 202}
    before = rows(stage, "SELECT id, kind FROM events")
    stage.gitlab.redeliver(delivery)
    await stage.gitlab.settle()
    await asyncio.sleep(1)
    assert stage.gitlab.deliveries[-1].status == 200
    assert [tuple(row) for row in rows(stage, "SELECT id, kind FROM events")] == [tuple(row) for row in before]
    assert not rows(stage, "SELECT 1 FROM sandboxes WHERE project_id = 99999")


def harmless(stage: Stage, mr: MergeRequest) -> None:
    """Nothing of ours commanded GitLab, called anybody but the owner, or became HTML."""
    assert stage.gitlab.quick_actions == []
    assert mr.state == "opened"
    assert {m.name for m in stage.gitlab.mentions if m.note.author is stage.ravebot} <= {"alice"}
    for note in ours(stage, mr):
        assert len(note.body) < 40_000
        html = MarkdownIt("commonmark", {"html": False}).enable("table").render(note.body.partition("-->")[2])
        tags = re.sub(r"&lt;/?(details|summary|br)&gt;", "", html)
        assert not re.search(r"&lt;(script|img)", re.sub(r"<code.*?</code>", "", tags, flags=re.DOTALL)), note.body
        assert RIGHT_TO_LEFT not in note.body
        assert "\x1b" not in note.body
        assert not re.search(r'href="javascript', html)


def ours(stage: Stage, mr: MergeRequest) -> list[Note]:
    return [note for note in stage.gitlab.notes(mr) if note.author is stage.ravebot]


async def harmless_in_room(stage: Stage) -> None:
    for event in await stage.matrix_ops.events(stage.room):
        if event["type"] != "m.room.message" or event["sender"] != stage.matrix_bot.user_id:
            continue
        content = event["content"].get("m.new_content", event["content"])
        assert set(content.get("m.mentions", {}).get("user_ids", [])) <= {stage.matrix_alice.user_id}
        assert "room" not in content.get("m.mentions", {})
        html = content.get("formatted_body", "")
        assert "<script" not in html
        assert "<img" not in html
        assert "javascript:" not in re.sub(r"<[^a][^>]*>|[^<>]+(?=<)", "", html)
        assert RIGHT_TO_LEFT not in html + content["body"]
        assert "\x1b" not in html + content["body"]
        assert len(json.dumps(event)) < 65_000


async def test_a_hostile_title_and_branch_are_shown_and_do_nothing(stage: Stage, mr: MergeRequest) -> None:
    note = await stage.ready(mr)
    assert "reboot" in note.body
    (card,) = await stage.cards(mr)
    assert "/close @all" in card.body.replace("\u2060", "")
    harmless(stage, mr)
    await harmless_in_room(stage)
    assert stage.ssh(note, "alice", "true").returncode == 0


async def update(stage: Stage, mr: MergeRequest, setup: str, says: str, seconds: float = 45) -> Note:
    """Push that setup and wait for the note to say so."""
    stage.gitlab.push(mr, {".rave/setup": setup})
    return await stage.note_says(mr, says, seconds)


async def reply_to(stage: Stage, asked: str) -> str:
    """What is answered to that message."""
    found = await stage.matrix_alice.wait_for(stage.room, lambda m: asked in json.dumps(m.content))
    return found.body


async def _card_says(stage: Stage, mr: MergeRequest, text: str) -> Message | None:
    (card,) = await stage.cards(mr)
    return card if text in card.body else None


def _logged(stage: Stage, text: str) -> bool:
    return text in stage.bot.log.read_text()


async def said_in_room(stage: Stage, *texts: str) -> str:
    """A message of its own that says all of that."""
    found = await stage.matrix_ops.wait_for(
        stage.room,
        lambda m: m.thread_root is None and "\nOwner " not in m.body and all(text in m.body for text in texts),
    )
    return found.body


async def in_thread(stage: Stage, text: str) -> str:
    found = await stage.matrix_ops.wait_for(stage.room, lambda m: m.thread_root is not None and text in m.body)
    return found.body


async def test_a_setup_that_fails_shows_the_end_of_its_output_bounded_and_escaped(
    stage: Stage, mr: MergeRequest
) -> None:
    note = await update(stage, mr, FAILS, "ended with code 3")
    assert "the very end" in note.body
    assert "line 10\n" not in note.body
    assert "HostKeyAlias=" in note.body  # the sandbox goes on as it was
    assert "ended with code 3" in await in_thread(stage, "set-up failed")
    (card,) = await stage.cards(mr)
    assert "the very end" in card.body
    asked = await stage.matrix_alice.send(stage.room, f"!rave logs !{mr.iid}")
    assert "the very end" in await reply_to(stage, asked)
    harmless(stage, mr)
    await harmless_in_room(stage)


async def test_a_setup_that_prints_binary_without_end_or_never_ends_is_ended(stage: Stage, mr: MergeRequest) -> None:
    note = await update(stage, mr, NOISE, "set-up failed: not done after 8 s")
    assert len(note.body) < 40_000
    assert "not done after 8 s" in await in_thread(stage, "not done after")
    harmless(stage, mr)
    await harmless_in_room(stage)
    assert stage.ssh(note, "alice", "ps | grep '[u]random'").stdout == ""
    note = await update(stage, mr, GOOD, "now runs")
    assert "is in the machine, but" not in note.body


async def test_a_source_that_is_too_large_is_told_and_the_sandbox_goes_on(stage: Stage, mr: MergeRequest) -> None:
    stage.gitlab.push(mr, {"large.bin": random.Random(1).randbytes(2 * 1024**2)})
    note = await stage.note_says(mr, "is larger than 1.0 MiB: make the repository smaller")
    assert "HostKeyAlias=" in note.body
    stage.gitlab.push(mr, {"large.bin": "small"})
    await stage.until(lambda: "was not taken" not in str(stage.note(mr)), 30, "the note still complains")


async def test_a_guest_that_fills_its_disk_is_told_of_and_a_rebuild_mends_it(stage: Stage, mr: MergeRequest) -> None:
    note = await update(stage, mr, FILLS, "No space left")
    before = re.search("HostKeyAlias=([^ ]+)", note.body)
    assert before
    stage.gitlab.push(mr, {".rave/setup": GOOD})
    stage.gitlab.comment(mr, stage.alice, "/sandbox rebuild")

    def rebuilt() -> Note | None:
        found = stage.note(mr)
        return found if found and "HostKeyAlias=" in found.body and before[1] not in found.body else None

    note = await stage.until(rebuilt, 90, "it was not rebuilt")
    assert stage.ssh(note, "alice", "test -x /srv/merge-request/.rave/setup").returncode == 0


async def test_a_setup_that_fails_at_the_first_time_keeps_the_machine_until_the_merge_request_is_closed(
    stage: Stage,
) -> None:
    mr = stage.open_merge_request("Fails at once", "fails", files={".rave/setup": FAILS})
    note = await stage.note_says(mr, "Sandbox is kept until ", 90)
    assert "ended with code 3" in note.body
    assert "the very end" in note.body
    harmless(stage, mr)
    note = await stage.ready(mr)
    assert stage.ssh(note, "alice", "test -x /srv/merge-request/.rave/setup").returncode == 0
    assert "**Web**" not in note.body
    stage.gitlab.close(mr)
    note = await stage.note_says(mr, "Set-up failed: ", 90)
    assert "ssh -o" not in note.body


async def told(stage: Stage, mr: MergeRequest, answer: str) -> None:
    """Wait for a comment of ours that says so."""
    await stage.until(lambda: any(answer in plain(note.body) for note in ours(stage, mr)), 15, f"nobody said {answer}")


def plain(body: str) -> str:
    """Without the joiners and backslashes that part signs from what they would command."""
    return re.sub(r"[\u2060\\]", "", body)


async def test_wrong_commands_get_a_helpful_answer(stage: Stage, mr: MergeRequest) -> None:
    answers = {
        "!rave explode": "There is no such command",
        "!rave strt !1": "Did you mean `!rave start",
        f"!rave extend !{mr.iid} soon": "write a duration like",
        f"!rave extend !{mr.iid} -1h": "write a duration like",
        f"!rave extend !{mr.iid} 0s": "longer than nothing",
        "!rave stop !999": "There is no group/app!999, or I may not see it",
        "!rave stop ../../etc": "That is no merge request",
        "!rave stop": "Say which merge request",
        "!rave " + "x" * 2_000: "too long",
        "!rave stop group/app!1 @room <b>x</b>": "does not belong there",
    }
    for said, answer in answers.items():
        asked = await stage.matrix_alice.send(stage.room, said)
        reply = await reply_to(stage, asked)
        assert answer in reply, (said, reply)
    wrong = [stage.gitlab.comment(mr, stage.alice, text) for text in ("/sandbox exted 1h", "/sandbox extend tomorrow")]
    for note, answer in zip(wrong, ("Did you mean `/sandbox extend", "write a duration like"), strict=True):
        assert note
        await told(stage, mr, answer)
        assert [award.name for award in note.awards] == ["no_entry_sign"]
    assert (await stage.readiness())["ready"]
    harmless(stage, mr)
    await harmless_in_room(stage)


async def test_no_secret_is_in_logs_notes_cards_arguments_or_the_database(stage: Stage, mr: MergeRequest) -> None:
    login = stage.state_dir / "matrix.json"
    secrets = [
        (stage.folder / "gitlab-token").read_text(),
        stage.matrix_bot.password,
        "correct horse battery",
        json.loads(login.read_text())["access_token"],
    ]
    assert login.stat().st_mode & 0o077 == 0
    process = stage.bot.process
    assert process
    audit = await stage.bot.command("audit", "--json")
    seen = {
        "log": stage.bot.log.read_bytes(),
        "arguments": Path(f"/proc/{process.pid}/cmdline").read_bytes(),
        "notes": json.dumps([note.body for note in stage.gitlab.notes(mr)]).encode(),
        "room": json.dumps(await stage.matrix_ops.events(stage.room)).encode(),
        "metrics": (await stage.metrics()).encode(),
        "audit": audit.stdout.encode(),
    }
    for path in stage.state_dir.rglob("*"):
        if path.is_file() and path != login:
            seen[str(path)] = path.read_bytes()
    assert any("ravebot.db" in name for name in seen)
    assert not [(name, secret[:4]) for name, text in seen.items() for secret in secrets if secret.encode() in text]
    assert b"Traceback" not in seen["log"]


async def test_an_image_that_is_missing_or_none_holds_builds_until_a_good_one_is_in_its_place() -> None:
    async with Stage() as stage:
        good = stage.image
        image = stage.folder / "image.qcow2"
        config = stage.bot.config
        config.write_text(config.read_text().replace(str(good), str(image)))
        await stage.start()
        mr = stage.open_merge_request()
        for number, (content, problem) in enumerate(((None, "can't be read"), (b"not an image" * 100, "not a qcow2"))):
            if content is not None:
                image.write_bytes(content)
            await stage.until(partial(_logged, stage, problem), 60, f"no log line: {problem}")
            note = await stage.note_says(mr, "no machines are built", 30)
            assert f"!{mr.iid}" in await said_in_room(stage, "no more machines are built from this image", "operators")
            card = await stage.until(
                partial(_card_says, stage, mr, "Waits since"), 30, "the card does not say that it waits"
            )
            assert str(image) not in note.body + card.body, "where it lies is for operators"
            assert len(rows(stage, "SELECT 1 FROM events WHERE kind = 'build.held'")) == number + 1
            await stage.until(lambda: not leftovers.disks(stage), 10, "a disk is left")
            assert leftovers.machines(stage) == []
        shutil.copyfile(good, image)
        image.chmod(0o644)
        await stage.ready(mr)
        assert len(rows(stage, "SELECT 1 FROM events WHERE kind = 'build.resumed'")) == 1


async def test_a_guest_that_never_answers_is_told_of_tried_later_and_held_after_three() -> None:
    async with Stage(
        {"pool": {"max_running": 2, "build_timeout": "3s", "shutdown_grace": "1s"}}, cmdline="rave.noagent"
    ) as stage:
        await stage.start()
        first, second = (stage.open_merge_request(f"Deaf {n}", f"deaf-{n}") for n in (1, 2))
        for mr in (first, second):
            note = await stage.note_says(mr, "did not answer within", 60)
            assert str(stage.state_dir) not in note.body
            assert "tried again on a new machine (attempt 2)" in note.body.replace("\u2060", "")
        await stage.matrix_ops.wait_for(stage.room, lambda m: "no more machines are built" in m.body, 60)
        assert f"its whole console is in {stage.state_dir / 'console'}/" in stage.bot.log.read_text()
        for mr in (first, second):  # also the one that would be tried again only much later
            note = await stage.note_says(mr, "no machines are built", 8)
            assert "0 s to go" not in note.body
        failures = rows(stage, "SELECT at FROM events WHERE kind = 'sandbox.requeued' ORDER BY id")
        assert len(failures) == 3
        starts = rows(stage, "SELECT at FROM events WHERE kind = 'sandbox.starting' ORDER BY id")
        assert starts[2]["at"] - failures[0]["at"] >= 10 * 1_000_000 * 0.99
        await stage.until(lambda: not leftovers.machines(stage), 30, "a machine is left")
        await asyncio.sleep(3)
        assert len(rows(stage, "SELECT 1 FROM machines")) == 3
        assert leftovers.disks(stage) == []
        checks = (await stage.readiness())["checks"]
        assert [name for name, check in checks.items() if not check["ok"]] == ["image"]
        assert "`retry`" in checks["image"]["detail"]


async def test_the_same_host_key_twice_fails_the_second_build_and_a_deaf_guest_is_switched_off() -> None:
    changes = {"pool": {"max_running": 2, "shutdown_grace": "1s"}}
    async with Stage(changes, cmdline="rave.fixedhostkey rave.noshutdown") as stage:
        await stage.start()
        first = stage.open_merge_request("First", "first")
        await stage.ready(first)
        second = stage.open_merge_request("Second", "second")
        note = await stage.note_says(second, "the host key of another one", 60)
        assert "HostKeyAlias=" not in note.body
        await in_thread(stage, "the host key of another one")
        stage.gitlab.close(second)
        await stage.note_says(second, "Sandbox ended", 30)
        stage.gitlab.comment(first, stage.alice, "/sandbox stop")
        ended = await stage.note_says(first, "Sandbox ended", 30)
        assert "switched off after the grace" in ended.body
        assert "did not shut down within 1.0 s: switched off" in ended.body
        await in_thread(stage, "ended: somebody stopped it; switched off after the grace")
        await stage.until(lambda: not leftovers.machines(stage), 20, "a machine is left")
        assert leftovers.disks(stage) == []
