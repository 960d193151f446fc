"""The room that init makes, its invites, and what an invite tells of a room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from ravebot.errors import Forbidden, Unavailable
from ravebot.matrix.invites import inviter
from ravebot.operations.doctor.services import get, post


@dataclass(frozen=True)
class PendingInvite:
    """Who invited ravebot, and whether the room says that it is encrypted."""

    sender: str
    encrypted: bool


def invite_to(told: object, user_id: str) -> PendingInvite | None:
    """From the stripped state of an invite: https://spec.matrix.org/latest/client-server-api/#stripped-state"""
    sender = inviter(told, user_id) if isinstance(told, dict) else None
    if not isinstance(told, dict) or sender is None:
        return None
    events = told["invite_state"]["events"]
    encrypted = any(isinstance(event, dict) and event.get("type") == "m.room.encryption" for event in events)
    return PendingInvite(sender, encrypted)


SANDBOXES = ("Sandboxes", "Sandboxes of GitLab's merge requests, run by ravebot")
OPERATIONS = ("Operations of ravebot", "Alerts, what ravebot needs help with, and what was used each week")


async def make_room(base: str, token: str, alias: str, admins: Sequence[str], called: tuple[str, str]) -> str:
    """Make an unencrypted private room with that alias, name and topic, admins invited; its id.

    Raises Forbidden and Unavailable.

    https://spec.matrix.org/latest/client-server-api/#post_matrixclientv3createroom
    """
    headers = {"Authorization": f"Bearer {token}"}
    body: dict[str, object] = {
        "preset": "private_chat",
        "room_alias_name": alias[1:].partition(":")[0],
        "name": called[0],
        "topic": called[1],
        "invite": list(admins),
    }
    answer = await post(f"{base}/_matrix/client/v3/createRoom", body, headers)
    room_id = answer.field("room_id")
    if answer.status != 200 or not isinstance(room_id, str):
        said = f"{answer.status} {answer.field('errcode') or ''} {answer.field('error') or ''}".strip()
        raise Forbidden(
            f"the homeserver does not let ravebot make {alias} ({said}): let an admin make it, without encryption, and "
            "invite ravebot"
        )
    state = f"{base}/_matrix/client/v3/rooms/{quote(room_id, safe='')}/state/m.room.encryption/"
    if (await get(state, headers)).status == 200:
        raise Forbidden(
            f"the homeserver encrypts every new room, {alias} too: ask its admin for a room without encryption, and "
            "name that one"
        )
    return room_id


async def invite_missing(base: str, token: str, room_id: str, people: Sequence[str]) -> list[str]:
    """Invite those who are neither in the room nor invited; who that was. Raises Unavailable."""
    headers = {"Authorization": f"Bearer {token}"}
    room = f"{base}/_matrix/client/v3/rooms/{quote(room_id, safe='')}"
    listed = (await get(f"{room}/members", headers)).field("chunk")
    events = [event for event in listed if isinstance(event, dict)] if isinstance(listed, list) else []
    there = {event.get("state_key") for event in events if _membership(event) in ("join", "invite")}
    invited = []
    for person in people:
        if person in there:
            continue
        answer = await post(f"{room}/invite", {"user_id": person}, headers)
        if answer.status != 200:
            raise Unavailable(f"{person} can't be invited ({answer.status} {answer.field('errcode')})")
        invited.append(person)
    return invited


def _membership(event: dict[str, object]) -> object:
    content = event.get("content")
    return content.get("membership") if isinstance(content, dict) else None
