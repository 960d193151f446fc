"""The commands of `ravebot`, for those who describe them: the manual page and the shells' completion."""

from __future__ import annotations

from importlib import import_module

from typer.core import TyperGroup
from typer.main import get_command


def group() -> TyperGroup:
    """All commands. They are looked up when they are needed: the module that defines them starts this one."""
    found = get_command(import_module("ravebot.cli").app)
    assert isinstance(found, TyperGroup)
    return found
