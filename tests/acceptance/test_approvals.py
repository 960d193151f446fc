"""What needs a yes is asked in the room and answered by reaction, also when ravebot is killed in between."""

from __future__ import annotations

import pytest

from tests.support.crashes import rows
from tests.support.gitlab import DEVELOPER, MergeRequest
from tests.support.stage import Stage
from tests.support.synapse import MatrixUser, Message

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

YES, NO, STOP = "✅", "❌", "🛑"


async def react(who: MatrixUser, room: str, to: str, key: str) -> str:
    relation = {"rel_type": "m.annotation", "event_id": to, "key": key}
    return await who.send_content(room, {"m.relates_to": relation}, kind="m.reaction")


async def asked(stage: Stage, words: str) -> Message:
    """A question of ravebot's in the room."""
    bot = stage.matrix_bot.user_id
    return await stage.matrix_ops.wait_for(
        stage.room, lambda m: m.sender == bot and words in m.body.replace("\u2060", ""), 30
    )


def forked(stage: Stage) -> MergeRequest:
    mallory = stage.gitlab.add_user("mallory")
    fork = stage.gitlab.add_project("mallory/app", {"README.md": "# A fork\n"}, public=True)
    stage.gitlab.set_role(fork, mallory, DEVELOPER)
    return stage.gitlab.open_merge_request(
        fork, mallory, "Trust me", "patch", {"feature.txt": "forked\n"}, fork_of=stage.project
    )


def state(stage: Stage, number: int) -> str:
    (row,) = rows(stage, "SELECT state, done_at FROM approvals WHERE id = ?", number)
    return f"{row['state']}, done" if row["done_at"] else str(row["state"])


async def test_what_needs_a_yes_is_asked_in_the_room_and_done_once() -> None:
    async with Stage({"pool": {"lifetime": "1h", "max_lifetime": "1h", "shutdown_grace": "5s"}}) as stage:
        await stage.start()
        alice, gina, ops, room = stage.matrix_alice, stage.matrix_gina, stage.matrix_ops, stage.room

        mr = forked(stage)
        question = await asked(stage, "which comes from a fork")
        assert mr.sha in question.body
        assert "approve 1" in question.body
        await react(gina, room, question.event_id, YES)
        hint = await asked(stage, "Approval 1 waits for another answer")
        assert hint.thread_root == question.event_id
        assert state(stage, 1) == "open"
        await react(alice, room, question.event_id, YES)
        await stage.bot.kill()
        await stage.start()
        await stage.ready(mr)
        assert state(stage, 1) == "granted, done"
        await asked(stage, "Approved by")

        await alice.send(room, f"!rave extend !{mr.iid} 2h")
        question = await asked(stage, "past its longest lifetime?")
        await react(alice, room, question.event_id, YES)
        await asked(stage, "Approval 2 waits for another answer")
        await react(ops, room, question.event_id, YES)
        await stage.until(lambda: state(stage, 2) == "granted, done", 30, "not extended")
        (row,) = rows(stage, "SELECT expires_at - ready_at AS lives FROM sandboxes")
        assert abs(row["lives"] - 3 * 3600 * 10**6) < 2 * 10**6

        (card,) = await stage.cards(mr)
        await react(alice, room, card.event_id, STOP)
        question = await asked(stage, "Everything in it is deleted")
        assert question.thread_root == card.event_id
        await react(ops, room, question.event_id, YES)
        await asked(stage, "Approval 3 waits for another answer")
        assert state(stage, 3) == "open"
        await react(alice, room, question.event_id, YES)
        await stage.until(lambda: state(stage, 3) == "granted, done", 30, "not stopped")
        ended = "SELECT 1 FROM sandboxes WHERE state = 'ended'"
        await stage.until(lambda: rows(stage, ended), 30, "not ended")

        (queued,) = rows(stage, "SELECT COUNT(*) AS n FROM events WHERE kind = 'sandbox.queued'")
        assert queued["n"] == 1
        audit = await stage.bot.command("audit", "--verify")
        assert audit.returncode == 0, audit.stdout + audit.stderr
