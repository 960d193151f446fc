"""Reads what Alertmanager sends, version 4, and cuts it to what is kept. Pure.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ravebot.errors import RavebotError
from ravebot.store.alerts import Alert, AlertStatus

MOST_ALERTS = 100
"""So many of one delivery are taken."""
_VERSION = "4"
_NAME, _SEVERITY, _SUMMARY, _DESCRIPTION, _RUNBOOK = 100, 30, 300, 600, 500
_LABEL = 80
_MOST_LABELS = 4
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


class NotAlerts(RavebotError):
    """The body is not what Alertmanager sends."""


@dataclass(frozen=True)
class AlertDelivery:
    """What one request tells. `left_out`: how many more alerts it has, or Alertmanager left out itself; `unread`: how
    many can't be understood."""

    alerts: tuple[Alert, ...]
    left_out: int = 0
    unread: int = 0


def read(body: bytes) -> AlertDelivery:
    """Raises NotAlerts, whose message says what to do."""
    try:
        content = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise NotAlerts("the body is not JSON in UTF-8: have Alertmanager send it") from error
    if not isinstance(content, Mapping) or content.get("version") != _VERSION:
        raise NotAlerts("the body is not Alertmanager's webhook in version 4: use a webhook_config of Alertmanager")
    found = content.get("alerts")
    if not isinstance(found, list):
        raise NotAlerts("the body has no list of alerts: use a webhook_config of Alertmanager")
    alerts = [_alert(one) for one in found[:MOST_ALERTS]]
    more = content.get("truncatedAlerts")
    left_out = len(found) - len(alerts) + (more if isinstance(more, int) and 0 < more < 10**6 else 0)
    return AlertDelivery(tuple([one for one in alerts if one is not None]), left_out, alerts.count(None))


def _alert(found: Any) -> Alert | None:
    if not isinstance(found, Mapping) or found.get("status") not in tuple(AlertStatus):
        return None
    starts_at = _moment(found.get("startsAt"))
    labels, annotations = _texts(found.get("labels")), _texts(found.get("annotations"))
    if starts_at is None or not labels:
        return None
    status = AlertStatus(found["status"])
    ends_at = _moment(found.get("endsAt")) if status is AlertStatus.RESOLVED else None
    given = found.get("fingerprint")
    summary = annotations.get("summary") or annotations.get("message") or ""
    description = annotations.get("description", "")
    return Alert(
        fingerprint=given if isinstance(given, str) and _FINGERPRINT.fullmatch(given) else _fingerprint(labels),
        starts_at=starts_at,
        status=status,
        name=_cut(labels.get("alertname") or "alert without a name", _NAME),
        severity=_cut(labels.get("severity", ""), _SEVERITY),
        summary=_cut(summary or description or _of_labels(labels), _SUMMARY),
        description=_cut(description if summary else "", _DESCRIPTION),
        runbook=_runbook(annotations.get("runbook_url") or annotations.get("runbook", "")),
        ends_at=ends_at if ends_at is not None and ends_at >= starts_at else None,
    )


def _moment(text: object) -> datetime | None:
    """The moment that Go's time.RFC3339Nano wrote; None for none, and for its zero, which means that there is none."""
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC) if isinstance(text, str) and len(text) <= 40 else None
    except (ValueError, OverflowError):
        return None
    return moment if moment is not None and moment >= _EARLIEST else None


def _texts(found: object) -> dict[str, str]:
    if not isinstance(found, Mapping):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _of_labels(labels: Mapping[str, str]) -> str:
    """What an alert without annotations is about."""
    shown = [(name, value) for name, value in sorted(labels.items()) if name not in ("alertname", "severity")]
    return ", ".join(f"{_cut(name, _LABEL)}={_cut(value, _LABEL)}" for name, value in shown[:_MOST_LABELS])


def _fingerprint(labels: Mapping[str, str]) -> str:
    """In place of Alertmanager's, which older versions do not send."""
    return hashlib.sha256(json.dumps(sorted(labels.items())).encode()).hexdigest()[:32]


def _cut(text: str, limit: int) -> str:
    """The text as one line without null characters, in at most `limit` characters and as valid UTF-8."""
    line = " ".join(text[: limit * 4].encode("utf-8", "replace").decode().replace("\0", "").split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _runbook(text: str) -> str:
    """An address, or a line; of an address that is too long nothing, as its beginning leads elsewhere."""
    line = _cut(text, _RUNBOOK)
    return "" if line.startswith("http") and line.endswith("…") else line
