"""Checks of GitLab: the token, its role on each project, and the webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, date, datetime, timedelta
from urllib.parse import quote

from ravebot.commands.permissions import DEVELOPER
from ravebot.config.file import LoadedConfig
from ravebot.config.patterns import matches_project
from ravebot.errors import ConfigError, Unavailable
from ravebot.gitlab import hooks
from ravebot.gitlab.hookapi import role_level
from ravebot.gitlab.hooks import HookCondition
from ravebot.gitlab.webhook import signing_key
from ravebot.operations.doctor import citokens
from ravebot.operations.doctor.finding import Finding, Verdict, failed, ok, unknown, warning
from ravebot.operations.doctor.services import Answer, GitlabAccess, mend
from ravebot.operations.gitlabroute import gitlab_route
from ravebot.operations.hooks import registry, wording

_EXPIRES_SOON = timedelta(days=14)
_PAGE, _MOST_PAGES = 100, 10
_MOST_PROJECTS = 20
"""Projects that are checked for one pattern: each takes two requests."""


async def check(loaded: LoadedConfig) -> AsyncIterator[Finding | Answer]:
    """Findings, and the answers whose clocks are compared."""
    if loaded.secrets.webhook_signing is not None:
        try:
            signing_key(loaded.secrets.webhook_signing)
        except ConfigError as error:
            yield failed("gitlab webhook", f"gitlab.webhook.signing_token_file: {error}", "copy it from GitLab again")
    base = str(loaded.config.gitlab.url).rstrip("/")
    api = f"{base}/api/v4"
    access = GitlabAccess(loaded.secrets.gitlab_token, gitlab_route(loaded))
    try:
        me = await access.get(f"{api}/user")
    except Unavailable as error:
        yield unreachable(base, error)
        return
    yield me
    identity = user(base, me)
    yield identity
    if identity.verdict is not Verdict.OK:
        return
    try:
        yield await token(api, access)
        async for finding in _projects(loaded, api, access):
            yield finding
        async for finding in _owners(loaded, api, access):
            yield finding
        if about_jobs := await citokens.check(loaded.config, base, access):
            yield about_jobs
    except Unavailable as error:
        yield failed("gitlab", f"the connection was lost during the checks: {error}", "try again; see GitLab's log")


def unreachable(base: str, error: Unavailable) -> Finding:
    return failed("gitlab", f"{base} can't be reached: {error}", mend(error, "gitlab.url"))


def user(base: str, me: Answer) -> Finding:
    """Whether that is GitLab's answer about the token's user, and who it is."""
    if me.status in (401, 403):
        fix = "put a token with the scope api into gitlab.token_file"
        return failed("gitlab token", f"refused by {base} ({me.status}): expired, revoked or without scope", fix)
    username = me.field("username")
    if me.status != 200 or not isinstance(username, str):
        fix = "gitlab.url must be GitLab's base address, without /api"
        return failed("gitlab", f"{base} answers with status {me.status} and is not GitLab", fix)
    return ok("gitlab", f"{base} answers; ravebot is @{username} there")


async def token(api: str, access: GitlabAccess) -> Finding:
    """Scopes and expiry: https://docs.gitlab.com/api/personal_access_tokens/ (of group and project tokens, too)."""
    found = await access.get(f"{api}/personal_access_tokens/self")
    scopes = found.field("scopes")
    if found.status != 200 or not isinstance(scopes, list):
        fix = "check by hand that it has the scope api"
        return unknown("gitlab token", f"accepted; its scopes can't be read ({found.status})", fix)
    if "api" not in scopes:
        fix = "create a token with the scope api, and put it into gitlab.token_file"
        return failed("gitlab token", f"has only the scopes {', '.join(map(str, scopes))}", fix)
    expires = found.field("expires_at")
    if isinstance(expires, str):
        try:
            day = date.fromisoformat(expires[:10])
        except ValueError:
            return ok("gitlab token", "scope api")
        if day - datetime.now(UTC).date() < _EXPIRES_SOON:
            return warning("gitlab token", f"expires on {day}", "rotate it in time")
        return ok("gitlab token", f"scope api, expires on {day}")
    return ok("gitlab token", "scope api")


async def _projects(loaded: LoadedConfig, api: str, access: GitlabAccess) -> AsyncIterator[Finding]:
    """Each project that is named, and the first ones that each pattern matches."""
    config = loaded.config
    patterns = [pattern for pattern in config.gitlab.projects if "*" in pattern]
    for path in config.gitlab.projects:
        if path not in patterns:
            async for finding in _project(loaded, api, access, path):
                yield finding
    if not patterns:
        return
    listed = await listed_projects(api, access)
    if isinstance(listed, Finding):
        yield listed
        return
    seen = set(config.gitlab.projects)
    for pattern in patterns:
        matching = [path for path in listed if matches_project((pattern,), path)]
        if not matching:
            fix = "add the bot's user to one as Developer, or change gitlab.projects"
            yield failed("gitlab project", f"{pattern}: the bot's user is not a member of any matching project", fix)
            continue
        yield ok(
            "gitlab project", f"{pattern}: {len(matching)} project{'s match' if len(matching) != 1 else ' matches'}"
        )
        fresh = [path for path in matching if path not in seen]
        for path in fresh[:_MOST_PROJECTS]:
            seen.add(path)
            async for finding in _project(loaded, api, access, path):
                yield finding
        if len(fresh) > _MOST_PROJECTS:
            detail = f"{pattern}: {len(fresh) - _MOST_PROJECTS} more were not checked, from {fresh[_MOST_PROJECTS]} on"
            yield unknown("gitlab project", detail, "to check others, name them in gitlab.projects beside the pattern")


