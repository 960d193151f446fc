"""Checks that concern several keys of a configuration, by noun; `values` and `model` check each key by itself."""

from __future__ import annotations

from ravebot.config.checks import addresses, agents, host, models, projects
from ravebot.config.checks.remarks import Remarks
from ravebot.config.model import Config


def check(config: Config) -> Remarks:
    """Every error and every warning."""
    errors = (
        *host.alternatives(config),
        *addresses.addresses(config),
        *addresses.hosts(config),
        *host.ports(config),
        *host.api(config),
        *host.folders(config),
        *host.networks(config),
        *host.lifetimes(config),
        *host.alerts(config),
        *host.usage_report(config),
        *agents.agents(config),
        *agents.default_agents(config),
        *models.models(config),
        *projects.labels(config),
    )
    warnings = (
        *host.open_access(config),
        *addresses.unencrypted(config),
        *host.rooms(config),
        *host.useless_warnings(config),
        *projects.useless_limits(config),
        *agents.useless_agents(config),
        *models.useless_models(config),
    )
    return Remarks(errors, warnings)
