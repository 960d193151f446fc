"""Masks what looks like a secret in a command's output, before it is kept or shown. Pure.

It finds the shapes of well-known tokens; it can't find a secret that looks like a word.
"""

from __future__ import annotations

import re

from ravebot.sandboxes.view import without_terminal_codes

MASK = "[masked]"

_KEY_END = r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY = re.compile(rf"-----BEGIN [A-Z0-9 ]{{0,40}}PRIVATE KEY(?: BLOCK)?-----.*?(?:{_KEY_END}|\Z)", re.DOTALL)
_END_OF_KEY = re.compile(_KEY_END)
_LINE_OF_KEY = re.compile(r"[\w :=+/,.-]*[A-Za-z0-9+/=]{16,}\s*")
_EDGE = r"(?: (?<![A-Za-z0-9]) | (?<=\\[nrt]) )"
"""Before a token: no letter or digit, or a line's end as JSON and logs write it."""
_TOKEN = re.compile(
    r"""(?x)
      _EDGE_ (?: glpat | gloas | gldt | glrt | glcbt | glptt | glft | glsoat | glimt | glagent | glffct ) -
        [\w.-]{10,}
    | _EDGE_ rave_ [\w-]{16,}
    | _EDGE_ (?: gh[pousr]_ | github_pat_ ) \w{16,}
    | _EDGE_ xox[a-z] - [\w-]{10,}
    | _EDGE_ (?: AKIA | ASIA ) [A-Z0-9]{16} (?![A-Za-z0-9])
    | _EDGE_ (?: syt_ | whsec_ | npm_ | pypi- ) [\w+/=-]{12,}
    | _EDGE_ sk- [\w-]{20,}
    | _EDGE_ AIza [\w-]{30,}
    | (?<![\w-]) eyJ [\w-]{10,500} \. [\w-]{10,2000} \. [\w-]{5,1000}
    """.replace("_EDGE_", _EDGE)
)
_IN_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")  # up to the last @: many a password has one
_HEADER = re.compile(
    r"(?i)\b(authorization:\s{0,9}(?:bearer|basic)\s{1,9}|(?:private|job|deploy)-token:\s{0,9})[\w.~+/=-]{8,}"
    r"|\b(bearer\s{1,9})[\w.~+/=-]{20,}"
)
_PARAMETER = re.compile(
    r"(?i)(?<=[?&;])(access_token|private_token|job_token|token|secret|password|signature)=[^&\s\"'<>]+"
)


def masked(text: str) -> str:
    """The text without terminal codes, whose last letter would join a token, and with `[masked]` in the place of
    everything that looks like a secret."""
    text = without_terminal_codes(text)
    text = _without_rest_of_key(_PRIVATE_KEY.sub(MASK, text))
    text = _IN_URL.sub(MASK, text)
    text = _HEADER.sub(lambda match: (match[1] or match[2]) + MASK, text)
    text = _PARAMETER.sub(lambda match: f"{match[1]}={MASK}", text)
    return _TOKEN.sub(MASK, text)


def _without_rest_of_key(text: str) -> str:
    """Of a key whose first line was cut away, with the beginning of the output."""
    found = _END_OF_KEY.search(text)
    if found is None:
        return text
    before, rest = text[: found.start()].split("\n"), text[found.end() :]
    kept = len(before) - 1
    while kept and _LINE_OF_KEY.fullmatch(before[kept - 1][:200]):
        kept -= 1
    return "".join(f"{line}\n" for line in before[:kept]) + MASK + rest
