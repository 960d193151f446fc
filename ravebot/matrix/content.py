"""Builds the content of message events: plain text and HTML, explicit mentions, and a limited size."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ravebot.matrix.text import one_line

Content = dict[str, Any]

MAX_CONTENT_BYTES = 40_000
"""Events are limited to 64 KiB with their envelope and signatures
(https://spec.matrix.org/latest/client-server-api/#size-limits); an edit adds a short copy for old clients."""

_FALLBACK_CHARACTERS = 1000
_LINKED = re.compile(r"https?://[!#-&(-;=?-~]{1,2000}")  # printable ASCII, without quotes and angle brackets
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Span:
    """A piece of text in both forms. `html` is trusted: the code that makes a Span escapes it."""

    plain: str
    html: str


def theirs(text: str, limit: int = 200) -> Span:
    """Untrusted text, from a person or a guest, made harmless."""
    shown = one_line(text, limit)
    return Span(shown, html.escape(shown))


def words(text: str) -> Span:
    """ravebot's own text; text between backticks is shown as code."""
    marked = _CODE.sub(lambda match: f"<code>{match[1]}</code>", html.escape(text))
    return Span(text, marked.replace("\n", "<br>"))


def code(text: str) -> Span:
    """Something to copy: a command, a fingerprint."""
    return Span(text, f"<code>{html.escape(text)}</code>")


def bold(text: str) -> Span:
    return Span(text, f"<strong>{html.escape(text)}</strong>")


def link(url: str, text: str) -> Span:
    """A link, or only its text if the URL is no plain HTTP one."""
    if not _LINKED.fullmatch(url):
        return Span(text, html.escape(text))
    return Span(f"{text} {url}" if text != url else url, f'<a href="{html.escape(url)}">{html.escape(text)}</a>')


def pill(user_id: str, name: str) -> Span:
    """A user's name that clients show as a mention; only `m.mentions` decides who is notified."""
    shown = theirs(name, 60)
    return Span(shown.plain, f'<a href="https://matrix.to/#/{html.escape(user_id)}">{shown.html}</a>')


def marked(text: str, limit: int = 500) -> Span:
    """Untrusted text, made harmless, in which ravebot put commands between backticks: they are shown as code."""
    shown = one_line(text, limit)
    return Span(shown, _CODE.sub(lambda match: f"<code>{match[1]}</code>", html.escape(shown)))


def preformatted(text: str) -> Span:
    """The output of a program."""
    return Span(text, f"<pre><code>{html.escape(text)}</code></pre>")


def joined(spans: Iterable[Span], plain: str = " ", marked: str = " ") -> Span:
    listed = list(spans)
    return Span(plain.join(span.plain for span in listed), marked.join(span.html for span in listed))


def message(parts: Iterable[Span], *, mentions: Sequence[str] = ()) -> Content:
    """A notice made of parts; with `mentions`, a text message that notifies exactly these users.

    A notice notifies nobody, even if it mentions users: the push rule `.m.rule.suppress_notices` comes first
    (https://spec.matrix.org/latest/client-server-api/#default-override-rules).
    """
    whole = joined(parts, "\n", "\n")
    return {
        "msgtype": "m.text" if mentions else "m.notice",
        "body": whole.plain,
        "format": "org.matrix.custom.html",
        "formatted_body": whole.html,
        "m.mentions": {"user_ids": list(mentions)} if mentions else {},
    }


def size_bytes(content: Content) -> int:
    """The size of the content in an event."""
    return len(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def first_that_fits(contents: Iterable[Content]) -> Content:
    """The first content that fits into an event, else the last; the contents are ordered from long to short."""
    content: Content = {}
    for content in contents:
        if size_bytes(content) <= MAX_CONTENT_BYTES:
            break
    return content


def edit_of(event_id: str, content: Content) -> Content:
    """The content that edits an earlier message; clients without support for edits show its beginning."""
    body = content["body"]
    shown = body if len(body) <= _FALLBACK_CHARACTERS else body[:_FALLBACK_CHARACTERS] + "…"
    fresh = {key: value for key, value in content.items() if key != "m.relates_to"}
    return {
        "msgtype": content["msgtype"],
        "body": f"* {shown}",
        "m.mentions": {},
        "m.new_content": fresh,
        "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
    }


def calling_edit(event_id: str, content: Content, user_id: str, news: str) -> Content:
    """An edit that notifies one user and nobody else, with `news` as what their client tells them.

    Of the default push rules, `is_user_mention` comes before `suppress_edits`, which silences an edit for all others.
    `suppress_notices` comes before both, so the edit is a text message, while the edited message stays a notice.
    https://spec.matrix.org/latest/client-server-api/#default-override-rules
    """
    mentions = {"user_ids": [user_id]}
    edit = edit_of(event_id, content | {"m.mentions": mentions})
    return edit | {"msgtype": "m.text", "body": f"* {news}", "m.mentions": mentions}


def in_thread(root_event_id: str, content: Content) -> Content:
    """The content as a message of the thread under that event."""
    relation = {
        "rel_type": "m.thread",
        "event_id": root_event_id,
        "is_falling_back": True,
        "m.in_reply_to": {"event_id": root_event_id},
    }
    return content | {"m.relates_to": relation}


def as_reply(content: Content, reply_to: str, thread: str | None = None) -> Content:
    """The content as a reply to an event, in the thread of that event, if any."""
    relation: Content = {"m.in_reply_to": {"event_id": reply_to}}
    if thread is not None:
        relation |= {"rel_type": "m.thread", "event_id": thread, "is_falling_back": False}
    return content | {"m.relates_to": relation}
