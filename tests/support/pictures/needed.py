"""What the pictures need besides the tests' own: programs and fonts, by the Debian package that has them."""

from __future__ import annotations

import shutil
import subprocess

_PROGRAMS = {
    "nheko": "nheko",
    "Xvfb": "xvfb",
    "xdotool": "xdotool",
    "import": "imagemagick",
    "convert": "imagemagick",
    "openbox": "openbox",
    "dbus-daemon": "dbus-daemon",
    "fc-list": "fontconfig",
    "chromium": "chromium",
}
_FONTS = {"Noto Color Emoji": "fonts-noto-color-emoji", "Inter": "fonts-inter"}


def missing() -> list[str]:
    """The Debian packages to install."""
    packages = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    packages |= {package for font, package in _FONTS.items() if not _has(font)}
    return sorted(packages)


def _has(font: str) -> bool:
    if shutil.which("fc-list") is None:
        return False
    return bool(subprocess.run(["fc-list", font], capture_output=True, check=False).stdout.strip())
