"""Puts agents for tests into a guest image: ACP's Python SDK from pinned wheels, and the agents themselves.

The script that an image's build runs holds all of it, so that the build fetches nothing more and a guest needs no
internet. `sdk-agent` and `plain-agent` are then in `/usr/local/bin`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ravebot.images.layers import EPOCH

_HERE = Path(__file__).parent
_PINS = _HERE.parents[2] / "requirements-dev.txt"
_SDK = (
    "agent-client-protocol",
    "annotated-types",
    "pydantic",
    "pydantic-core",
    "typing-extensions",
    "typing-inspection",
)
_PACKAGES = "usr/local/lib/python3.11/dist-packages"  # of Debian 12
_PROGRAMS = {"sdk-agent": _HERE / "sdk.py", "plain-agent": _HERE / "plain.py"}
_SCRIPT = f"""#!/bin/sh
set -eu
sed '1,/^FILES$/d' "$0" | base64 -d | tar -xz -C / --no-same-owner
python3 -m compileall -q --invalidation-mode unchecked-hash /{_PACKAGES}
sdk-agent --help >/dev/null
plain-agent --help >/dev/null
exit 0
FILES
"""


class WheelsMissing(RuntimeError):
    """The SDK could not be fetched; the message says why."""


def pins(requirements: str) -> str:
    """The lines of the SDK's packages, with their digests."""
    entries = re.findall(r"^([a-z0-9-]+)(==[^\n\\]+(?:\\\n[^\n\\]+)+)", requirements, re.M)
    found = {name: rest for name, rest in entries if name in _SDK}
    assert sorted(found) == sorted(_SDK), f"requirements-dev.txt has not all of {', '.join(_SDK)}"
    return "".join(f"{name}{rest}\n" for name, rest in sorted(found.items()))


def digest() -> str:
    """What decides about the files in the image; reads nothing but this repository."""
    parts = [pins(_PINS.read_text()), _SCRIPT, *(file.read_text() for file in _PROGRAMS.values())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def script() -> bytes:
    """The script for an image of Debian 12. Raises WheelsMissing."""
    with tempfile.TemporaryDirectory(prefix="ravebot-wheels-") as folder:
        wanted = Path(folder, "pins.txt")
        wanted.write_text(pins(_PINS.read_text()))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"),
                *("--require-hashes", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11"),
                *("--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64", f"--dest={folder}"),
                *("-r", str(wanted)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise WheelsMissing(f"pip could not fetch the SDK's wheels: {done.stderr[-1500:]}")
        return _SCRIPT.encode() + base64.encodebytes(_packed(sorted(Path(folder).glob("*.whl"))))


def _packed(wheels: Iterable[Path]) -> bytes:
    """All files as a compressed tar archive. A wheel is a zip file of what belongs into `dist-packages`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:

        def add(name: str, content: bytes, mode: int) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), mode, EPOCH
            tar.addfile(info, io.BytesIO(content))

        for wheel in wheels:
            with zipfile.ZipFile(wheel) as files:
                for name in files.namelist():
                    if not name.endswith("/"):
                        add(f"{_PACKAGES}/{name}", files.read(name), 0o644)
        for name, file in _PROGRAMS.items():
            add(f"usr/local/bin/{name}", b"#!/usr/bin/python3\n" + file.read_bytes(), 0o755)
    return packed.getvalue()
