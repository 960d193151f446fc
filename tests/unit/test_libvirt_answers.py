"""What a guest agent says is read as far as it makes sense, and anything else is the guest's error and nobody's end."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.errors import GuestError
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, RunResult
from ravebot.providers.libvirt.answers import field, file_piece, returned, run_result

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_commands_end_is_its_code_and_the_end_of_its_output() -> None:
    assert run_result({"exitcode": 7, "out-data": encoded(b"text\xff")}) == RunResult(7, "text\ufffd")
    long = run_result({"exitcode": 0, "out-data": encoded(b"a" * OUTPUT_LIMIT_BYTES + b"end")})
    assert len(long.output) == OUTPUT_LIMIT_BYTES
    assert long.output.endswith("end")


def test_a_signal_is_told_as_a_shell_tells_it() -> None:
    assert run_result({"exited": True, "signal": 9}).exit_code == 137


@pytest.mark.parametrize(
    "status",
    [
        {"exitcode": 0, "out-data": "é"},
        {"exitcode": 0, "out-data": "\ud800"},
        {"exitcode": 0, "out-data": "!!"},
        {"exitcode": 0, "out-data": {}},
        {"exitcode": 10**400},
        {"exitcode": 256},
        {"exitcode": -1},
        {"exitcode": True},
        {"exitcode": None, "signal": 10**30},
        {"exitcode": None, "signal": -200},
        {},
        [],
        None,
    ],
)
def test_an_end_that_no_command_has_is_the_guests_error(status: object) -> None:
    with pytest.raises(GuestError, match="is malformed"):
        run_result(status)


@given(st.dictionaries(st.sampled_from(["exitcode", "signal", "out-data"]), ANYTHING))
def test_no_answer_does_harm(status: dict[str, object]) -> None:
    try:
        result = run_result(status)
    except GuestError:
        return
    assert 0 <= result.exit_code <= 255


@pytest.mark.parametrize("text", ["", "{", "[]", '{"error":{}}', "[" * 100_000, '{"return":' + "9" * 5000 + "}"])
def test_an_answer_of_another_form_is_the_guests_error(text: str) -> None:
    with pytest.raises(GuestError, match="guest-ping is malformed"):
        returned(text, "guest-ping")


@pytest.mark.parametrize("answer", [None, [], {}, {"pid": "1"}, {"pid": True}])
def test_a_field_of_another_kind_is_missing(answer: object) -> None:
    with pytest.raises(GuestError, match="lacks pid"):
        field(answer, "pid", int)


def test_a_piece_of_a_file_is_its_bytes_and_whether_it_ends_there() -> None:
    assert file_piece({"count": 3, "buf-b64": encoded(b"\0\xff\n"), "eof": True}, 10) == (b"\0\xff\n", True)
    assert file_piece({"count": 0, "buf-b64": "", "eof": False}, 10) == (b"", False)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"buf-b64": encoded(b"1234"), "eof": True},  # more than was asked for
        {"buf-b64": "no base64!", "eof": True},
        {"buf-b64": "\u00e9", "eof": True},
        {"buf-b64": 7, "eof": True},
        {"buf-b64": "", "eof": 1},
        {"buf-b64": ""},
    ],
)
def test_a_piece_of_a_file_that_can_not_be_is_the_guests_fault(answer: object) -> None:
    with pytest.raises(GuestError, match="malformed"):
        file_piece(answer, 3)
