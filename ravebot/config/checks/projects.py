"""Checks of what projects may ask for in `.rave.yml`, and of the labels that beat it."""

from __future__ import annotations

from collections.abc import Iterator

from ravebot.config.checks.remarks import Remark
from ravebot.config.model import Config, LimitsConfig
from ravebot.config.tree import KeyPath


def labels(config: Config) -> Iterator[Remark]:
    where: KeyPath = ("gitlab", "labels")
    if config.gitlab.labels.skip == config.gitlab.labels.large:
        yield Remark(where, "skip and large are the same label: give each one of its own", (where,))


def useless_limits(config: Config) -> Iterator[Remark]:
    """A limit that is below what every sandbox gets; one that nobody changed may be."""
    usual = {
        "memory": ("sandbox.memory", config.sandbox.memory),
        "vcpus": ("sandbox.vcpus", config.sandbox.vcpus),
        "disk": ("sandbox.disk", config.sandbox.disk),
        "lifetime": ("pool.lifetime", config.pool.lifetime),
    }
    for key, (name, given) in usual.items():
        limit = getattr(config.limits, key)
        if limit < given and limit != LimitsConfig.model_fields[key].default:
            yield Remark(("limits", key), f"is below {name}, which every sandbox gets: it has no effect")
