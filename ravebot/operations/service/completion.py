"""Completion of `ravebot …` in bash, zsh and fish, as files that these shells load by themselves."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "bash": Path("bash-completion/completions/ravebot"),
    "zsh": Path("zsh/site-functions/_ravebot"),
    "fish": Path("fish/vendor_completions.d/ravebot.fish"),
}
"""Where each shell looks, below /usr/local/share."""


def script(shell: str) -> str:
    """The file for that shell: it asks the program."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # from its private module

    return get_completion_script(prog_name="ravebot", complete_var="_RAVEBOT_COMPLETE", shell=shell).strip() + "\n"
