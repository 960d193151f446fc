"""How GitLab is reached: whose certificate it must have, through which proxy, and where a new token is found."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from ravebot.config.model import GitLabConfig


@dataclass(frozen=True, repr=False)
class GitlabRoute:
    """`proxy` has its login in it. `newest_token` reads the token's file again; it raises ValueError.

    Nothing comes from the environment, whose variables would also concern other programs.
    """

    ca_file: Path | None = None
    proxy: str | None = None
    newest_token: Callable[[], str] | None = None

    def trusted(self) -> str | bool:
        """File or folder of certificates: the one that is set alone, or those that this host trusts.

        requests by itself would only trust those of certifi.
        """
        if self.ca_file is not None:
            return str(self.ca_file)
        paths = ssl.get_default_verify_paths()
        return paths.cafile or paths.capath or True

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))

    @property
    def how_to_trust(self) -> str:
        if self.ca_file is None:
            return "name the file of its own CA in gitlab.ca_file, or install its CA on this host"
        return f"it is not signed by a CA in {self.ca_file} (gitlab.ca_file)"


DIRECT = GitlabRoute()


def route_of(config: GitLabConfig, login: str | None, newest_token: Callable[[], str] | None = None) -> GitlabRoute:
    """`login` is what stands in `gitlab.proxy_login_file`: NAME:PASSWORD."""
    return GitlabRoute(config.ca_file, with_login(str(config.proxy), login) if config.proxy else None, newest_token)


def with_login(proxy: str, login: str | None) -> str:
    parts = urlsplit(proxy)
    name, _, password = (login or "").partition(":")
    before = f"{quote(name, safe='')}:{quote(password, safe='')}@" if login else ""
    return f"{parts.scheme}://{before}{parts.netloc}"
