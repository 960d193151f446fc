"""What a guest says of its files, however hostile it is."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.diff import listing
from ravebot.agents.diff.listing import FileKind, FoundFile, MalformedListing
from ravebot.agents.diff.model import MAX_FILE_BYTES


def block(content: bytes | None) -> bytes:
    return b"\n" + (b"-\n" if content is None else base64.encodebytes(content)) + b".\n"


def test_files_links_and_others_are_told_apart() -> None:
    text = b"81a4 12 ./a b\n81ed 0 ./bin/run\na1ff 4 ./link\n11a4 0 ./pipe\n= 0\n"
    found = listing.parse_listing(text)
    assert found.complete
    assert found.files == {
        "a b": FoundFile("a b", FileKind.REGULAR, 12, False),
        "bin/run": FoundFile("bin/run", FileKind.REGULAR, 0, True),
        "link": FoundFile("link", FileKind.LINK, 4, True),
        "pipe": FoundFile("pipe", FileKind.SPECIAL, 0, False),
    }


def test_a_name_that_is_not_utf8_keeps_its_bytes() -> None:
    (path,) = listing.parse_listing(b"81a4 1 ./\xff\n= 0\n").files
    assert listing.as_arguments([path]) == b"./\xff\0"


def test_a_folder_that_could_not_be_read_makes_the_list_incomplete() -> None:
    assert not listing.parse_listing(b"81a4 1 ./a\n= 1\n").complete


def test_names_with_line_breaks_are_told_apart_from_files() -> None:
    found = listing.parse_listing(b"81a4 1 ./a\n= 0\n./b?c\n./d?e\n")
    assert (list(found.files), found.odd) == (["a"], ("b?c", "d?e"))


@pytest.mark.parametrize("text", [b"", b"81a4 1 ./a\n", b"81a4 1 ./a", b"81a4 1 ./a\n81a4 1"])
def test_a_list_that_is_cut_off_is_not_used(text: bytes) -> None:
    with pytest.raises(MalformedListing):
        listing.parse_listing(text)


@pytest.mark.parametrize("line", [b"nonsense", b"81a4 -1 ./a", b"81a4 1 ./a\0b", b"81a4 " + b"9" * 40 + b" ./a", b""])
def test_a_line_of_another_form_is_not_used(line: bytes) -> None:
    with pytest.raises(MalformedListing):
        listing.parse_listing(line + b"\n= 0\n")


def test_more_files_than_are_compared_are_refused() -> None:
    lines = b"".join(b"81a4 1 ./%d\n" % number for number in range(listing.MAX_FILES + 1))
    with pytest.raises(MalformedListing, match="more than"):
        listing.parse_listing(lines + b"= 0\n")


def test_hashes_are_read_by_name_and_other_lines_passed_over() -> None:
    one, two = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()
    text = f"{one}  ./a b\nsha256sum: ./c: Permission denied\n\\{two}  ./d\\\\e\n{two}  ./a b\n".encode()
    assert listing.parse_hashes(text) == {"a b": one, "d\\e": two}


def test_contents_are_read_in_the_order_that_was_asked_for() -> None:
    text = block(b"hello\n") + block(b"") + block(None) + block(bytes(range(256)))
    assert listing.parse_contents(text, ["a", "b", "c", "d"]) == {"a": b"hello\n", "b": b"", "d": bytes(range(256))}
    assert listing.parse_contents(b"", []) == {}


def test_a_content_that_grew_past_the_limit_is_missing() -> None:
    assert listing.parse_contents(block(b"x" * (MAX_FILE_BYTES + 1)), ["a"]) == {}


@pytest.mark.parametrize("text", [b"", b"\nYQ==\n", block(b"a") + b"\nYQ", block(b"a") * 3, b"\n!!!\n.\n\nYQ==\n.\n"])
def test_contents_that_are_cut_off_or_no_base64_are_not_used(text: bytes) -> None:
    with pytest.raises(MalformedListing):
        listing.parse_contents(text, ["a", "b"])


@given(st.binary(max_size=300))
def test_whatever_a_guest_answers_is_a_list_or_malformed(text: bytes) -> None:
    for answer in (text, b"81a4 1 ./a\n" + text, text + b"\n= 0\n"):
        try:
            found = listing.parse_listing(answer)
        except MalformedListing:
            continue
        assert all("\n" not in path and "\0" not in path for path in found.files)
    try:
        assert all(len(digest) == 64 for digest in listing.parse_hashes(text).values())
    except MalformedListing:
        assert b"\0" in text


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_contents_come_back_as_they_were(contents: list[bytes]) -> None:
    paths = [str(number) for number in range(len(contents))]
    text = b"".join(map(block, contents))
    assert listing.parse_contents(text, paths) == dict(zip(paths, contents, strict=True))
