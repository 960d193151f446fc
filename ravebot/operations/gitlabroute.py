"""How this installation reaches GitLab, by its configuration."""

from __future__ import annotations

from ravebot import logs
from ravebot.config.file import LoadedConfig, newest_gitlab_token
from ravebot.gitlab.route import GitlabRoute, route_of


def gitlab_route(loaded: LoadedConfig) -> GitlabRoute:
    """A token that replaced the one of the start is hidden from the log, too."""

    def newest_token() -> str:
        token = newest_gitlab_token(loaded.config)
        logs.hide(token)
        return token

    return route_of(loaded.config.gitlab, loaded.secrets.gitlab_proxy_login, newest_token)
