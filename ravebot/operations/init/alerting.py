"""What Alertmanager needs to send its alerts to ravebot; made from the configuration."""

from __future__ import annotations

from ravebot.config.model import Config
from ravebot.web.alerts.door import PATH

TOKEN = "/etc/alertmanager/ravebot-token"  # noqa: S105 - where Alertmanager's copy of it is
_EVERY_ADDRESS = ("0.0.0.0", "[::]")  # noqa: S104 - this host is one of them


def receiver(config: Config) -> str:
    """The lines for alertmanager.yml, as those of monitoring/alertmanager/alertmanager.yml."""
    host, _, port = config.http.listen.rpartition(":")
    return f"""\
receivers:
  - name: ravebot
    webhook_configs:
      - url: http://{"127.0.0.1" if host in _EVERY_ADDRESS else host}:{port}{PATH}
        send_resolved: true
        max_alerts: 100
        http_config:
          authorization:
            type: Bearer
            credentials_file: {TOKEN}
"""


def copying(config: Config) -> str:
    """The command that gives Alertmanager, which runs as Debian's user for it, its copy of the token."""
    return f"install -D -o prometheus -m 600 {config.monitoring.alertmanager_token_file} {TOKEN}"
