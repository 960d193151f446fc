"""Structured logs: one line an event and never a secret; with fields in the journal, else JSON except on a terminal."""

from ravebot.logs.journal import JournalHandler, is_journal
from ravebot.logs.redaction import Redaction, hidden, hide
from ravebot.logs.setup import QUIET, set_up
from ravebot.logs.writer import LogWriter, sink_of

__all__ = [
    "QUIET",
    "JournalHandler",
    "LogWriter",
    "Redaction",
    "hidden",
    "hide",
    "is_journal",
    "set_up",
    "sink_of",
]
