"""What is read of Alertmanager's requests, and how one alert is shown; every text in them is untrusted."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ravebot.matrix.alerts import render_alert
from ravebot.matrix.content import size_bytes
from ravebot.store.alerts import Alert, AlertStatus, KnownAlert
from ravebot.web.alerts.reading import MOST_ALERTS, NotAlerts, read

BEGAN = datetime(2026, 1, 1, 11, 48, tzinfo=UTC)
FIRING = KnownAlert("f" * 16, BEGAN, AlertStatus.FIRING, "QueueStuck", "warning", "Nothing starts")


def one(**changes: Any) -> Alert | None:
    """What is read of one alert with these changes."""
    alert = {
        "status": "firing",
        "labels": {"alertname": "QueueStuck", "severity": "warning", "job": "ravebot"},
        "annotations": {},
        "startsAt": "2026-01-01T12:48:00.000000001+01:00",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "0123456789abcdef",
        **changes,
    }
    found = read(json.dumps({"version": "4", "alerts": [alert]}).encode()).alerts
    return found[0] if found else None


def test_an_alert_without_annotations_is_told_by_its_labels() -> None:
    found = one()
    assert found == Alert("0123456789abcdef", BEGAN, AlertStatus.FIRING, "QueueStuck", "warning", "job=ravebot")


def test_without_a_fingerprint_equal_labels_are_the_same_alert() -> None:
    first, again = one(fingerprint=None), one(fingerprint="")
    other = one(fingerprint=None, labels={"alertname": "QueueStuck"})
    assert first and again and other
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "silenced"}, {"status": ["firing"]}, {"startsAt": "0001-01-01T00:00:00Z"}, {"startsAt": 7},
        {"startsAt": "9999-12-31T23:59:59-23:00"}, {"startsAt": "2026-13-01T00:00:00Z"}, {"labels": {}},
        {"labels": {"alertname": 7}},
    ],
)  # fmt: skip
def test_what_is_no_alert_is_not_read(changes: dict[str, Any]) -> None:
    assert one(**changes) is None


def test_an_end_before_the_beginning_counts_as_unknown() -> None:
    found = one(status="resolved", endsAt="2025-01-01T00:00:00Z")
    assert found
    assert found.ends_at is None


def test_more_alerts_than_are_taken_are_counted_with_those_that_alertmanager_left_out() -> None:
    body = {"version": "4", "alerts": [{}] * (MOST_ALERTS + 5), "truncatedAlerts": 7}
    found = read(json.dumps(body).encode())
    assert (found.alerts, found.unread, found.left_out) == ((), MOST_ALERTS, 12)


@pytest.mark.parametrize(
    "body", [b"\xff", b"[" * 10_000, b"1", b"{}", b'{"version": 4}', b'{"version": "4", "alerts": {}}']
)
def test_what_alertmanager_does_not_send_is_refused_with_the_mend(body: bytes) -> None:
    with pytest.raises(NotAlerts, match="Alertmanager"):
        read(body)


def test_texts_are_cut_and_a_long_address_is_left_out_rather_than_cut() -> None:
    annotations = {"summary": "s\n\0" * 50_000, "description": "\ud800" * 9_000, "runbook_url": "http://h/" + "x" * 500}
    found = one(annotations=annotations, labels={"alertname": "n" * 9_000, "severity": "v" * 9_000})
    assert found
    assert [len(text) for text in (found.name, found.severity, found.summary, found.description)] == [100, 30, 300, 600]
    assert found.runbook == ""
    assert not {"\n", "\0", "\ud800"} & {*found.summary, *found.description}


def test_hostile_texts_ping_nobody_and_become_neither_html_nor_links() -> None:
    nasty = "<b onclick=x>@room @alice:example.org https://evil.example.org/ \u202e`x` **y**"
    shown = render_alert(
        replace(FIRING, name=nasty, severity=nasty, summary=nasty, description=nasty, runbook="javascript:alert(1)")
    )
    assert shown["m.mentions"] == {}
    for text in (shown["body"], shown["formatted_body"]):
        assert "@room" not in text
        assert "https://evil" not in text
        assert "\u202e" not in text
    assert "<b " not in shown["formatted_body"]
    assert "<a " not in shown["formatted_body"]


@pytest.mark.parametrize("runbook", ["ftp://h/x", "http://h/\"onmouseover='x", "https://h/ x", "//h/x", "HTTPS", ""])
def test_a_runbook_is_linked_only_if_it_is_a_plain_web_address(runbook: str) -> None:
    shown = render_alert(replace(FIRING, runbook=runbook))
    assert "<a " not in shown["formatted_body"]
    assert "http://" not in shown["body"]
    assert ("What to do" in shown["body"]) == bool(runbook)


def test_a_runbook_in_words_shows_its_commands_as_such() -> None:
    shown = render_alert(replace(FIRING, runbook="Look at `ravebot list` & wait."))
    assert shown["formatted_body"].endswith("<br>What to do: Look at <code>ravebot list</code> &amp; wait.")


def test_the_largest_alert_fits_into_an_event() -> None:
    huge = replace(FIRING, name="<" * 100, severity="<" * 30, summary="<" * 300, description="<" * 600)
    assert size_bytes(render_alert(replace(huge, runbook="https://h/" + "&" * 490))) < 20_000


@pytest.mark.parametrize(
    ("severity", "sign", "kind"),
    [
        ("critical", "🔴", "m.text"),
        ("warning", "🟠", "m.text"),
        ("", "🟠", "m.text"),
        ("odd", "🟠", "m.text"),
        ("Info", "🔵", "m.notice"),
    ],
)
def test_what_fires_notifies_people_unless_it_is_mere_information(severity: str, sign: str, kind: str) -> None:
    shown = render_alert(replace(FIRING, severity=severity))
    assert shown["body"].startswith(f"{sign} {severity or 'Alert'}: QueueStuck\n")
    assert shown["msgtype"] == kind


def test_a_resolved_alert_says_how_long_it_fired_as_far_as_the_clocks_agree() -> None:
    over = replace(FIRING, status=AlertStatus.RESOLVED, ends_at=BEGAN + timedelta(minutes=42))
    assert "Fired for 42 min: from 2026-01-01 11:48 to 12:30 UTC" in render_alert(over)["body"]
    heard = replace(over, ends_at=None, resolved_at=BEGAN + timedelta(days=1, hours=2))
    assert "Fired for 1 d 2 h: from 2026-01-01 11:48 to 2026-01-02 13:48 UTC" in render_alert(heard)["body"]
    behind = replace(over, ends_at=None, resolved_at=BEGAN - timedelta(hours=1))
    assert render_alert(behind)["body"].endswith("Fired since 2026-01-01 11:48 UTC")
    assert render_alert(over)["msgtype"] == "m.notice"
