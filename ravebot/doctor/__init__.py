"""Checks everything that a new installation can have wrong, changes nothing, and says how to mend each."""

from ravebot.doctor.examine import examine
from ravebot.doctor.finding import Finding, Verdict
from ravebot.doctor.report import show

__all__ = ["Finding", "Verdict", "examine", "show"]
