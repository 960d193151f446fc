"""Checks everything that can be wrong in a new installation, and says how to fix each problem.

It changes nothing, unless it is asked to mend webhooks.
"""

from ravebot.operations.doctor.examine import examine
from ravebot.operations.doctor.finding import Finding, Verdict
from ravebot.operations.doctor.fix import fix_webhooks
from ravebot.operations.doctor.report import show

__all__ = ["Finding", "Verdict", "examine", "fix_webhooks", "show"]
