"""Installs OpenCode, an independent coding agent, into `.cache/`: its npm package at a pinned version, checked by npm.

`package-lock.json` in `npm/` has the version and the digest. The package `opencode-ai` only picks the package of the
platform, and copies its program; here that package is named itself, so that one program is fetched instead of four.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.support.agents.model import MODEL

_HERE = Path(__file__).parent / "npm"
CACHE = Path(__file__).resolve().parents[3] / ".cache" / "opencode"
_SECONDS = 300

ENVIRONMENT = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
}
"""So that it asks nothing of the internet."""


class OpenCodeMissing(RuntimeError):
    """It can't be installed here; the message says why."""


def version() -> str:
    listed: dict[str, Any] = json.loads((_HERE / "package.json").read_text())
    (found,) = listed["dependencies"].values()
    return str(found)


def program(cache: Path = CACHE) -> Path:
    """The program's file, installed by the first who asks. Raises OpenCodeMissing."""
    if not shutil.which("npm"):
        raise OpenCodeMissing("npm is not installed: ./dev setup installs it")
    lock = (_HERE / "package-lock.json").read_bytes()
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    found = folder / "node_modules" / "opencode-linux-x64" / "bin" / "opencode"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not found.exists():
            _install(cache, folder)
    return found


def _install(cache: Path, folder: Path) -> None:
    new = cache / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_HERE / name, new)
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=new, capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise OpenCodeMissing(f"npm could not install it: {done.stderr[-1500:]}")
    for old in cache.iterdir():
        if old.is_dir() and old != new:
            shutil.rmtree(old)
    new.rename(folder)


def configuration(model_url: str) -> dict[str, Any]:
    """OpenCode's own configuration file for an OpenAI-compatible model at that address; it asks before it changes."""
    return {
        "$schema": "https://opencode.ai/config.json",
        "model": f"local/{MODEL}",
        "enabled_providers": ["local"],
        "autoupdate": False,
        "share": "disabled",
        "provider": {
            "local": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "A model on this machine",
                "options": {"baseURL": model_url},
                "models": {MODEL: {"name": "Scripted"}},
            }
        },
        "permission": {"edit": "ask", "bash": "ask"},
    }
