"""The state folder goes away under the open database: it is noticed, nothing more is acknowledged, and what comes back
goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ravebot.errors import StoreError
from ravebot.store.database import Database, get_meta, set_meta
from tests.support.clock import ManualClock

pytestmark = pytest.mark.integration


def delete_folder(database: Path) -> None:
    shutil.rmtree(database.parent)


def delete_database(database: Path) -> None:
    database.unlink()


def delete_log(database: Path) -> None:
    database.with_name(f"{database.name}-wal").unlink()


def move_folder(database: Path) -> None:
    database.parent.rename(database.parent.with_name("elsewhere"))


def put_folder_back(database: Path) -> None:
    database.parent.with_name("elsewhere").rename(database.parent)


def replace_folder(database: Path) -> None:
    """As who restores a backup over a bot that runs."""
    shutil.copytree(database.parent, database.parent.with_name("backup"))
    shutil.rmtree(database.parent)
    database.parent.with_name("backup").rename(database.parent)


def put_a_file_there(database: Path) -> None:
    shutil.rmtree(database.parent)
    database.parent.write_text("no folder")


HOW = [delete_folder, delete_database, delete_log, move_folder, replace_folder, put_a_file_there]


@pytest.mark.parametrize("lose", HOW)
async def test_nothing_is_acknowledged_that_a_restart_would_not_find(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    path = tmp_path / "state" / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, "before", "x"))
        lose(path)
        with pytest.raises(StoreError, match="can't be written"):
            await database.write(lambda tx: set_meta(tx, "after", "x"))
        assert await database.read(lambda tx: (get_meta(tx, "before"), get_meta(tx, "after"))) == ("x", None)
        assert str(path) in await database.problem()


async def test_a_folder_that_was_only_moved_away_and_back_goes_on_as_before(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, "before", "x"))
        move_folder(path)
        with pytest.raises(StoreError, match="can't be written"):
            await database.write(lambda tx: set_meta(tx, "meanwhile", "x"))
        put_folder_back(path)
        await database.write(lambda tx: set_meta(tx, "after", "x"))
    async with Database(path, ManualClock()) as database:
        kept = await database.read(lambda tx: [get_meta(tx, key) for key in ("before", "meanwhile", "after")])
    assert kept == ["x", None, "x"]


async def test_a_deleted_log_costs_nothing_when_the_bot_is_stopped_cleanly_as_it_advises(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, "before", "x"))
        delete_log(path)
        assert "a clean stop keeps everything" in await database.problem()
    async with Database(path, ManualClock()) as database:
        assert await database.read(lambda tx: get_meta(tx, "before")) == "x"
        assert await database.problem() == ""


async def test_a_restored_backup_is_not_touched_by_the_bot_that_had_another_one_open(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, "before", "x"))
        replace_folder(path)
        assert "was replaced by another file" in await database.problem()
        restored = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == restored


@pytest.mark.parametrize(
    ("name", "advice"), [("instance-id", "write {id} there again"), ("ravebot.lock", "restart ravebot")]
)
async def test_what_only_the_next_start_would_miss_is_told_and_work_goes_on(
    tmp_path: Path, name: str, advice: str
) -> None:
    path = tmp_path / "state" / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        path.with_name(name).rename(tmp_path / name)
        assert advice.format(id=database.instance_id) in await database.problem()
        await database.write(lambda tx: set_meta(tx, "key", "x"))
        (tmp_path / name).rename(path.with_name(name))
        assert await database.problem() == ""
