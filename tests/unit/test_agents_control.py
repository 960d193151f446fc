"""How the SSH client is called, what its log means, and how an agent's output is cut and limited."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.transports.acp.control import (
    ControlConnections,
    Destination,
    KeyRefused,
    OtherHostKey,
    public_key,
    read_failure,
)
from ravebot.agents.transports.acp.lines import MOST_JUNK, AgentBreaksLimits, Allowance, Bucket, LineReader
from ravebot.agents.transports.acp.protocol import LONGEST_LINE
from ravebot.agents.transports.acp.stdio import LOADER, Program, script, words
from ravebot.errors import Unavailable

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
WHERE = Destination("rave-main-1", "10.80.0.2", "agent", (f"{KEY} a comment",))


def options(argv: list[str]) -> dict[str, str]:
    """What the client itself makes of its command line."""
    shown = subprocess.run([*argv[:1], "-G", *argv[1:]], capture_output=True, text=True, check=True)
    return {name: value for name, _, value in (line.partition(" ") for line in shown.stdout.splitlines())}


def test_the_client_gets_nothing_of_a_persons_and_forwards_nothing(tmp_path: Path) -> None:
    found = options(ControlConnections(tmp_path).argv(WHERE, "/tmp/log", LOADER))
    expected = {
        "user": "agent", "hostname": "10.80.0.2", "port": "22", "hostkeyalias": "rave-main-1",
        "stricthostkeychecking": "true", "userknownhostsfile": "control/rave-main-1", "globalknownhostsfile": "none",
        "identityfile": "control_key", "identitiesonly": "yes", "identityagent": "none", "batchmode": "yes",
        "forwardagent": "no", "forwardx11": "no", "clearallforwardings": "yes", "compression": "no",
        "preferredauthentications": "publickey", "passwordauthentication": "no", "updatehostkeys": "false",
        "controlmaster": "false", "permitlocalcommand": "no", "requesttty": "false", "tunnel": "false",
        "canonicalizehostname": "false", "serveraliveinterval": "10", "connecttimeout": "30",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert {"localforward", "remoteforward", "dynamicforward", "proxycommand", "sendenv"}.isdisjoint(found)


def test_the_known_hosts_of_a_machine_are_exactly_its_stored_keys(tmp_path: Path) -> None:
    connections = ControlConnections(tmp_path)
    connections.prepare(WHERE)
    file = tmp_path / "control/rave-main-1"
    assert file.read_text() == f"rave-main-1 {KEY}\n"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    connections.clear()
    assert not file.exists()


def test_the_control_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    first = public_key(tmp_path)
    assert first
    assert first.startswith("ssh-ed25519 ")
    assert public_key(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["control_key"]
    assert (tmp_path / "control_key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "control_key").write_text("no key")
    with pytest.raises(Unavailable, match="remove the file control_key"):
        public_key(tmp_path)


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        ("Host key verification failed.\r\n", OtherHostKey, "shows another SSH host key"),
        ("No ED25519 host key is known for x and you have requested strict checking.\n", OtherHostKey, "rebuild"),
        ("agent@10.80.0.2: Permission denied (publickey).\n", KeyRefused, "does not let ravebot's control key in"),
        ("ssh: connect to host 10.80.0.2 port 22: Connection refused\n", Unavailable, "Connection refused"),
        ("", Unavailable, "the connection ended"),
        ("\x1b[31mGarbage\xff\n" * 1000, Unavailable, "can't be reached"),
    ],
)
def test_why_a_client_failed_is_read_from_its_log(log: str, kind: type[Exception], words: str) -> None:
    found = read_failure(log, "rave-main-1")
    assert type(found) is kind
    assert words in str(found)


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"], ["bash"]])
@given(parts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")), max_size=4))
def test_the_words_of_a_command_reach_the_guest_as_they_are(shell: list[str], parts: list[str]) -> None:
    line = words(Program("f", ("run", *parts), {"A": "b c"}), "nonce", 7, may_start=True)
    assert "\n" not in line
    show = 'n=$(echo; echo .); n=${n%.}; IFS= read -r w; eval "set -- $w"; for p; do printf "%s\\0" "$p"; done'
    done = subprocess.run([*shell, "-c", show], input=f"{line}\n".encode(), capture_output=True, check=True)
    expected = ["start", "nonce", "f", "7", "/srv/merge-request", "1", "A=b c", "run", *parts]
    assert done.stdout.decode() == "".join(f"{part}\0" for part in expected)


def test_the_script_is_the_same_for_everything_and_needs_no_long_command() -> None:
    assert script() == script()
    assert len(LOADER) < 400
    assert not any(line.startswith("#") for line in script().splitlines())


@given(lines=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line)), cuts=st.lists(st.integers(1, 20)))
def test_lines_are_found_however_the_output_is_cut_and_offsets_count_its_bytes(
    lines: list[bytes], cuts: list[int]
) -> None:
    whole = b"".join(line + b"\n" for line in lines) + b"rest"
    reader, found, place = LineReader(100), [], 0
    for cut in [*cuts, len(whole)]:
        found += list(reader.feed(whole[place : place + cut]))
        place += cut
    assert [line for _, line in found] == lines
    assert reader.offset == 100 + len(whole) - len(b"rest")
    assert all(whole[: offset - 100].endswith(line + b"\n") for offset, line in found)


def test_a_line_without_end_is_noticed_before_it_fills_the_memory() -> None:
    reader = LineReader(0)
    for _ in range(LONGEST_LINE // 1024):
        assert list(reader.feed(b"x" * 1024)) == []
    with pytest.raises(AgentBreaksLimits, match="longer than 1024 KiB"):
        list(reader.feed(b"x"))


def test_a_line_that_is_too_long_is_noticed_also_with_its_end() -> None:
    assert len(list(LineReader(0).feed(b"x" * LONGEST_LINE + b"\n"))) == 1
    with pytest.raises(AgentBreaksLimits, match="longer than 1024 KiB"):
        list(LineReader(0).feed(b"x" * (LONGEST_LINE + 1) + b"\n"))


def test_a_turn_may_send_so_much_and_no_more() -> None:
    allowance = Allowance(bytes=10)
    allowance.read(10)
    with pytest.raises(AgentBreaksLimits, match="in one turn"):
        allowance.read(1)
    for _ in range(MOST_JUNK):
        allowance.is_junk()
    with pytest.raises(AgentBreaksLimits, match="opencode acp"):
        allowance.is_junk()


def test_what_comes_too_fast_has_to_wait() -> None:
    now = 0.0
    bucket = Bucket(10, 20, lambda: now)
    assert bucket.take(20) == 0
    assert bucket.take(5) == 0.5
    now = 10.0
    assert bucket.take(20) == 0
