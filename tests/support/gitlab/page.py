"""The HTML of a merge request's page."""

from __future__ import annotations

import html

from tests.support.gitlab.state import MergeRequest


def render(mr: MergeRequest) -> str:
    return f"<!doctype html><title>{html.escape(mr.title)}</title>"
