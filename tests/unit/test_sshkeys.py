"""SSH public keys: one form for each, and nothing else gets through."""

from __future__ import annotations

import base64

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.sshkeys import fingerprint, parse

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEcHzbP8zKj9C1uCfO9eH7J2q0WIpEVv8Q0l8j2yYyqn"


def made(kind: str) -> str:
    return asyncssh.generate_private_key(kind).export_public_key("openssh").decode().strip()


def line(kind: str, *fields: bytes) -> str:
    blob = b"".join(len(field).to_bytes(4) + field for field in (kind.encode(), *fields))
    return f"{kind} {base64.b64encode(blob).decode()}"


MODULUS = b"\0" + bytes([0x80]) * 128
ED25519, POINT, SK = bytes(range(32)), b"\x04" + bytes(64), "sk-ssh-ed25519@openssh.com"


@pytest.mark.parametrize(
    "kind", ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"]
)
def test_a_key_of_each_type_is_read_as_it_is_without_its_comment(kind: str) -> None:
    key = made(kind)
    assert parse(f"  {key} alice@laptop of hers\n") == key


@pytest.mark.parametrize(
    "key", [line(SK, ED25519, b"ssh:"), line("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", POINT, b"ssh:")]
)
def test_a_key_on_a_token_is_read_too(key: str) -> None:
    assert parse(f"{key} token") == key


@pytest.mark.parametrize(
    "text",
    [
        "", "ssh-ed25519", "ssh-ed25519 AAA", f"no-pty {KEY}", KEY.replace("ssh-ed25519", "ssh-rsa"), KEY[:-8],
        line("ssh-ed25519", ED25519, b"more"), line("ssh-ed25519", ED25519[1:]), line("ssh-ed25519"),
        line("ssh-dss", b"\x01", b"\x01", b"\x01", b"\x01"), line("ssh-ed25519-cert-v01@openssh.com", ED25519),
        line("ecdsa-sha2-nistp256", b"nistp384", POINT), line("ecdsa-sha2-nistp256", b"nistp256", POINT[:33]),
        line("ecdsa-sha2-nistp256", b"nistp256", b"\x02" + POINT[1:]), line(SK, ED25519, b""),
        line("restrict"), line("foo"), line("ssh-rsa", b"\x01", MODULUS), line("ssh-rsa", b"\x02", MODULUS),
        line("ssh-rsa", b"\x01\0\x01", MODULUS[:50]),
    ],
)  # fmt: skip
def test_anything_else_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="SSH public key"):
        parse(text)


@pytest.mark.parametrize("number", [b"", b"\0", b"\0" + MODULUS, b"\0" + b"\x7f" * 128, MODULUS[1:]])
def test_a_number_has_one_form(number: bytes) -> None:
    assert parse(line("ssh-rsa", b"\x01\0\x01", MODULUS)) == line("ssh-rsa", b"\x01\0\x01", MODULUS)
    with pytest.raises(ValueError, match="not an SSH public key"):
        parse(line("ssh-rsa", b"\x01\0\x01", number))


@given(st.sampled_from(["ssh-ed25519", "ssh-rsa", SK]), st.binary(max_size=200))
def test_no_bytes_do_harm(kind: str, blob: bytes) -> None:
    try:
        found = parse(f"{kind} {base64.b64encode(blob).decode()}")
    except ValueError:
        return
    assert parse(found) == found


def test_a_fingerprint_is_the_one_that_ssh_keygen_prints() -> None:
    assert fingerprint(KEY) == "SHA256:4oPFwA2eHinHx6rpvqtDar39YRsabt3ne7jnZncWpUQ"


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 not*base64", "ssh-ed25519 AAA"])
def test_what_is_no_key_has_no_fingerprint(text: str) -> None:
    with pytest.raises(ValueError, match="not an OpenSSH public key line"):
        fingerprint(text)


@given(comment=st.text(alphabet="abc @.", max_size=20))
def test_a_comment_changes_no_fingerprint(comment: str) -> None:
    assert fingerprint(f"{KEY} {comment}") == fingerprint(KEY)
