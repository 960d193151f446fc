"""Makes text from people and guests harmless before it is shown in a room.

Clients make links of addresses in plain text, and have their homeserver fetch a preview, which tells the address's
owner that and when somebody reads. So `https://evil.example` is shown as `https[:]//evil[.]example`. A word joiner
would look better, but is no protection: Android's pattern for links takes it for a part of a domain, and IDNA drops it
(https://www.unicode.org/reports/tr46/). Brackets are in no domain, and people know them from warnings of phishing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from ravebot.sandboxes.view import without_terminal_codes

_ELLIPSIS = "…"
WORD_JOINER = "\u2060"
_TAB_AND_SPACE = " \t\r\v\f"
# Control, format (bidi overrides, zero-width, tags), surrogate, private use, unassigned, line and paragraph
# separators: they are invisible, and can change how the text around them is shown.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_PING = re.compile(r"@(?=room)|(?<!\w)@(?=\w)", re.IGNORECASE)
# `a://`, schemes that Element links without slashes, and the ids of users and rooms: their last character is bracketed.
_COLON = re.compile(
    r":(?=//)|(?:bitcoin|ftp|geo|ircs?|magnet|mailto|matrix|mms|news|sips?|sms|smsto|ssh|tel|urn|webcal|xmpp):(?=[^\s\]])"
    r"|[@#!][^\s:@#!]*:(?=[^\s\]])",
    re.IGNORECASE,
)
# The dot before a top-level domain, of an IPv4 address, and after `www`. Names of files and keys look like domains too:
# no list of top-level domains is asked, and a text may be cut behind the first letters of a longer word.
_DOT = re.compile(
    r"(?<=[^\s/.\]])(?:[.．｡](?=[^\W\d_]{2})|。(?=[a-z]{2}))"
    r"|[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.(?=[0-9])|(?<=www)\.",
    re.IGNORECASE,
)
_MAX_COMBINING = 4


def one_line(text: str, limit: int = 200) -> str:
    """The text as one line of at most `limit` characters, without mentions, links and invisible characters."""
    return _shorten(_unlink(_unping(" ".join(visible(text, limit).split()))), limit)


def block(text: str, limit: int = 2000) -> str:
    """The end of a program's output, with its line breaks, in at most `limit` characters."""
    tail = without_terminal_codes(text[-limit * 2 :])
    lines = (visible(line, limit).rstrip() for line in re.split(r"\r\n|\n|\r", tail))
    shown = _unlink(_unping("\n".join(lines).strip("\n")))
    return shown if len(shown) <= limit else _ELLIPSIS + shown[-(limit - 1) :]


def lines(text: str, limit: int = 40_000) -> str:
    """The text with its line breaks, in at most `limit` characters of its beginning."""
    kept = (
        visible(line, limit).rstrip() for line in re.split(r"\r\n|\n|\r", without_terminal_codes(text[: limit * 2]))
    )
    return _shorten(_unlink(_unping("\n".join(kept).strip("\n"))), limit)


@dataclass(frozen=True)
class Risks:
    """Where a text would be taken for a mention (after which character) or an address (which colon, which dot)."""

    pings: frozenset[int]
    colons: frozenset[int]
    dots: frozenset[int]


def risks(text: str) -> Risks:
    """The places that the other functions here mend, for a text that is shown in pieces."""
    return Risks(
        frozenset(match.start() for match in _PING.finditer(text)),
        frozenset(match.end() - 1 for match in _COLON.finditer(text)),
        frozenset(match.end() - 1 for match in _DOT.finditer(text)),
    )


def last_lines(text: str, most: int = 8, limit: int = 800) -> str:
    """The last whole lines of a text, at most `most` and `limit` characters; of one that is too long, its end."""
    lines = block(text, limit * 2).split("\n")[-most:]
    while len(lines) > 1 and sum(map(len, lines)) + len(lines) > limit:
        del lines[0]
    shown = "\n".join(lines)
    return shown if len(shown) <= limit else _ELLIPSIS + shown[-(limit - 1) :]


def visible(text: str, limit: int) -> str:
    """The text without invisible characters; whitespace becomes spaces, and series of combining marks are cut."""
    shown: list[str] = []
    marks = 0
    for character in text[: limit * 4]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if character in _TAB_AND_SPACE or character == "\n" or category in ("Zl", "Zp"):
            shown.append(" ")
        elif category not in _INVISIBLE and marks <= _MAX_COMBINING:
            shown.append(character)
    return "".join(shown)


def _unping(text: str) -> str:
    """`@room` and `@alice` stay readable, but no client takes them for a mention."""
    return _PING.sub("@" + WORD_JOINER, text)


def _unlink(text: str) -> str:
    """Addresses stay readable, but no client links or previews them."""
    for pattern in (_COLON, _DOT):
        text = pattern.sub(lambda match: f"{match[0][:-1]}[{match[0][-1]}]", text)
    return text


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + _ELLIPSIS
