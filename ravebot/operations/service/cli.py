"""The commands of the service: `ravebot uninstall`, and what its timer runs."""

from __future__ import annotations

from ravebot.terminal import DEFAULT_CONFIG, ConfigPath, clean, output


def tend_logs(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Let ravebot's user read its machines' logs, and remove those that are a week old; needs root."""
    from ravebot.config.file import read
    from ravebot.operations.service.logs import tend

    tend(read(config), lambda text: output.say(clean(text)))
