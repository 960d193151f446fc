"""Source archives as GitLab makes them: one top folder `<project>-<ref>-<sha>`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Mapping


def tar_gz(top: str, files: Mapping[str, bytes], executable: Collection[str]) -> bytes:
    """A tar.gz of the files below `top`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        folders = {top}
        for name in files:
            parts = name.split("/")[:-1]
            folders.update("/".join([top, *parts[: depth + 1]]) for depth in range(len(parts)))
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o775
            archive.addfile(entry)
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(content)
            entry.mode = 0o775 if name in executable else 0o664
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
