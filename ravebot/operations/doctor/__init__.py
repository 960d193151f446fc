"""Checks everything that a new installation can have wrong, changes nothing, and says how to mend each."""

from ravebot.operations.doctor.examine import examine
from ravebot.operations.doctor.finding import Finding, Verdict
from ravebot.operations.doctor.report import show

__all__ = ["Finding", "Verdict", "examine", "show"]
