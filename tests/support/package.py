"""`./dev package`: builds the wheel and the sdist, the same bytes from the same commit wherever that is done.

Only files that git knows go into them, with the time of the last commit. `--version` builds another version of the same
code, for the tests of an upgrade.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BUILD = "import sys; from setuptools import build_meta as b; o = sys.argv[1]; b.build_wheel(o); b.build_sdist(o)"


def build(out: Path, version: str | None = None) -> tuple[Path, Path]:
    """Put both, and the list of the packages that they need, into the folder. Returns wheel and sdist."""
    with tempfile.TemporaryDirectory(prefix="ravebot-package-") as folder:
        tree, made = Path(folder, "tree"), Path(folder, "made")
        made.mkdir()
        _export(tree)
        if version is not None:
            project = tree / "pyproject.toml"
            project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text(), count=1))
        moment = _git("log", "-1", "--format=%ct").strip()
        environment = {**os.environ, "SOURCE_DATE_EPOCH": moment, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, str(made)], cwd=tree, env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"the build failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        (wheel,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
        sdist.write_bytes(_settled(sdist.read_bytes(), int(moment)))
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "requirements.txt", out)
        return Path(shutil.copy(wheel, out)), Path(shutil.copy(sdist, out))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout


def _export(tree: Path) -> None:
    """Copy the files that git knows, as they are now; their modes say only whether they can be run."""
    for name in _git("ls-files", "-z").split("\0"):
        source, target = ROOT / name, tree / name
        if name and source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _settled(archive: bytes, moment: int) -> bytes:
    """The same archive without what differs from build to build: order, times, users, and gzip's own time."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as old,
        gzip.GzipFile("", "wb", fileobj=out, mtime=moment) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = moment, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev package", description="Build the wheel and the sdist.")
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "dist", help="the folder; dist by default")
    for path in build(parser.parse_args().out):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")


if __name__ == "__main__":
    main()
