"""A real journald, in namespaces of its own, gets what ravebot logs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

JOURNALD = Path("/usr/lib/systemd/systemd-journald")
FOUND = JOURNALD.exists() and shutil.which("journalctl") is not None
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not FOUND or os.geteuid() != 0, reason="needs root and systemd's journald"),
]
STREAM = """
import asyncio, logging, os, signal, socket, sys, time, structlog
from ravebot import logs

# Standard error as systemd connects it to the journal: journald's stream, whose first lines say whose it is.
stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
stream.connect("/run/systemd/journal/stdout")
stream.sendall(b"ravebot\\nravebot.service\\n6\\n0\\n0\\n0\\n0\\n")
os.dup2(stream.fileno(), 2)
found = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
logs.set_up("info", ["hush-hush-4711"], instance="main")
log = structlog.get_logger("ravebot.pool")
"""
TOLD = """
log.info("sandbox.ready", ref="group/app!42", machine="rave-main-0123456789", by="ravebot")
log.warning("not heard", error="a\\nPRIORITY=0\\nhush-hush-4711", ref="group/app!43")
log.info("large", **{f"fact_{number}": "y" * 8000 for number in range(60)})
logging.getLogger("aiohttp").error("failed")
"""
HUNG = """
async def work() -> float:
    longest = 0.0
    for number in range(3000):
        begin = time.monotonic()
        log.info("sandbox.ready", number=number, pad="x" * 500)
        await asyncio.sleep(0)
        longest = max(longest, time.monotonic() - begin)
    return longest

os.kill(int(sys.argv[1]), signal.SIGSTOP)
longest = asyncio.run(work())
os.kill(int(sys.argv[1]), signal.SIGCONT)
log.info("went on", longest=longest)
for _ in range(10):
    logging.getLogger().handlers[0].flush()
"""
SCRIPT = """
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
echo '[Journal]
Storage=volatile
ReadKMsg=no
Audit=
ForwardToSyslog=no
RateLimitBurst=0' > /run/systemd/journald.conf.d/test.conf
"$1" 2> /dev/null &
journald=$!
while ! [ -S /run/systemd/journal/socket ]; do kill -0 $journald; sleep 0.05; done
"$2" -c "$3" $journald
kill -USR1 $journald
journalctl -D /run/log/journal --sync 2> /dev/null || sleep 1
journalctl -D /run/log/journal --no-pager -q -t ravebot -o json --all
kill $journald
"""


def journal_of(program: str) -> list[dict[str, object]]:
    """What a journald of its own has of ravebot's when the program has ended."""
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", SCRIPT, "sh",
         str(JOURNALD), sys.executable, STREAM + program],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_journal_finds_entries_by_their_fields_and_keeps_what_is_too_large_as_text() -> None:
    entries = journal_of(TOLD)
    by_event = {entry["RAVEBOT_EVENT"]: entry for entry in entries if "RAVEBOT_EVENT" in entry}
    ready, heard = by_event["sandbox.ready"], by_event["not heard"]
    assert ready["MESSAGE"] == "sandbox.ready ref=group/app!42 machine=rave-main-0123456789 by=ravebot"
    assert (ready["RAVEBOT_REF"], ready["RAVEBOT_INSTANCE"], ready["PRIORITY"]) == ("group/app!42", "main", "6")
    assert ready["RAVEBOT_MACHINE"] == "rave-main-0123456789"
    assert (heard["PRIORITY"], heard["RAVEBOT_ERROR"]) == ("4", "a\nPRIORITY=0\n[hidden]")
    assert by_event["failed"]["PRIORITY"] == "3"
    assert any('"event": "large"' in str(entry["MESSAGE"]) for entry in entries), "as JSON, by the stream"


def test_a_journald_that_hangs_holds_up_no_work_and_gets_every_entry_with_its_fields_afterwards() -> None:
    *entries, last = journal_of(HUNG)
    assert [entry["RAVEBOT_NUMBER"] for entry in entries] == [str(number) for number in range(3000)]
    assert last["RAVEBOT_EVENT"] == "went on"
    assert float(str(last["RAVEBOT_LONGEST"])) < 1
