"""Host keys are read from a hostile guest: only well-formed public keys come out."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.errors import GuestError
from ravebot.providers.libvirt.answers import host_keys

BLOB = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(range(32))).decode()
KEY = f"ssh-ed25519 {BLOB}"


def test_the_comment_is_cut_off() -> None:
    assert host_keys(f"{KEY} root@guest with\twords\n") == (KEY,)


def test_the_same_key_twice_is_one() -> None:
    assert host_keys(f"{KEY} a\n\n{KEY} b\n") == (KEY,)


@pytest.mark.parametrize("junk", ["@", "<>", "`", "|", "\x01", "===="])
@pytest.mark.parametrize("place", [40, len(BLOB)])
def test_junk_in_a_key_neither_gets_through_nor_makes_it_another_key(junk: str, place: int) -> None:
    try:
        keys = host_keys(f"ssh-ed25519 {BLOB[:place]}{junk}{BLOB[place:]}")
    except GuestError:
        return
    assert keys == (KEY,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "ssh-ed25519",
        "ssh-ed25519 !!!!",
        f"ssh-rsa {BLOB}",
        f"ssh-dss {BLOB}",
        f"ssh-ed25519-cert-v01@openssh.com {BLOB}",
        f"ssh-ed25519 {BLOB[:-8]}",
        f'command="id" {KEY}',
        f"{KEY} \u202e",
        f"{KEY}\n<script>",
        f"{KEY} {'x' * 5000}",
        f"{KEY}\n" * 9,
        "\0" * 100,
    ],
)
def test_anything_else_is_the_guests_error(text: str) -> None:
    with pytest.raises(GuestError, match="host key"):
        host_keys(text)


@given(st.text(max_size=300))
def test_no_text_does_harm(text: str) -> None:
    try:
        keys = host_keys(text)
    except GuestError:
        return
    assert all(key.startswith("ssh-") or key.startswith("ecdsa-") for key in keys)
