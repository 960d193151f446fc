"""The form in which the inbox stores an event: only the fields that are needed, each of a bounded length."""

from __future__ import annotations

import json
from dataclasses import replace

from pydantic import TypeAdapter

from ravebot.gitlab.addressing import for_us
from ravebot.gitlab.events import CommentPosted, Ignored, MergeRequestChanged, parse

MERGE_REQUEST, NOTE = "merge_request", "note"
RAW_MERGE_REQUEST, RAW_NOTE = "raw_merge_request", "raw_note"
"""Kinds of rows from a database of version 1, which stored the whole body of each webhook."""

_CHANGE = TypeAdapter(MergeRequestChanged)
_COMMENT = TypeAdapter(CommentPosted)


def kept(event: MergeRequestChanged | CommentPosted) -> tuple[str, str]:
    """Kind and body of an inbox row.

    Of a comment only the command, or what is said to an agent, is stored: the rest of its text and the merge request's
    description may be megabytes long.
    """
    if isinstance(event, MergeRequestChanged):
        return MERGE_REQUEST, _CHANGE.dump_json(event).decode()
    short = replace(event, text=for_us(event.text), mr=None, created_at=None)
    return NOTE, _COMMENT.dump_json(short).decode()


def read(kind: str, body: str) -> MergeRequestChanged | CommentPosted | Ignored:
    """The event in an inbox row. Raises ValueError or Malformed if it contains none."""
    if kind in (RAW_MERGE_REQUEST, RAW_NOTE):
        return parse(json.loads(body))
    return _CHANGE.validate_json(body) if kind == MERGE_REQUEST else _COMMENT.validate_json(body)