async def listed_projects(api: str, access: GitlabAccess) -> list[str] | Finding:
    """The paths of the projects that the bot polls, at most the newest thousand.

    https://docs.gitlab.com/api/projects/#list-all-projects
    """
    paths: list[str] = []
    for page in range(1, _MOST_PAGES + 1):
        query = f"membership=true&simple=true&archived=false&per_page={_PAGE}&page={page}"
        listed = await access.get(f"{api}/projects?{query}")
        if listed.status != 200 or not isinstance(listed.body, list):
            return failed("gitlab project", f"projects can't be listed ({listed.status})", "see GitLab's log")
        found = [project.get("path_with_namespace") for project in listed.body if isinstance(project, dict)]
        paths += [path for path in found if isinstance(path, str)]
        if len(listed.body) < _PAGE:
            break
    return paths


async def _project(loaded: LoadedConfig, api: str, access: GitlabAccess, path: str) -> AsyncIterator[Finding]:
    found, _, project = await _seen(api, access, path)
    yield found
    if found.verdict is Verdict.OK:
        if loaded.config.gitlab.environments and project.get("environments_access_level") == "disabled":
            detail = f"{path}: Environments are switched off in its settings, so its sandboxes are not on that page"
            yield warning("gitlab environments", detail, "switch them on, or set gitlab.environments: false")
        yield await _webhook(loaded, f"{api}/projects/{quote(path, safe='')}", access, path)


async def role(api: str, access: GitlabAccess, path: str) -> tuple[Finding, int]:
    """Whether the token's user may do on that project what ravebot does there, and its access level."""
    found, level, _ = await _seen(api, access, path)
    return found, level


async def _seen(api: str, access: GitlabAccess, path: str) -> tuple[Finding, int, Mapping[str, object]]:
    """The same, and what GitLab tells of the project."""
    address = f"{api}/projects/{quote(path, safe='')}"
    project = await access.get(address)
    if project.status != 200:
        fix = "add the bot to it as Developer, or change gitlab.projects"
        why = f"{path} does not exist or is not visible to the bot ({project.status})"
        return failed("gitlab project", why, fix), 0, {}
    level = role_level(project.body) if isinstance(project.body, dict) else 0
    if level < DEVELOPER:
        why = f"{path}: the bot's role is below Developer"
        return failed("gitlab project", why, "give it at least this role"), level, {}
    facts = project.body if isinstance(project.body, dict) else {}
    return ok("gitlab project", f"{path}: the bot's role is sufficient"), level, facts


async def _owners(loaded: LoadedConfig, api: str, access: GitlabAccess) -> AsyncIterator[Finding]:
    """Whether each agent that can be spoken to belongs to somebody: without an owner's rights it may do nothing."""
    agents = [agent for agent in loaded.config.agents if agent.can_be_spoken_to and agent.owner]
    for owner in dict.fromkeys(agent.owner for agent in agents):
        names = ", ".join(agent.name for agent in agents if agent.owner == owner)
        found = await access.get(f"{api}/users?username={quote(owner or '', safe='')}")
        if found.status != 200 or not isinstance(found.body, list):
            yield unknown("agent owner", f"{names}: users can't be looked up ({found.status})", "see GitLab's log")
        elif not found.body:
            fix = "write the name of a GitLab user into agents[].owner; until then every message to it is refused"
            yield failed("agent owner", f"{names}: GitLab has no user {owner}", fix)
        else:
            yield ok("agent owner", f"{names}: {owner}")


async def _webhook(loaded: LoadedConfig, address: str, access: GitlabAccess, path: str) -> Finding:
    name = "gitlab webhook"
    wanted = registry.target(loaded.config)
    listed = await access.get(f"{address}/hooks?per_page=100")
    if listed.status in (401, 403, 404):
        how = f"Settings, Webhooks: {wanted.address}, with the secret, for comments and merge request events"
        return unknown(
            name, f"{path}: only a Maintainer can see webhooks", f"check by hand that it is set in {path}: {how}"
        )
    found = hooks.compare(listed.body if isinstance(listed.body, list) else [], wanted, registry.secrets(loaded))
    refused = False
    if found.condition is HookCondition.RIGHT:
        events = await access.get(f"{address}/hooks/{found.keep_id}/events?per_page=1")
        refused = hooks.was_refused(events.body)  # never where GitLab doesn't tell (before 17.3)
    state = wording.seen(path, found, wanted, refused=refused)
    said = f"{path}: {state.detail}"
    return ok(name, said) if state.ok else failed(name, said, f"{state.fix}, or do it on GitLab's page of the project")
