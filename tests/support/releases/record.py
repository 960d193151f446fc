"""Records the database of the present version: a few sandboxes live, by the code that writes the rows in a bot, too."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ravebot.errors import Unavailable
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.incoming import IncomingMessage
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.store import connections, outbox, room_problems
from ravebot.store.connections import Visit
from ravebot.store.outbox import Card
from ravebot.store.room_problems import RoomProblem
from ravebot.store.targets import MATRIX
from tests.support.records import NOON, ROOM, a_merge_request
from tests.support.releases import FOLDER
from tests.support.yard import a_yard


async def live(folder: Path) -> None:
    """Fill every table."""
    host = MemoryHost()
    async with a_yard(folder, MemoryProvider(host)) as yard:
        first, second, third = (a_merge_request(number) for number in (1, 2, 3))
        await yard.make_ready(first)
        sandbox = await yard.latest(first)
        encrypted = RoomProblem("#other:example.org", "it is encrypted", NOON)
        visit = Visit(sandbox.id, "ssh", "192.0.2.7", NOON, NOON, 3, 1, 4096)
        await yard.write(lambda tx: connections.add(tx, visit))
        await yard.write(lambda tx: outbox.set_room(tx, ROOM, "!dev:example.org"))
        await yard.write(lambda tx: outbox.set_card(tx, sandbox.id, ROOM, Card("!dev:example.org", "$card", "digest")))
        await yard.write(lambda tx: outbox.set_warning(tx, sandbox.id, ROOM, 900, "!dev:example.org", "$warning"))
        await yard.write(lambda tx: room_problems.save(tx, encrypted))
        yard.pass_by(hours=1, minutes=50)
        await yard.go()  # the end is near
        await yard.make_ready(second)
        await yard.told(replace(second, state="merged"))
        await yard.until(lambda: yard.is_in(second, "ended"))
        yard.provider.fails["create"] = Unavailable("libvirt is away")
        await yard.told(third)
        await yard.go()
        host.put("rave-test-stray")
        yard.pass_by(minutes=6)
        await yard.go()
        said = IncomingMessage("$said", "!dev:example.org", "@alice:example.org", "!rave list", None, False, 0)
        await MatrixJournal(yard.database, "!rave").save((said,), "s42")
        head = await yard.read(lambda tx: outbox.head(tx, MATRIX, ROOM))
        if head:
            await yard.write(lambda tx: outbox.attempt(tx, head.id))
            await yard.write(lambda tx: outbox.delivered(tx, head.id, "$sent"))


def script(database: Path) -> str:
    """All of a database, as SQL."""
    with closing(sqlite3.connect(database)) as connection:
        number = connection.execute("PRAGMA user_version").fetchone()[0]
        text = "\n".join([*connection.iterdump(), f"PRAGMA user_version = {number};", ""])
    return text.replace(str(database.parent), "/var/lib/ravebot")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(live(Path(made) / "state"))
        (FOLDER / f"{version('ravebot')}.sql").write_text(script(Path(made) / "state" / "ravebot.db"))
