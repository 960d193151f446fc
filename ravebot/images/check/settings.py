"""What an image is checked with: a configuration, adapted to the image."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from ravebot.config.model import Config


def for_image(config: Config, image: Path) -> Config:
    """The configuration with that image. Kernel and initrd belong to the configured image, and go with no other."""
    if image.resolve() == config.provider.image.resolve():
        return config
    changes = {"image": image, "kernel": None, "initrd": None, "cmdline": ""}
    return config.model_copy(update={"provider": config.provider.model_copy(update=changes)})


def with_agent_limit(config: Config, limit: timedelta) -> Config:
    """The configuration with another time limit for the guest agent's first answer."""
    return config.model_copy(update={"pool": config.pool.model_copy(update={"build_timeout": limit})})
