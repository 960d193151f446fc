"""Connections of ended guests are removed also while some of them end by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from ravebot.access.nftables.nft import NetworkTools
from ravebot.errors import Unavailable

FAILS = """#!/bin/sh
# As conntrack does when what it listed is gone before it removes it, so many times; then as it usually does.
cat > "$0.in"
echo >> "$0.calls"
[ "$(wc -l < "$0.calls")" -gt {times} ] && exit 0
echo "conntrack v1.4.7 (conntrack-tools): Operation failed: {why}" >&2
exit 1
"""
GONE = "such conntrack doesn't exist"


def failing(folder: Path, times: int, why: str = GONE) -> Path:
    script = folder / "run"
    script.write_text(FAILS.format(times=times, why=why))
    script.chmod(0o755)
    return script


async def test_a_connection_that_ends_meanwhile_keeps_no_other_from_being_removed(tmp_path: Path) -> None:
    script = failing(tmp_path, times=2)
    await NetworkTools((str(script),)).forget_connections(["10.80.0.3", "10.80.0.2"])
    assert Path(f"{script}.calls").read_text().count("\n") == 3
    assert Path(f"{script}.in").read_text().splitlines() == [
        "--delete --orig-src 10.80.0.2",
        "--delete --reply-src 10.80.0.2",
        "--delete --orig-src 10.80.0.3",
        "--delete --reply-src 10.80.0.3",
    ]


@pytest.mark.parametrize(("times", "why", "calls"), [(100, GONE, 10), (1, "Operation not permitted", 1)])
async def test_what_goes_on_failing_is_said(tmp_path: Path, times: int, why: str, calls: int) -> None:
    script = failing(tmp_path, times, why)
    with pytest.raises(Unavailable, match=why):
        await NetworkTools((str(script),)).forget_connections(["10.80.0.2"])
    assert Path(f"{script}.calls").read_text().count("\n") == calls
