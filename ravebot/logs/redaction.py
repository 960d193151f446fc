"""What must not be in the log: known secrets, and what looks like a token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from structlog.typing import EventDict, WrappedLogger

HIDDEN = "[hidden]"

_MIN_SECRET = 4
_TOKENS = re.compile(
    r"""(?ix)
      (?<=[?&;]) (access_token|private_token|job_token|token|secret|password|key|signature) = [^&\s"'<>]+
    | (?<=://) [^/\s:@]+ : [^/\s@]+ (?=@)
    | \b (?: bearer | basic ) \s+ [\w.~+/=-]{8,}
    | \b (?: glpat | gloas | gldt | glrt | glcbt | glptt | glft | glsoat ) - [\w.-]{10,}
    | \b rave_ [\w-]{20,} | \b syt_ \w+ | \b whsec_ [\w+/=]{8,}
    """
)


class Redaction:
    """Replaces known secrets, and everything that looks like a token, in all that is logged."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Also hide these from now on: the token of a new login, for example."""
        plain = [secret for secret in secrets if len(secret) >= _MIN_SECRET]
        known = {*self._secrets, *plain, *(quote(secret, safe="") for secret in plain)}
        # The longest first, because one secret may be part of another.
        self._secrets = tuple(sorted(known, key=len, reverse=True))

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {key: self.value(value) for key, value in event.items()}

    def value(self, value: object) -> object:
        """The same value without secrets. An object of another kind is replaced by its text if that contains one."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        shown = repr(value)
        hidden = self.text(shown)
        return value if hidden == shown and not isinstance(value, bytes | BaseException) else hidden

    def text(self, text: str) -> str:
        """The same text without secrets."""
        return _TOKENS.sub(_hide, self.without_known(text))

    def without_known(self, text: str) -> str:
        """The same text without the known secrets, whatever else looks like one."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


redaction = Redaction()
"""One per process, like the logging that it belongs to."""


def hide(secret: str) -> None:
    """Hide a secret, such as the token of a new login, from now on in all that is logged."""
    redaction.add([secret])


def hidden(text: str) -> str:
    """A text without the known secrets that the log hides, for what is shown elsewhere."""
    return redaction.without_known(text)


def _hide(match: re.Match[str]) -> str:
    return f"{match[1]}={HIDDEN}" if match[1] else HIDDEN
