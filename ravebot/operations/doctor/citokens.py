"""Checks of what the door for CI jobs needs of GitLab: its public keys, and the address that it writes into tokens."""

from __future__ import annotations

import json

from ravebot.config.model import Config
from ravebot.gitlab.ci.keys import read_keys
from ravebot.gitlab.fields import Malformed
from ravebot.operations.doctor.finding import Finding, failed, ok, warning
from ravebot.operations.doctor.services import GitlabAccess

_NAME = "gitlab ci"


async def check(config: Config, base: str, access: GitlabAccess) -> Finding | None:
    """None where the door is closed. Raises Unavailable if GitLab can't be reached."""
    if config.gitlab.ci is None:
        return None
    shown = await access.get(f"{base}/oauth/discovery/keys")
    try:
        keys = read_keys(json.dumps(shown.body if shown.status == 200 else None).encode())
    except Malformed as error:
        why = f"tokens of jobs can't be checked: {base}/oauth/discovery/keys shows no keys ({shown.status}, {error})"
        return failed(_NAME, why, "have GitLab's administrator look whether OpenID Connect works there")
    issuer = (await access.get(f"{base}/.well-known/openid-configuration")).field("issuer")
    wanted = str(config.gitlab.ci.issuer or config.gitlab.url).rstrip("/")
    if isinstance(issuer, str) and issuer.rstrip("/") != wanted:
        why = f"GitLab calls itself {issuer[:200]} in tokens of jobs, and ravebot expects {wanted}: it refuses them all"
        return warning(_NAME, why, f"set gitlab.ci.issuer: {issuer[:200]}")
    return ok(_NAME, f"tokens of jobs for {config.ci_audience} can be checked, with {len(keys)} keys")
