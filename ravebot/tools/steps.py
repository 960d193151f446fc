"""What a tool prepared of an act: a step that one transaction carries out, and by what it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from ravebot.store.database import Transaction
from ravebot.tools.callers.contract import Reached
from ravebot.tools.problems import ToolProblem

Step = Callable[[Transaction], BaseModel | ToolProblem]
"""Commits also when it returns a problem, such as a refusal that is recorded."""


@dataclass(frozen=True)
class PreparedAct:
    """An act. `reached`: the merge request that it is about; None: it is about none that the caller named."""

    step: Step
    reached: Reached | None = None
