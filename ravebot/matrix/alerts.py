"""Renders one alert of Prometheus for the operators' room. Pure; all of its texts are untrusted."""

from __future__ import annotations

from ravebot.clock import moment
from ravebot.matrix.content import Content, Span, bold, joined, link, marked, message, theirs, words
from ravebot.sandboxes.view import in_words
from ravebot.store.alerts import AlertStatus, KnownAlert

_SIGNS = {"critical": "🔴", "page": "🔴", "error": "🔴", "warning": "🟠", "info": "🔵", "none": "🔵"}
_OTHER_SIGN = "🟠"
_QUIET = ("info", "none")


def render_alert(alert: KnownAlert) -> Content:
    """What an alert's one message shows while it fires, and when it is resolved.

    While it fires it is a text message, which notifies people as notices do not; one whose severity is `info` or `none`
    is a notice.
    """
    resolved = alert.status is AlertStatus.RESOLVED
    severity = theirs(alert.severity, 30)
    name = bold(theirs(alert.name, 100).plain)
    if resolved:
        head = joined((words("✅ Resolved:"), name))
    else:
        kind = Span(f"{severity.plain}:", f"{severity.html}:") if severity.plain else words("Alert:")
        head = joined((words(_SIGNS.get(alert.severity.lower(), _OTHER_SIGN)), kind, name))
    lines = [head]
    if alert.summary:
        lines.append(theirs(alert.summary, 300))
    if alert.description and not resolved:
        lines.append(theirs(alert.description, 600))
    lines.append(_times(alert))
    if alert.runbook and not resolved:
        runbook = link(alert.runbook, "runbook")
        linked = runbook.plain != "runbook"
        lines.append(joined((words("What to do:"), runbook if linked else marked(alert.runbook, 500))))
    content = message([joined(lines, "\n", "<br>")])
    quiet = resolved or alert.severity.lower() in _QUIET
    return content if quiet else content | {"msgtype": "m.text"}


def _times(alert: KnownAlert) -> Span:
    began = alert.starts_at
    if alert.status is AlertStatus.FIRING:
        return words(f"Fires since {began:%Y-%m-%d %H:%M} UTC")
    ended = alert.ends_at or alert.resolved_at
    if ended is None or ended < began:  # the clocks disagree
        return words(f"Fired since {began:%Y-%m-%d %H:%M} UTC")
    return words(f"Fired for {in_words(ended - began)}: from {began:%Y-%m-%d %H:%M} to {moment(ended, began)}")
