"""What an image is checked with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Self

from ravebot.config.model import Config, LibvirtConfig, PoolConfig, SandboxConfig


@dataclass(frozen=True)
class Settings:
    """The sections of the configuration that decide how a machine is started, and by when it must have done what."""

    image: Path
    pool: PoolConfig
    sandbox: SandboxConfig
    provider: LibvirtConfig

    @classmethod
    def of(cls, config: Config, image: Path | None = None) -> Self:
        """Those of a configuration. Its kernel and initrd belong to its own image, and are not used for another."""
        provider = config.provider
        if image is not None and image.resolve() != provider.image.resolve():
            provider = provider.model_copy(update={"image": image, "kernel": None, "initrd": None, "cmdline": ""})
        return cls(provider.image, config.pool, config.sandbox, provider)

    def patient(self, limit: timedelta) -> Self:
        """With another time limit for the guest agent's first answer."""
        return replace(self, pool=self.pool.model_copy(update={"build_timeout": limit}))

    @classmethod
    def without_config(cls, image: Path) -> Self:
        """The defaults."""
        return cls(image, PoolConfig(max_running=2), SandboxConfig(host="sandbox.invalid"), LibvirtConfig(image=image))
