"""Looks at, registers and removes ravebot's webhook in each project of the configuration, one after the other.

A project that refuses is told of and does not stop the others. All of it can be repeated, and interrupted anywhere:
each step starts from what GitLab has now. A webhook to any other address is never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from ravebot.commands.permissions import role
from ravebot.config.file import LoadedConfig
from ravebot.config.model import Config
from ravebot.config.patterns import matches_project
from ravebot.errors import ConfigError, Forbidden, NotFound, RavebotError, SlowDown, Unacceptable, Unavailable
from ravebot.gitlab import hooks
from ravebot.gitlab.fields import Json
from ravebot.gitlab.hookapi import MAINTAINER, HookApi, HookedProject
from ravebot.gitlab.hooks import HookComparison, HookCondition, HookSecrets, HookTarget
from ravebot.gitlab.transport import TokenRefused
from ravebot.gitlab.webhook import signing_key
from ravebot.operations.gitlabroute import gitlab_route
from ravebot.operations.hooks import wording
from ravebot.operations.hooks.wording import HookState
from ravebot.web.server import WEBHOOK_PATH

Act = Callable[[HookApi, HookedProject], Awaitable[HookState]]
Say = Callable[[HookState], None]
_ATTEMPTS = 3
_LONGEST_WAIT_SECONDS = 60.0


def target(config: Config) -> HookTarget:
    """Where webhooks must go; without http.public_url only the path is known."""
    base = str(config.http.public_url or "https://ADDRESS-OF-RAVEBOT").rstrip("/")
    return HookTarget(f"{base}{WEBHOOK_PATH}", config.http.public_url is not None)


def secrets(loaded: LoadedConfig) -> HookSecrets:
    return HookSecrets(loaded.secrets.webhook_secret, loaded.secrets.webhook_signing)


async def look(
    loaded: LoadedConfig, *, projects: Iterable[str] | None = None, say: Say | None = None
) -> list[HookState]:
    """How each project's webhook is. Raises Unavailable if GitLab can't be used at all."""

    async def act(api: HookApi, project: HookedProject) -> HookState:
        return await _seen(loaded, api, project, deliveries=True)

    return await _each(loaded, act, projects, say)


async def glance(
    loaded: LoadedConfig, projects: Iterable[tuple[int, str]], *, deliveries: bool = False
) -> list[HookState]:
    """The same of projects whose ids are known, with one request for each; one more with `deliveries`, which finds a
    secret that ravebot refuses. Raises TokenRefused and SlowDown."""
    states: list[HookState] = []
    async with _api(loaded) as api:
        for number, path in projects:
            try:
                states.append(await _seen(loaded, api, HookedProject(number, path, 0), deliveries=deliveries))
            except (TokenRefused, SlowDown):
                raise
            except RavebotError as error:
                states.append(wording.unanswered(path, str(error)))
    return states


async def _seen(loaded: LoadedConfig, api: HookApi, project: HookedProject, *, deliveries: bool) -> HookState:
    wanted = target(loaded.config)
    found = hooks.compare(await api.hooks(project.id), wanted, secrets(loaded))
    refused = False
    if deliveries and found.condition is HookCondition.RIGHT and found.keep_id is not None:
        refused = await api.latest_was_refused(project.id, found.keep_id)
    return wording.seen(project.path, found, wanted, refused=refused)


async def install(
    loaded: LoadedConfig,
    *,
    projects: Iterable[str | int] | None = None,
    ssl_verification: bool | None = None,
    test: bool = False,
    say: Say | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> list[HookState]:
    """Give each project exactly one right webhook, with the secrets that the configuration names now.

    `projects`: paths or ids; the state has the path that one has now. `ssl_verification` None leaves it as it is, or
    on. `test` lets GitLab send an event at once. Raises ConfigError without http.public_url or with a malformed signing
    token, and Unavailable if GitLab can't be used at all.
    """
    wanted, ours = _known_target(loaded.config), secrets(loaded)
    if ours.signing_token is not None:
        try:
            signing_key(ours.signing_token)
        except ConfigError as error:
            raise ConfigError(f"gitlab.webhook.signing_token_file: {error}") from error

    async def act(api: HookApi, project: HookedProject) -> HookState:
        before = hooks.compare(await api.hooks(project.id), wanted, ours)
        answer = await _set(api, project, before, wanted, ours, ssl_verification)
        after = hooks.compare(await api.hooks(project.id), wanted, ours)
        for other in after.surplus:
            await api.delete(project.id, hooks.hook_id(other))
        state = wording.installed(project.path, before, after, wanted, ours, answer)
        return await _tested(api, project, after, state) if test and state.ok else state

    return await _each(loaded, act, projects, say, sleep)


async def remove(
    loaded: LoadedConfig,
    *,
    projects: Iterable[str] | None = None,
    say: Say | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> list[HookState]:
    """Remove ravebot's webhook from each project; `projects` may name some that are no longer configured."""
    wanted, ours = _known_target(loaded.config), secrets(loaded)

    async def act(api: HookApi, project: HookedProject) -> HookState:
        found = hooks.compare(await api.hooks(project.id), wanted, ours)
        there = (*([found.keep] if found.keep is not None else []), *found.surplus)
        for hook in there:
            await api.delete(project.id, hooks.hook_id(hook))
        return wording.removed(project.path, len(there), found, wanted)

    return await _each(loaded, act, projects, say, sleep, unconfigured=True)


