"""The room of the pictures: Alice, Bob, Ops and ravebot, with names as people give themselves."""

from __future__ import annotations

from tests.support.stage import Stage
from tests.support.synapse import MatrixUser

# Nheko warns of a room version that it does not know, as Synapse's newest.
_ROOM_VERSION = "10"
USERS = {"@alice:localhost": "alice", "@bob:localhost": "bob"}
"""Who is who in GitLab, for ravebot's configuration."""


async def gather(stage: Stage) -> MatrixUser:
    """Put a room of these people in the place of the stage's, before ravebot starts; Bob's account."""
    bob = await stage.synapse.user("bob")
    people = {"Alice": stage.matrix_alice, "Bob": bob, "Ops": stage.matrix_ops}
    for name, user in people.items():
        await user.call("PUT", "profile", user.user_id, "displayname", body={"displayname": name})
    await stage.matrix_ops.call("DELETE", "directory", "room", "#dev:localhost")
    for user in (stage.matrix_bot, stage.matrix_alice, stage.matrix_gina, stage.matrix_ops):
        await user.leave(stage.room)
    invited = [user.user_id for user in (stage.matrix_bot, stage.matrix_alice, bob)]
    room = {
        "preset": "private_chat",
        "room_version": _ROOM_VERSION,
        "room_alias_name": "dev",
        "name": "dev",
        "invite": invited,
    }
    stage.room = str((await stage.matrix_ops.call("POST", "createRoom", body=room))["room_id"])
    for user in (stage.matrix_alice, bob):
        await user.join(stage.room)
    # Nheko shows nothing at all of a room in which everything is hidden so far.
    await stage.matrix_ops.send(stage.room, "This is the room for group/app. ravebot tells here of its sandboxes.")
    return bob
