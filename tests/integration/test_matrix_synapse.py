"""The throwaway Synapse itself: what the other tests and the demo lean on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.synapse import Synapse

pytestmark = pytest.mark.integration


async def test_it_keeps_its_data_over_an_outage_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "synapse"
    async with Synapse(folder) as synapse:
        first = synapse.pid
        alice = await synapse.user("alice")
        room = await alice.create_room()
        said = await alice.send(room, "still here")
        await synapse.stop()
        assert not Path(f"/proc/{first}").exists()
        await synapse.start()
        assert [message.event_id for message in await alice.messages(room)] == [said]
        second = synapse.pid
    assert not Path(f"/proc/{second}").exists()
    assert not folder.exists()


async def test_one_left_in_the_background_is_found_and_ended_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "synapse"
    starter = Synapse(folder)
    try:
        await starter.start()
        finder = Synapse(folder)
        assert (finder.url, finder.pid) == (starter.url, starter.pid)
        await finder.user("alice")
    finally:
        await Synapse(folder).remove()
    assert not folder.exists()
    stat = Path(f"/proc/{starter.pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


async def test_a_failed_start_says_why_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "synapse"
    with pytest.raises(RuntimeError, match="did not start"):
        async with Synapse(folder, server_name="not a name"):
            pass
    assert not folder.exists()
