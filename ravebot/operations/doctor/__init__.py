"""Checks everything that can be wrong in a new installation, changes nothing, and says how to fix each problem."""

from ravebot.operations.doctor.examine import examine
from ravebot.operations.doctor.finding import Finding, Verdict
from ravebot.operations.doctor.report import show

__all__ = ["Finding", "Verdict", "examine", "show"]
