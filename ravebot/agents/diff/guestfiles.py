"""Reads the code's folder in a guest: the list of files, hashes, contents.

The scripts are constants and run as the sandbox user, so that they can read no more than that user. Their output goes
into a file of root's, of limited size, in a folder that is used once, and is read from there.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile

from ravebot.agents.diff.model import MAX_CHANGES, MAX_FILE_BYTES, MAX_TOTAL_BYTES
from ravebot.errors import GuestError, GuestTimeout
from ravebot.providers.base import Provider
from ravebot.sandboxes.model import CODE_FOLDER

_FOLDER = "/run/ravebot/diff"
_SCRIPT = timedelta(seconds=60)
_SPARE = timedelta(seconds=30)
_LONGEST_LIST_BYTES = 20 * 1024**2
_LONGEST_CONTENTS_BYTES = MAX_TOTAL_BYTES * 7 // 5 + MAX_CHANGES * 8
_LACKING = re.compile(r"[a-z0-9 ]{1,200}")

# $1 folder, $2 user, $3 bytes, $4 seconds; RAVE_SCRIPT is what the user's shell runs, with the paths as its fd 3. An
# earlier call is ended first. Commands reach su's shell on its standard input, as in guestjobs.
_AS_USER = """
set -u
umask 077
all="${1%/*}"
mkdir -p "$all" && chmod 700 "${all%/*}" "$all" || exit 1
for left in "$all"/*; do
  [ "$left" != "$1" ] && [ -d "$left" ] || continue
  [ ! -f "$left/pid" ] || kill -KILL "-$(cat "$left/pid")" 2>/dev/null || true
  rm -rf "$left"
done
mkdir -p "$1" && : >> "$1/paths" && rm -f "$1/out" "$1/status" || exit 1
setsid sh -c '
  echo $$ > "$1/pid.part" && mv "$1/pid.part" "$1/pid"
  exec 3< "$1/paths"
  {
    echo "{ exec < /dev/null; cd \\"\\$RAVE_FOLDER\\" || exit 66; eval \\"\\$RAVE_SCRIPT\\"; }" |
      su "$2" -s /bin/sh 2> /dev/null
    echo $? > "$1/status"
  } | head -c "$3" > "$1/out"
' read "$1" "$2" "$3" &
job=$!
(sleep "$4"; kill -KILL "-$job") < /dev/null > /dev/null 2>&1 &
timer=$!
wait "$job"
kill "$timer" 2> /dev/null
rm -f "$1/pid"
code=$(cat "$1/status" 2> /dev/null) || code=124
[ "$code" != 67 ] || cat "$1/out"
exit "$code"
"""

_TOOLS = """
for tool in find stat tr xargs sha256sum head base64; do
  command -v "$tool" > /dev/null || { echo "$tool"; exit 67; }
done
"""

# Folders named .git are Git's own; names with line breaks would break the list, and are told after it.
_LIST = (
    _TOOLS
    + """
nl='
'
find . -name .git -prune -o -name "*$nl*" -prune -o ! -type d -exec stat -c '%f %s %n' {} +
echo "= $?"
find . -name "*$nl*" -prune -print0 | tr '\\n\\0' '?\\n' | head -n 20
exit 0
"""
)

_HASHES = "xargs -0 sha256sum <&3; exit 0\n"

# Each content is Base64 between an empty line and a dot; `-` stands for what is no file any more.
_CONTENTS = """
xargs -0 sh -c '
for path do
  echo
  if [ -f "$path" ] && [ ! -L "$path" ] && [ -r "$path" ]; then head -c LIMIT "$path" | base64; else echo -; fi
  echo .
done' sh <&3
exit 0
""".replace("LIMIT", str(MAX_FILE_BYTES + 1))


@dataclass(frozen=True)
class GuestFiles:
    """The code's folder in one machine, for one reading; `done` when it is read."""

    provider: Provider
    machine: str
    user: str
    scratch: Path
    folder: str

    @classmethod
    def of(cls, provider: Provider, machine: str, user: str, scratch: Path) -> GuestFiles:
        """`scratch`: a private folder on the host."""
        return cls(provider, machine, user, scratch, f"{_FOLDER}/{secrets.token_hex(8)}")

    async def list(self) -> bytes:
        """The list of files. Raises GuestError, GuestTimeout."""
        return await self._read(_LIST, _LONGEST_LIST_BYTES)

    async def hashes(self, paths: bytes) -> bytes:
        """The hashes of files; each path is ended by a zero byte."""
        if not paths:
            return b""
        await self._give(paths)
        return await self._read(_HASHES, _LONGEST_LIST_BYTES)

    async def contents(self, paths: bytes) -> bytes:
        if not paths:
            return b""
        await self._give(paths)
        return await self._read(_CONTENTS, _LONGEST_CONTENTS_BYTES)

    async def done(self) -> None:
        """Remove what was written in the guest; a later reading would do it, too."""
        await self.provider.run(self.machine, ("rm", "-rf", self.folder), timeout=_SPARE)

    async def _give(self, paths: bytes) -> None:
        def written() -> Path:
            with NamedTemporaryFile(dir=self.scratch, delete=False) as file:
                file.write(paths)
            return Path(file.name)

        source = await asyncio.to_thread(written)
        try:
            await self.provider.copy_in(self.machine, source, f"{self.folder}/paths")
        finally:
            await asyncio.to_thread(source.unlink)

    async def _read(self, script: str, max_bytes: int) -> bytes:
        limits = str(max_bytes + 1), str(int(_SCRIPT.total_seconds()))
        done = await self.provider.run(
            self.machine,
            ("/bin/sh", "-c", _AS_USER, "ravebot", self.folder, self.user, *limits),
            timeout=_SCRIPT + _SPARE,
            environment={"RAVE_SCRIPT": script, "RAVE_FOLDER": CODE_FOLDER},
        )
        match done.exit_code:
            case 0:
                return await self.provider.copy_out(self.machine, f"{self.folder}/out", max_bytes=max_bytes)
            case 124 | 137:
                raise GuestTimeout(
                    f"the sandbox did not read its files within {_SCRIPT.total_seconds():.0f} s: ask again when less is"
                    " running there"
                )
            case 66:
                raise GuestError(f"the sandbox has no folder {CODE_FOLDER} any more: have it rebuilt")
            case 67:
                tool = done.output.strip()
                named = tool if _LACKING.fullmatch(tool) else "a program"
                raise GuestError(f"the sandbox's image lacks {named}, which reading its files needs: install coreutils")
            case code:
                raise GuestError(f"the sandbox's files can't be read (code {code}): does its image have the user?")
