"""Wraps python-gitlab: timeouts, no retries, ravebot's own errors, and answers checked to be JSON objects.

python-gitlab drops the response headers of an error and has no limit on waiting after a 429, so both are handled here.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import gitlab
import requests
from gitlab.exceptions import GitlabAuthenticationError, GitlabError, GitlabParsingError, RedirectError

from ravebot.clock import Clock
from ravebot.errors import Forbidden, NotFound, RavebotError, SlowDown, Unacceptable, Unavailable
from ravebot.gitlab.fields import Json, Malformed
from ravebot.gitlab.route import DIRECT, GitlabRoute

T = TypeVar("T")
Told = Callable[[int | None, float], None]
"""Called from any thread with each answer's status (None: there was none), and the seconds until it began."""
_ITEMS_PER_PAGE = "100"
TIMEOUT_SECONDS = 20.0  # to connect, and between two pieces of an answer
_LONGEST_WAIT_SECONDS = 3600.0
_TRY_LATER = frozenset({408, 409, 425, 429, 499})  # 409: GitLab's "Resource lock"


def tell_nobody(_status: int | None, _seconds: float) -> None:
    """Where nobody counts."""


class TokenRefused(Unavailable):
    """GitLab refuses our token, and its file has no other."""


class Unanswered(Unavailable):
    """A request was sent, and GitLab did not answer: it may have been carried out, or may still be."""


class _UnansweredSlowDown(Unanswered, SlowDown):
    """A proxy stopped waiting for GitLab, and says when to try again."""


class _Elsewhere(requests.RequestException):
    """GitLab redirects to another host, where our token must not go (requests removes only Authorization)."""


class _Client:
    """One thread's connection; `retry_after` is the header of the last answer."""

    def __init__(self, url: str, token: str, timeout_seconds: float, route: GitlabRoute, told: Told) -> None:
        self.retry_after = ""
        self._told = told
        self.token = token
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy, certificates or .netrc of whoever started ravebot
        if route.proxy is not None:
            self.session.proxies = {"http": route.proxy, "https": route.proxy}
        self.session.hooks["response"].append(self._remember)
        self.api = gitlab.Gitlab(
            url,
            private_token=token,
            ssl_verify=route.trusted(),
            timeout=timeout_seconds,
            retry_transient_errors=False,
            keep_base_url=True,  # never send the token to another host by following a page link
            user_agent="ravebot",
            session=self.session,
        )

    def _remember(self, response: requests.Response, *_args: object, **_kwargs: object) -> None:
        self.retry_after = response.headers.get("Retry-After", "")
        self._told(response.status_code, response.elapsed.total_seconds())
        if response.is_redirect and not _same_host(response.url, response.headers["Location"]):
            raise _Elsewhere


