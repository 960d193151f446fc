"""The commit is read from GitLab's archive of it as a stream, whatever the archive holds."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from ravebot.agents.diff import baseline
from ravebot.agents.diff.baseline import BaseFile, UnreadableArchive
from ravebot.agents.diff.model import MAX_FILE_BYTES


def an_archive(path: Path, *members: tuple[str, bytes | str, int]) -> Path:
    """Members are a name, the content or a link's target, and the mode."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0" * 40}) as archive:
        for name, content, mode in members:
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


def test_files_are_told_by_size_mode_and_hash_and_links_as_links(tmp_path: Path) -> None:
    long = "d/" * 100 + "größe.txt"
    path = an_archive(
        tmp_path / "a",
        ("app-1/a", b"one", 0o664),
        ("app-1/run", b"", 0o775),
        ("app-1/link", "/etc/passwd", 0o777),
        (f"app-1/{long}", b"x" * 700_000, 0o664),
        ("app-1/sub/.gitignore", b"*.log\n", 0o664),
    )
    found = baseline.survey(path)
    assert found.files == {
        "a": BaseFile(3, False, sha256(b"one").hexdigest()),
        "run": BaseFile(0, True, sha256(b"").hexdigest()),
        "link": BaseFile(0, True, "", link=True),
        long: BaseFile(700_000, False, sha256(b"x" * 700_000).hexdigest()),
        "sub/.gitignore": BaseFile(6, False, sha256(b"*.log\n").hexdigest()),
    }
    assert found.rules == {"sub/.gitignore": b"*.log\n"}


def test_the_contents_of_some_files_are_read_and_large_ones_are_not(tmp_path: Path) -> None:
    path = an_archive(
        tmp_path / "a",
        ("app-1/a", b"one", 0o664),
        ("app-1/b", b"two", 0o664),
        ("app-1/large", b"x" * (MAX_FILE_BYTES + 1), 0o664),
    )
    assert baseline.contents(path, {"b", "large", "missing"}) == {"b": b"two"}


def test_a_name_that_is_not_utf8_and_names_that_lead_out_are_only_names(tmp_path: Path) -> None:
    path = an_archive(tmp_path / "a", ("app-1/../../x", b"1", 0o664), ("app-1/\udcff", b"2", 0o664))
    assert set(baseline.survey(path).files) == {"../../x", "\udcff"}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a"]


def test_a_header_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("app-1/a")
    header.type, header.size = tarfile.XHDTYPE, 2 * 1024**3
    with gzip.open(tmp_path / "a", "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.write(b"\0" * 8192)
    with pytest.raises(UnreadableArchive, match="too large"):
        baseline.survey(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar" * 500, mtime=0)])
def test_what_is_no_archive_is_said_to_be_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UnreadableArchive):
        baseline.survey(tmp_path / "a")


def test_an_archive_that_is_cut_off_is_not_taken_for_a_smaller_commit(tmp_path: Path) -> None:
    path = an_archive(tmp_path / "a", *((f"app-1/{n}", random.Random(n).randbytes(5000), 0o664) for n in range(20)))
    whole = path.read_bytes()
    for length in (len(whole) // 3, len(whole) // 2, len(whole) - 20, len(whole) - 4):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableArchive):
            baseline.survey(path)
