"""Tries the announced ways in from this host's shell, as a person would."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.support.demo.readable import Kind, Row
from tests.support.demo.watch import DemoError, fact

_TIMEOUT_SECONDS = 180


@dataclass(frozen=True)
class Doors:
    """What a status note announces."""

    ssh: tuple[str, ...]  # the command to copy, word by word
    fingerprint: str
    web: str

    @classmethod
    def announced_by(cls, note: tuple[Row, ...]) -> Doors:
        """Raises DemoError when the note does not name all of them."""
        command = next((row.text for row in note if row.kind is Kind.CODE and row.text.startswith("ssh ")), "")
        web, fingerprint = fact(note, "Web"), fact(note, "Host key")
        if not command or not web.startswith("http") or not fingerprint.startswith("SHA256:"):
            raise DemoError(f"the note does not name all ways in: SSH {command!r}, web {web!r}, key {fingerprint!r}")
        return cls(tuple(command.split()), fingerprint, web)

    @property
    def port(self) -> int:
        return int(self.ssh[self.ssh.index("-p") + 1])

    def command(self, key: Path, known_hosts: Path) -> list[str]:
        """The announced command with the throwaway key, and a throwaway list of known hosts."""
        program, *rest = self.ssh
        return [program, "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={known_hosts}", *rest]

    async def log_in(self, key: Path, known_hosts: Path, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, asking nothing; a host key that is not known yet is noted down."""
        first, *rest = self.command(key, known_hosts)
        options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=60"]
        return await asyncio.to_thread(
            subprocess.run,
            [first, *options, *rest, command],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    async def fetch(self) -> str:
        """What the web link answers. Raises DemoError when that is an error or nothing."""
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self.web) as answer:
                text = await answer.text()
                if answer.status == 200:
                    return text
                raise DemoError(f"{self.web} answered with {answer.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoError(f"{self.web} did not answer: {error}") from error

    async def closed(self) -> bool:
        """Whether nobody gets through to SSH any more."""
        try:
            async with asyncio.timeout(2):
                _, writer = await asyncio.open_connection(self.ssh[-1].partition("@")[2], self.port)
        except (OSError, TimeoutError):
            return True
        writer.close()
        return False


def fingerprints(known_hosts: Path) -> list[str]:
    """The fingerprint of every stored host key."""
    listed = subprocess.run(["ssh-keygen", "-lf", str(known_hosts)], capture_output=True, text=True, check=True)
    return [line.split()[1] for line in listed.stdout.splitlines()]


def hand_over(*paths: Path) -> None:
    """Under sudo: let the person who called it read them, so that the commands we print work in their own shell."""
    user = os.environ.get("SUDO_UID")
    if os.geteuid() == 0 and user:
        for path in paths:
            os.chown(path, int(user), int(os.environ.get("SUDO_GID", user)))
