"""What a guest's files and the commit's become: changes, or a reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.diff.baseline import BaseFile, Baseline
from ravebot.agents.diff.compare import Compared, choose, finish, sort
from ravebot.agents.diff.listing import FileKind, FoundFile, GuestListing
from ravebot.agents.diff.model import (
    MAX_CHANGES,
    MAX_FILE_BYTES,
    MAX_TOTAL_BYTES,
    Change,
    ChangeKind,
    Diff,
    canonical,
    hash_of,
    parse_canonical,
)

Files = Mapping[str, bytes]
CREATED, UPDATED, DELETED = ChangeKind


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def baseline(files: Files, executable: frozenset[str] = frozenset(), links: tuple[str, ...] = ()) -> Baseline:
    held = {path: BaseFile(len(content), path in executable, digest(content)) for path, content in files.items()}
    rules = {path: content for path, content in files.items() if path.endswith((".gitignore", ".gitattributes"))}
    return Baseline({**held, **{path: BaseFile(0, True, "", link=True) for path in links}}, rules)


def found(files: Files, executable: frozenset[str] = frozenset(), **others: FileKind) -> GuestListing:
    listed = {
        path: FoundFile(path, FileKind.REGULAR, len(content), path in executable) for path, content in files.items()
    }
    special = {path: FoundFile(path, kind, 3, False) for path, kind in others.items()}
    return GuestListing({**listed, **special}, complete=True)


def compared(base: Baseline, listing: GuestListing, contents: Files) -> Compared:
    """As an honest guest with these contents answers."""
    first = sort(base, listing)
    second = choose(first, {path: digest(contents[path]) for path in first.same_size if path in contents})
    return finish(second, {path: contents[path] for path in second.wanted if path in contents})


def simply(was: Files, now: Files) -> Compared:
    return compared(baseline(was), found(now), now)


def reasons(result: Compared) -> dict[str, str]:
    return {one.path: one.why for one in result.left_out}


def test_what_was_created_updated_and_deleted_is_told_in_the_order_of_paths() -> None:
    result = simply({"a": b"1", "b": b"2", "c": b"3", "d": b"4"}, {"a": b"1", "b": b"20", "d": b"5", "e": b"6"})
    assert result.changes == (
        Change("b", UPDATED, b"20"),
        Change("c", DELETED),
        Change("d", UPDATED, b"5"),
        Change("e", CREATED, b"6"),
    )
    assert result.left_out == ()
    assert result.with_old_content == {"b", "c", "d"}


def test_nothing_changed_is_no_change() -> None:
    assert simply({"a": b"1"}, {"a": b"1"}) == Compared((), ())


def test_a_mode_is_a_change_with_and_without_content() -> None:
    base = baseline({"a": b"1", "b": b"2", "c": b"3"}, frozenset({"b"}))
    now = {"a": b"1", "b": b"22", "c": b"3", "new": b"4"}
    result = compared(base, found(now, frozenset({"a", "new"})), now)
    assert result.changes == (
        Change("a", UPDATED, None, executable=True),
        Change("b", UPDATED, b"22", executable=False),
        Change("new", CREATED, b"4", executable=True),
    )


def test_what_the_commits_gitignore_names_is_left_out_in_silence_unless_the_commit_has_it() -> None:
    was = {".gitignore": b"*.log\nout/\n", "kept.log": b"1"}
    now = {".gitignore": b"", "kept.log": b"22", "new.log": b"3", "out/a": b"4"}
    result = simply(was, now)
    assert [change.path for change in result.changes] == [".gitignore", "kept.log"]
    assert result.left_out == ()


def test_a_gitignore_that_the_sandbox_made_hides_nothing() -> None:
    result = simply({}, {".gitignore": b"*\n", "a": b"1"})
    assert [change.path for change in result.changes] == [".gitignore", "a"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../../etc/passwd", "leads out"),
        ("/etc/passwd", "leads out"),
        (".git/hooks/pre-commit", "Git itself"),
        ("a\udcff", "not UTF-8"),
        ("a\x07", "can't be seen"),
        ("a/" * 100 + "b", "too long"),
    ],
)
def test_a_file_of_a_dangerous_name_is_left_out_with_its_reason(path: str, why: str) -> None:
    result = simply({}, {path: b"1"})
    assert result.changes == ()
    assert [why in one.why for one in result.left_out] == [True]
    assert result.left_out[0].path.isprintable()


def test_links_and_special_files_are_named_and_never_read() -> None:
    base = baseline({"was": b"1"}, links=("same", "gone", "file"))
    listing = found(
        {"file": b"x"}, new=FileKind.LINK, same=FileKind.LINK, was=FileKind.LINK, pipe=FileKind.SPECIAL
    )  # fmt: skip
    first = sort(base, listing)
    assert (first.same_size, first.differing, first.deleted) == ((), (), ())
    assert reasons(finish(choose(first, {}), {})) == {
        "new": "it is a symbolic link",
        "was": "it became a symbolic link",
        "pipe": "it is neither a file nor a folder",
        "file": "it was a symbolic link in the commit",
        "gone": "it is a symbolic link that is deleted",
    }


def test_names_with_line_breaks_are_told() -> None:
    result = finish(choose(sort(baseline({}), GuestListing({}, True, ("a?b",))), {}), {})
    assert reasons(result) == {"a?b": "its name has a line break"}


def test_where_a_folder_could_not_be_read_nothing_counts_as_deleted() -> None:
    result = finish(choose(sort(baseline({"a": b"1"}), GuestListing({}, complete=False)), {}), {})
    assert result.changes == ()
    assert "can't read" in reasons(result)["a"]


def test_a_name_that_differs_only_in_case_is_left_out_unless_the_other_is_gone() -> None:
    assert reasons(simply({"README": b"1"}, {"README": b"1", "Readme": b"2"})) == {
        "Readme": "its name differs from README only in case"
    }
    assert [change.path for change in simply({"README": b"1"}, {"Readme": b"1"}).changes] == ["README", "Readme"]
    assert reasons(simply({}, {"a": b"1", "A": b"2"})) == {"a": "its name differs from A only in case"}
    assert reasons(simply({"src/a": b"1"}, {"src/a": b"1", "Src/b": b"2"})) == {
        "Src/b": "its name differs from src only in case"
    }


def test_a_file_that_grew_or_vanished_while_it_was_read_is_left_out() -> None:
    base, listing = baseline({}), found({"a": b"1", "b": b"2", "c": b"3"})
    result = finish(choose(sort(base, listing), {}), {"a": b"1", "b": b"longer"})
    assert [change.path for change in result.changes] == ["a"]
    assert "while it was read" in reasons(result)["b"]
    assert "can't read" in reasons(result)["c"]


def test_a_guest_that_lies_about_a_hash_can_only_hide_its_change_or_show_none() -> None:
    base, listing = baseline({"a": b"1", "b": b"2"}), found({"a": b"X", "b": b"2"})
    first = sort(base, listing)
    hidden = choose(first, {"a": digest(b"1"), "b": digest(b"other")})
    assert hidden.wanted == ("b",)
    assert finish(hidden, {"b": b"2"}).changes == ()


def test_a_file_whose_hash_the_guest_does_not_tell_is_left_out() -> None:
    assert "can't read" in reasons(finish(choose(sort(baseline({"a": b"1"}), found({"a": b"1"})), {}), {}))["a"]


def test_a_file_in_a_folders_place_and_the_other_way_round_are_deletions_and_creations() -> None:
    result = simply({"a": b"1", "b/c": b"2"}, {"a/x": b"3", "b": b"4"})
    assert [(change.path, change.kind) for change in result.changes] == [
        ("a", DELETED), ("a/x", CREATED), ("b", CREATED), ("b/c", DELETED),
    ]  # fmt: skip


def test_too_large_files_are_left_out_and_too_much_in_all_is_refused() -> None:
    large = b"x" * (MAX_FILE_BYTES + 1)
    result = simply({}, {"large": large, "small": b"1"})
    assert reasons(result) == {"large": "it is larger than 1 MiB"}
    assert result.refusal == ""
    many = simply({}, {f"{number:03}": b"" for number in range(MAX_CHANGES + 1)})
    assert len(many.changes) == MAX_CHANGES
    assert f"{MAX_CHANGES + 1} files differ" in many.refusal
    piece = b"x" * MAX_FILE_BYTES
    heavy = simply({}, {str(number): piece for number in range(MAX_TOTAL_BYTES // MAX_FILE_BYTES + 1)})
    assert sum(len(change.content or b"") for change in heavy.changes) == MAX_TOTAL_BYTES
    assert heavy.refusal
    gone = simply({f"{number:03}": b"" for number in range(MAX_CHANGES + 1)}, {})
    assert (len(gone.changes), bool(gone.refusal)) == (MAX_CHANGES, True)


NAMES = st.text(st.sampled_from("ab/.\\\n\udcff\u202e A"), min_size=1, max_size=6)
TREES = st.dictionaries(NAMES, st.binary(max_size=3), max_size=6)


@given(TREES, TREES, st.dictionaries(NAMES, st.sampled_from(FileKind), max_size=3), TREES)
def test_whatever_a_guest_lists_and_answers_only_safe_paths_change_and_each_once(
    was: Files, now: Files, kinds: Mapping[str, FileKind], lies: Files
) -> None:
    base = baseline({path: content for path, content in was.items() if "\n" not in path})
    special = {path: FoundFile(path, kind, 3, False) for path, kind in kinds.items()}
    first = sort(base, GuestListing({**found(now).files, **special}, complete=True))
    second = choose(first, {path: digest(lies.get(path, b"")) for path in first.same_size})
    result = finish(second, lies)
    paths = [change.path for change in result.changes]
    assert paths == sorted(set(paths))
    for path in paths:
        assert path.isprintable()
        assert not {"", ".", "..", ".git"} & set(path.split("/"))
    form = canonical("0" * 40, result.changes)
    assert parse_canonical(form) == ("0" * 40, result.changes)


def test_the_hash_changes_with_each_part_of_each_change() -> None:
    base = (Change("a", UPDATED, b"1"), Change("b", CREATED, b"2", executable=True), Change("c", DELETED))
    others = [
        (Change("a", UPDATED, b"1x"), *base[1:]),
        (Change("x", UPDATED, b"1"), *base[1:]),
        (Change("a", CREATED, b"1"), *base[1:]),
        (base[0], Change("b", CREATED, b"2"), base[2]),
        (base[0], Change("b", CREATED, b"2", executable=False), base[2]),
        base[:2],
        (Change("a", UPDATED, b"12"), Change("b", CREATED, b"", executable=True), base[2]),
        (Change("a", UPDATED, b""), Change("b", CREATED, b"12", executable=True), base[2]),
    ]
    hashes = {hash_of(canonical("0" * 40, changes)) for changes in [base, *others]} | {
        hash_of(canonical("1" * 40, base))
    }
    assert len(hashes) == len(others) + 2


def test_the_hash_does_not_depend_on_what_is_only_shown() -> None:
    one = canonical("0" * 40, (Change("a", UPDATED, b"1"),))
    assert one == canonical("0" * 40, (Change("a", UPDATED, b"1", added=3, removed=1, binary=True),))


@pytest.mark.parametrize("form", [b"", b"{}\n", b"[]\n", b"nonsense", b'{"base":"1","changes":[{}]}\n', b"[" * 100_000])
def test_what_is_not_the_canonical_form_is_refused(form: bytes) -> None:
    with pytest.raises(ValueError, match=r"damaged|Expecting"):
        parse_canonical(form)


def test_a_canonical_form_with_more_behind_it_is_refused() -> None:
    form = canonical("0" * 40, (Change("a", UPDATED, b"1"),))
    for other in (form + b"x", form[:-1], form.replace(b'"format":1', b'"format":2')):
        with pytest.raises(ValueError, match="damaged"):
            parse_canonical(other)


def test_a_diff_does_not_print_contents() -> None:
    diff = Diff("0" * 40, (Change("a", UPDATED, b"secret"),), "secret", "hash")
    assert "secret" not in repr(diff)
