"""A process of its own that looks at what is not trusted: a guest's answers, an archive, the patterns of a .gitignore.

`python -m ravebot.agents.diff.worker ARCHIVE` reads frames from its standard input and answers with frames: the list of
files → whose hash is wanted; the hashes → whose content is wanted; the contents → facts as JSON, canonical form, text.
A pattern that never ends or an archive that grows without end hits this process's limits, and not the bot.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ravebot.agents.diff import baseline, compare, listing, text
from ravebot.agents.diff.model import MAX_LEFT_OUT, Change, canonical

CPU_SECONDS = 60
MEMORY_BYTES = 2 * 1024**3
LARGEST_FRAME_BYTES = 24 * 1024**2
HEADER = struct.Struct(">cI")
"""A frame's kind and length: DATA, or an error whose text is a sentence for people."""
DATA, GUEST_ERROR, ARCHIVE_ERROR = b"D", b"G", b"A"


def main() -> None:
    """Serve one comparison."""
    limit()
    archive, base_sha = Path(sys.argv[1]), sys.argv[2]
    source, target = sys.stdin.buffer, sys.stdout.buffer
    try:
        for answer in steps(archive, base_sha, lambda: _read(source)):
            _write(target, DATA, answer)
    except listing.MalformedListing as error:
        _write(target, GUEST_ERROR, f"The sandbox's answer can't be used: {error}.".encode())
    except baseline.UnreadableArchive as error:
        _write(target, ARCHIVE_ERROR, str(error).encode())


def limit() -> None:
    """Bound what this process may use; it writes no files, and the bot comes first."""
    os.nice(5)
    for kind, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def steps(archive: Path, base_sha: str, read: Callable[[], bytes]) -> Iterator[bytes]:
    """Each answer in its turn."""
    base = baseline.survey(archive)
    ordered = compare.sort(base, listing.parse_listing(read()))
    yield listing.as_arguments(ordered.same_size)
    chosen = compare.choose(ordered, listing.parse_hashes(read()))
    yield listing.as_arguments(chosen.wanted)
    compared = compare.finish(chosen, listing.parse_contents(read(), chosen.wanted))
    old = baseline.contents(archive, compared.with_old_content) if compared.with_old_content else {}
    executable = {change.path: base.files[change.path].executable for change in compared.changes
                  if change.path in base.files}  # fmt: skip
    changes, shown = text.written(compared.changes, old, executable)
    yield _facts(compared, changes)
    yield canonical(base_sha, changes)
    yield shown.encode()


def _facts(compared: compare.Compared, changes: tuple[Change, ...]) -> bytes:
    facts = {
        "counts": [[change.added, change.removed, change.binary] for change in changes],
        "left_out": [[one.path, one.why] for one in compared.left_out[:MAX_LEFT_OUT]],
        "left_out_more": max(0, len(compared.left_out) - MAX_LEFT_OUT),
        "refusal": compared.refusal,
    }
    return json.dumps(facts).encode()


def _read(source: BinaryIO) -> bytes:
    _, length = HEADER.unpack(source.read(HEADER.size))
    return source.read(length)


def _write(target: BinaryIO, kind: bytes, content: bytes) -> None:
    target.write(HEADER.pack(kind, len(content)) + content)
    target.flush()


if __name__ == "__main__":
    main()
