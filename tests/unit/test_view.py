"""Spans and sizes as people read them; how to get in."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ravebot.sandboxes.view import Access, in_bytes, in_words
from ravebot.sshkeys import fingerprint

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEcHzbP8zKj9C1uCfO9eH7J2q0WIpEVv8Q0l8j2yYyqn"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (-5, "0 s"), (25, "25 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min"), (600, "10 min"),
        (659, "11 min"), (3600, "1 h"), (6000, "1 h 40 min"), (86400, "1 d"), (183600, "2 d 3 h"),
    ],
)  # fmt: skip
def test_a_span_in_words(seconds: float, text: str) -> None:
    assert in_words(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (10 * 1024, "10 KiB"), (300 * 1024**2, "300 MiB"),
        (1536 * 1024**2, "1.5 GiB"), (5000 * 1024**3, "5000.0 GiB"),
    ],
)  # fmt: skip
def test_a_size_in_words(count: int, text: str) -> None:
    assert in_bytes(count) == text


def access(host: str = "sandboxes.example.org", scheme: str | None = "https") -> Access:
    return Access(host, "agent", 2201, 3001, scheme, "rave-main-1", (KEY,))


def test_the_ssh_command_can_be_copied() -> None:
    assert access().ssh_command == "ssh -o HostKeyAlias=rave-main-1 -p 2201 agent@sandboxes.example.org"


def test_the_web_address_has_the_scheme_that_answered_and_is_none_when_nothing_did() -> None:
    assert access().web_url == "https://sandboxes.example.org:3001/"
    assert access(host="2001:db8::1", scheme="http").web_url == "http://[2001:db8::1]:3001/"
    assert access(scheme=None).web_url is None


def test_the_fingerprints_are_those_of_the_host_keys() -> None:
    assert access().fingerprints == (fingerprint(KEY),)
