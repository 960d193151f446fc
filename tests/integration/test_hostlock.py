"""The lock of an instance on this host: one process at a time, gone with it, and it says who holds it."""

from __future__ import annotations

import getpass
import os
import secrets
import subprocess
import sys

import pytest

from ravebot.errors import Refused
from ravebot.operations import hostlock

pytestmark = pytest.mark.integration

HOLD = """
import sys, time
from ravebot.operations import hostlock
with hostlock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def instance_id() -> str:
    return secrets.token_hex(5)


def test_it_is_held_once_let_go_at_the_end_and_each_instance_has_its_own(instance_id: str) -> None:
    for _ in range(2):
        assert hostlock.holder(instance_id) is None
        with hostlock.held(instance_id), hostlock.held(f"{instance_id}0"):
            assert hostlock.holder(instance_id) == f"process {os.getpid()} of {getpass.getuser()}"
            with pytest.raises(Refused, match=f"{instance_id} runs on this host: process {os.getpid()} of"):
                hostlock.held(instance_id).__enter__()


def test_it_ends_with_a_process_that_is_killed(instance_id: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, instance_id], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Refused, match=f"process {process.pid} of"):
            hostlock.held(instance_id).__enter__()
    finally:
        process.kill()
        process.communicate()
    with hostlock.held(instance_id):
        assert hostlock.holder(instance_id) is not None
