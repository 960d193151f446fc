"""What Matrix clients make a link, a pill or a preview of in a text: the union of their rules, and a little more.

Element Web uses linkify-js with known top-level domains; Element Android the `Patterns.WEB_URL` of its system, whose
labels may have any character from U+00A0 on (a word joiner too, which IDNA drops); Nheko `www.` and `scheme://`.
"""

from __future__ import annotations

import re

from linkify_it import LinkifyIt  # type: ignore[import-untyped]

_LETTER = r"[^\W\d_]"
_LABEL = r"[\w\u00ad\u034f\u200b-\u200d\u2060\ufe0f\ufeff-]"
_LINK = re.compile(
    rf"""
    [a-z][a-z0-9+.-]*://                                # any scheme
    | \bwww\.
    | {_LABEL}[.．｡]{_LETTER}{{2,}}(?!\w)                # a domain, whatever its top-level domain
    | {_LABEL}[.．｡]xn--
    | {_LABEL}。[a-z]{{2,}}(?!\w)
    | \b[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}             # an IPv4 address
    | \b(?:mailto|matrix|tel|sms|magnet|xmpp|geo|ssh):\S
    | [@#!][^\s:@#!]+:[\w\[]                            # a user, an alias, a room
    """,
    re.VERBOSE | re.IGNORECASE,
)
_linkify = LinkifyIt().add("//", None)  # no client links `//host`


def client_links(text: str) -> list[str]:
    """What some client makes of a plain text, or of the text of an HTML one."""
    fuzzy = [match.raw for match in _linkify.match(text) or ()]
    return fuzzy + [match[0] for match in _LINK.finditer(text)]