async def _set(
    api: HookApi,
    project: HookedProject,
    before: HookComparison,
    wanted: HookTarget,
    ours: HookSecrets,
    ssl_verification: bool | None,
) -> Json:
    """Make or edit it; returns GitLab's answer. What GitLab has disabled is made anew, the new one first."""
    keep = before.keep
    if ssl_verification is None:  # nobody said: what somebody chose for this webhook stays
        ssl_verification = keep is None or keep.get("enable_ssl_verification") is not False
    anew = keep is None or (before.condition is HookCondition.DISABLED and hooks.may_be_made_anew(keep))
    if anew:
        # Two that do this at once both find the other's afterwards, and keep the same one.
        return await api.create(project.id, hooks.to_create(wanted, ours, ssl_verification))
    assert keep is not None
    return await api.edit(project.id, hooks.hook_id(keep), hooks.to_edit(keep, ours, ssl_verification))


async def _tested(api: HookApi, project: HookedProject, after: HookComparison, state: HookState) -> HookState:
    assert after.keep_id is not None
    try:
        await api.test(project.id, after.keep_id)
    except NotFound:
        return wording.untestable(state)
    except (Forbidden, Unavailable) as error:  # no new attempt: the webhook is in place
        return wording.tested(state, str(error))
    return wording.tested(state, None)


async def _each(
    loaded: LoadedConfig,
    act: Act,
    projects: Iterable[str | int] | None,
    say: Say | None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    *,
    unconfigured: bool = False,
) -> list[HookState]:
    states: list[HookState] = []
    async with _api(loaded) as api:
        await api.me()  # a wrong token or address is one error, not one for each project
        async for path in _paths(loaded.config, api, projects, unconfigured):
            served = () if unconfigured else loaded.config.gitlab.projects
            state = path if isinstance(path, HookState) else await _one(api, act, path, sleep, served)
            states.append(state)
            if say is not None:
                say(state)
    return states


async def _one(
    api: HookApi, act: Act, asked: str | int, sleep: Callable[[float], Awaitable[None]], served: tuple[str, ...]
) -> HookState:
    """Act on one project; on one that is named by its id only if it still is one of those that are `served`.

    A request that got no answer may have been carried out, so it is begun again by looking."""
    project: HookedProject | None = None
    path = str(asked)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            project = await api.project(asked)
            if isinstance(asked, int):
                path = project.path
                if not matches_project(served, path):
                    return wording.not_configured(path)
            return await act(api, project)
        except Unacceptable as error:
            return wording.not_taken(path, str(error))
        except (Forbidden, NotFound) as error:
            if project is None:
                return wording.not_visible(path)
            below = project.level < MAINTAINER
            if isinstance(error, NotFound) and not below and attempt < _ATTEMPTS:
                continue  # somebody else removed the webhook meanwhile
            return wording.forbidden(path, role(project.level) if project.level else "", str(error), below=below)
        except Unavailable as error:
            if attempt == _ATTEMPTS:
                return wording.unanswered(path, str(error))
            wait = error.retry_after_seconds if isinstance(error, SlowDown) else None
            await sleep(min(1.0 if wait is None else wait, _LONGEST_WAIT_SECONDS))
        except RavebotError as error:
            return wording.unanswered(path, str(error))
    raise AssertionError("unreachable: the last attempt returns")


async def _paths(
    config: Config, api: HookApi, projects: Iterable[str | int] | None, unconfigured: bool
) -> AsyncIterator[str | int | HookState]:
    """The projects to act on, each once; a state for what is none."""
    if projects is not None:
        for path in dict.fromkeys(projects):
            known = isinstance(path, int) or unconfigured or matches_project(config.gitlab.projects, path)
            yield path if known else wording.not_configured(str(path))
        return
    seen = {path for path in config.gitlab.projects if "*" not in path}
    for path in config.gitlab.projects:
        if path in seen:
            yield path
    for pattern in dict.fromkeys(path for path in config.gitlab.projects if "*" in path):
        try:
            matching = await api.matching((pattern,))
        except RavebotError as error:
            yield wording.unanswered(pattern, str(error))
            continue
        if not matching:
            yield wording.nothing_matches(pattern)
        for path in matching:
            if path not in seen:
                seen.add(path)
                yield path


def _known_target(config: Config) -> HookTarget:
    wanted = target(config)
    if not wanted.exact:
        raise ConfigError(
            "http.public_url is not set, so nobody knows where GitLab should send webhooks: set it to the address at "
            "which GitLab reaches ravebot, such as https://ravebot.example.org"
        )
    return wanted


@asynccontextmanager
async def _api(loaded: LoadedConfig) -> AsyncIterator[HookApi]:
    api = HookApi(str(loaded.config.gitlab.url), loaded.secrets.gitlab_token, route=gitlab_route(loaded))
    try:
        yield api
    finally:
        await api.close()