class Transport:
    """Requests to one GitLab; every method blocks, and raises NotFound, Forbidden, Unavailable or Malformed."""

    def __init__(
        self,
        url: str,
        token: str,
        clock: Clock,
        timeout_seconds: float = TIMEOUT_SECONDS,
        route: GitlabRoute = DIRECT,
        told: Told = tell_nobody,
    ) -> None:
        self._url, self._token, self._route, self._told = url, token, route, told
        self._renewing = threading.Lock()
        self.renewals = 0
        """How many times another token was found in its file, after GitLab had refused the one before."""
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self.stopping = threading.Event()

    def close(self) -> None:
        """Close every connection; call it when no request is running."""
        for session in self._sessions:
            session.close()

    def get(self, path: str) -> Json:
        return _object(self._run(lambda api: api.http_get(path, obey_rate_limit=False)))

    def post(self, path: str, body: Mapping[str, object]) -> Json:
        return _object(self._run(lambda api: api.http_post(path, post_data=dict(body), obey_rate_limit=False)))

    def put(self, path: str, body: Mapping[str, object]) -> Json:
        return _object(self._run(lambda api: api.http_put(path, post_data=dict(body), obey_rate_limit=False)))

    def head(self, path: str, **query: str) -> Mapping[str, str]:
        """The headers of the answer, whatever their case."""
        return self._run(
            lambda api: api.http_request("head", path, query_data=dict(query), obey_rate_limit=False).headers
        )

    def delete(self, path: str) -> None:
        self._run(lambda api: api.http_delete(path, obey_rate_limit=False))

    def list(self, path: str, **query: str) -> Iterator[Json]:
        """Every item of every page; pages are fetched when they are needed, each as long as GitLab allows.

        With `per_page=""` they have GitLab's own length, for a list that does not take another.
        """
        asked = {name: value for name, value in {"per_page": _ITEMS_PER_PAGE, **query}.items() if value}
        pages = self._run(lambda api: iter(api.http_list(path, query_data=asked, iterator=True, obey_rate_limit=False)))
        end = object()
        # A page that was refused can't be asked for again here: the iterator has ended.
        while (item := self._run(lambda _api: next(pages, end), again=False)) is not end:
            yield _object(item)

    def stream(self, path: str, take: Callable[[requests.Response], T], **query: str) -> T:
        """Give the open response to `take`, piece by piece from the network."""

        def run(api: gitlab.Gitlab) -> T:
            response = api.http_request("get", path, query_data=dict(query), streamed=True, obey_rate_limit=False)
            with response:
                return take(response)

        return self._run(run)

    def _run(self, function: Callable[[gitlab.Gitlab], T], *, again: bool = True) -> T:
        client = self._client()
        try:
            return function(client.api)
        except (GitlabError, requests.RequestException) as error:
            if isinstance(error, requests.RequestException) and error.response is None:
                self._told(None, 0.0)
            refused = isinstance(error, GitlabError) and error.response_code == 401
            if refused and self._renewed(client.token) and again:
                return self._run(function, again=False)
            raise self._translated(error, client.retry_after) from error
        except (LookupError, TypeError, AttributeError) as error:  # python-gitlab raises these for JSON that is no list
            raise Malformed("no JSON of the form that was asked for") from error

    def _client(self) -> _Client:
        client: _Client | None = getattr(self._local, "client", None)
        if client is None or client.token != self._token:
            if client is not None:
                client.session.close()
                self._sessions.remove(client.session)
            client = self._local.client = _Client(
                self._url, self._token, self._timeout_seconds, self._route, self._told
            )
            self._sessions.append(client.session)
        return client

    def _renewed(self, refused: str) -> bool:
        """Whether there is another token than the one that GitLab refused: its file is read again."""
        with self._renewing:
            if self._token == refused and self._route.newest_token is not None:
                try:
                    newest = self._route.newest_token()
                except ValueError:  # told when the refusal is
                    return False
                if newest != refused:
                    self._token = newest
                    self.renewals += 1
            return self._token != refused

    def _translated(self, error: GitlabError | requests.RequestException, retry_after: str) -> RavebotError:
        if isinstance(error, RedirectError | _Elsewhere):
            return Unavailable(f"GitLab redirects {self._url} elsewhere: set gitlab.url to where it redirects to")
        if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in repr(error):
            return Unavailable(f"GitLab's certificate at {self._url} is not trusted: {self._route.how_to_trust}")
        if isinstance(error, requests.exceptions.ProxyError):
            return Unavailable(
                "the proxy between ravebot and GitLab can't be used: it does not answer, refuses the connection, or"
                " wants another login; check gitlab.proxy and gitlab.proxy_login_file"
            )
        if isinstance(error, requests.RequestException):
            refused = isinstance(error, requests.ConnectTimeout) or "NewConnectionError" in repr(error)
            kind = Unavailable if refused else Unanswered
            why = f"GitLab at {self._url} does not answer ({type(error).__name__})"
            return kind(f"{why}: ravebot tries again; check gitlab.url, the network and GitLab's log")
        if isinstance(error, GitlabParsingError):
            return Malformed("no JSON")
        status = error.response_code or 0
        said = _said(error)
        if isinstance(error, GitlabAuthenticationError) or status == 401:
            return TokenRefused(
                "GitLab refuses our token (401): it was revoked or has expired; put a new one with scope api into "
                "gitlab.token_file, which ravebot then reads again"
            )
        if status == 407:
            return Unavailable(
                "the proxy between ravebot and GitLab wants another login: gitlab.proxy_login_file has it"
            )
        if status == 404:
            return NotFound(f"GitLab has no such thing, or the bot may not see it ({said})")
        if status in _TRY_LATER or status >= 500 or status < 400:
            wait = retry_after_seconds(retry_after, self._clock.now())
            why = f"GitLab answers {status} for now ({said})"
            if wait is not None:
                return (SlowDown if _is_gitlabs(status) else _UnansweredSlowDown)(why, wait)
            return (Unavailable if _is_gitlabs(status) else Unanswered)(why)
        if status == 403 and "insufficient_scope" in said:
            return Forbidden(
                f"GitLab refuses it (403: {said}): put a token with scope api into gitlab.token_file and restart"
            )
        if status == 403:
            return Forbidden(f"GitLab refuses it (403: {said}): give the bot's user the role Developer there")
        return Unacceptable(f"GitLab does not take what we asked ({status}: {said})")


def _is_gitlabs(status: int) -> bool:
    """Whether an answer with that status surely comes from GitLab itself, which then no longer works on the request.

    502, 503 and 504, 408, nginx's 499 and the 520s of a CDN may come from a proxy that gave up waiting.
    """
    return status == 500 or (status < 500 and status not in (408, 499))


def _same_host(here: str, location: str) -> bool:
    try:
        there = urlsplit(urljoin(here, location))
    except ValueError:
        return False
    return urlsplit(here)[:2] == there[:2]


def retry_after_seconds(header: str, now: datetime) -> float | None:
    """A Retry-After header in seconds, from a number or a date (RFC 9110, 10.2.3); None when it is neither."""
    try:
        seconds = float(header) if header.strip().isdigit() else (parsedate_to_datetime(header) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS)


def _said(error: GitlabError) -> str:
    message = error.error_message
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    return re.sub(r"[^ -~]+", " ", text)[:200].strip()


def _object(value: object) -> Json:
    if not isinstance(value, Mapping):
        raise Malformed("no JSON object")
    return value
