"""Talks to systemd by its own command."""

from __future__ import annotations

import shlex
import subprocess

from ravebot.errors import RavebotError


class SystemdFailed(RavebotError):
    """systemctl failed; the message says what it said."""


def control(*arguments: str) -> None:
    """Run `systemctl …`. Raises SystemdFailed."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SystemdFailed(f"systemctl {shlex.join(arguments)} failed: {said}")
