"""Nheko 0.11.3 (Debian 12), logged in over HTTP and worked without typing into its window."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.pictures.desktop import Desktop
from tests.support.pictures.picture import Picture
from tests.support.pictures.programs import PictureError
from tests.support.synapse import MatrixUser

_CONF = """\
[General]
run_without_secure_secrets_service=true

[profile]
{name}\\auth\\access_token={token}
{name}\\auth\\device_id={device}
{name}\\auth\\home_server={url}
{name}\\auth\\user_id={user}

[user]
theme=light
desktop_notifications=false
alert_on_notification=false
font_size=10
fancy_effects=false
reduced_motion=true
read_receipts=false
sidebar\\room_list_width=210
sidebar\\community_list_width=48
window\\tray=false
timeline\\max_width=0
"""
# What a room begins with says nothing of ravebot. Nheko hides only what is listed, and these three hide by default.
_HIDDEN = ["m.reaction", "m.call.candidates", "m.call.negotiate"] + [
    f"m.room.{name}"
    for name in ("create", "member", "power_levels", "join_rules", "history_visibility", "guest_access", "name")
] + ["m.room.canonical_alias"]  # fmt: skip

WIDE = 1280
_SCREEN_HEIGHT, _HEIGHT = 900, 880  # the window has a title below the screen's end
_OK = (1128, 841)  # in the dialog "Setup Encryption", in a window of full size
_SIDEBARS = 253  # columns; a narrow window has none
_HEADER, _INPUT = 57, 42  # rows above and below the timeline
_THREAD = 42  # rows above the input that say that only a thread is shown
_LINE = range(0xD0, 0xE8)  # how bright the line is that ends the header of an open room
_TIMES, _CLOCK = 110, 63  # columns at the right: signs and clock; the clock alone
_SPINNER = bytes.fromhex("c0def5") * 5  # Nheko's sign that it loads older messages
_WINDOW_SECONDS, _SET_UP_SECONDS, _SETTLE_SECONDS = 60, 90, 20
_SAME_SECONDS = 1.0
_TRIES = 6


class Nheko:
    """`async with Nheko(folder, user, width) as client:`; `user` may have no other cross-signing keys."""

    def __init__(self, folder: Path, user: MatrixUser, width: int) -> None:
        self._user, self._width = user, width
        # Unlike that of any other on this machine: Nheko runs only once for a profile.
        self._name = f"{user.user_id.removeprefix('@').partition(':')[0]}{os.getpid()}"
        self._left = _SIDEBARS if width == WIDE else 0
        self._desktop = Desktop(folder, WIDE, _SCREEN_HEIGHT)
        self._stack = AsyncExitStack()
        self._client = AsyncExitStack()
        self._window = ""

    async def __aenter__(self) -> Nheko:
        try:
            await self._stack.enter_async_context(self._desktop)
            await self._log_in()
            await self._set_up_encryption()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        await self._stack.aclose()

    @property
    def _conf(self) -> Path:
        return self._desktop.folder / "config" / "nheko" / "nheko.conf"

    async def _log_in(self) -> None:
        user = self._user
        given = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user.user_id},
            "password": user.password,
            "initial_device_display_name": "Nheko",
        }
        login = await user.call("POST", "login", body=given)
        await user.call(
            "PUT", "user", user.user_id, "account_data", "im.nheko.hidden_events", body={"hidden_event_types": _HIDDEN}
        )
        self._conf.parent.mkdir(parents=True)
        self._conf.touch(0o600)
        self._conf.write_text(
            _CONF.format(
                name=self._name,
                token=login["access_token"],
                device=login["device_id"],
                url=user.url,
                user=user.user_id,
            )
        )

    async def _set_up_encryption(self) -> None:
        """Agree to the dialog of the first start, which covers the window, and start again without it."""
        await self._start(WIDE)
        deadline = time.monotonic() + _SET_UP_SECONDS
        while not await self._has_keys():
            if time.monotonic() > deadline:
                raise PictureError(f"Nheko did not set up encryption for {self._name}")
            await self._desktop.click(*_OK)
            await asyncio.sleep(3)
        await self._client.aclose()

    async def _has_keys(self) -> bool:
        answer = await self._user.call("POST", "keys", "query", body={"device_keys": {self._user.user_id: []}})
        return self._user.user_id in answer.get("master_keys", {})

    async def _start(self, width: int) -> None:
        process = await self._desktop.run("nheko", "-p", self._name, stack=self._client)
        found = ""
        deadline = time.monotonic() + _WINDOW_SECONDS
        while not found:
            if time.monotonic() > deadline or process.poll() is not None:
                raise PictureError(f"Nheko shows no window for {self._name}")
            await asyncio.sleep(0.3)
            found = await self._windows(process.pid)
        self._window = found.splitlines()[0]
        await self._desktop.xdotool("windowmove", self._window, "0", "0")
        await self._resize(width, _HEIGHT)
        await self._desktop.xdotool("windowactivate", "--sync", self._window)
        await self._desktop.point_at_nothing()

    async def _resize(self, width: int, height: int) -> None:
        await self._desktop.xdotool("windowsize", self._window, str(width), str(height))

    async def _windows(self, pid: int) -> str:
        try:
            return await self._desktop.xdotool("search", "--onlyvisible", "--pid", str(pid))
        except PictureError:  # it fails when there are none
            return ""

    async def open(self, room: str) -> None:
        """Start with that room in the window; again, if it was open: that also leaves a thread."""
        await self._client.aclose()
        await self._start(self._width)
        link = f"matrix:roomid/{room.removeprefix('!')}?action=join"
        for _ in range(_TRIES):
            window = await self.settled()
            if all(value in _LINE for value in window.cut(left=self._left).rows[_HEADER - 1]):
                return
            await self._desktop.run("nheko", "-p", self._name, link, stack=self._client)
            await asyncio.sleep(2)
        raise PictureError(f"Nheko does not open the room for {self._name}")

    async def settled(self) -> Picture:
        """The window, once its timeline stays as it is; the cursor below it blinks."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        before = await self.glance()
        while True:
            await asyncio.sleep(_SAME_SECONDS)
            after = await self._look()
            shown = self.timeline(after)
            if shown == self.timeline(before) and not any(_SPINNER in row for row in shown.rows):
                return after
            if time.monotonic() > deadline:
                return after
            before = after

    async def glance(self) -> Picture:
        """The window as it is now, also while something in it changes."""
        # So that it draws everything again: sometimes the rest of an older message stays.
        for height in (_HEIGHT - 2, _HEIGHT):
            await self._resize(self._width, height)
            await asyncio.sleep(0.3)
        return await self._look()

    async def _look(self) -> Picture:
        return (await self._desktop.look()).cut(right=self._width, bottom=_HEIGHT)

    def timeline(self, window: Picture) -> Picture:
        """The part with the messages."""
        return window.cut(left=self._left, top=_HEADER, bottom=-_INPUT)

    def added(self, before: Picture, after: Picture) -> Picture:
        """The new messages at the bottom. Signs beside older ones may have changed meanwhile."""
        old, new = self.timeline(before), self.timeline(after)
        return new.cut(top=new.cut(right=-_TIMES).first_row_since(old.cut(right=-_TIMES)))

    async def open_thread(self) -> Picture:
        """The messages of the newest visible thread alone: a click on the sign beside one of them hides the others."""
        before = await self.settled()
        timeline = self.timeline(before)
        left = timeline.width - _TIMES
        signs = timeline.cut(left=left, right=-_CLOCK).coloured()
        if not signs:
            raise PictureError("no message of a thread is in the window")
        x, y = signs[-1]
        await self._desktop.click(self._left + left + x - 4, _HEADER + y - 4)
        await asyncio.sleep(2)
        return self.timeline(await self.settled()).cut(bottom=-_THREAD).without_blank_rows()
