"""Shows an agent's Markdown as HTML that can do nothing: no link, no image, no mention, no HTML of its own.

The plain form is the Markdown itself. Addresses are made unclickable in both, as everywhere in rooms; only in code do
names such as `app.py` stay as they are, because no client that shows HTML makes links in code. So a name that stands by
itself is shown as code, too: agents speak of files all the time.
"""

from __future__ import annotations

import html
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ravebot.matrix.content import Span, preformatted
from ravebot.matrix.text import WORD_JOINER, Risks, lines, risks, visible
from ravebot.sandboxes.view import without_terminal_codes

_DEEPEST = 12
"""Levels of lists and quotes; a text with more is shown as it is, since the parser leaves out what lies deeper."""
_PARSER = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).disable(["reference", "autolink"])
_TABLE = re.compile(r"[ \t]*\|?[ \t:|]*-[-: |\t]*\Z")
_NAME = re.compile(r"(?<![\w.@:/-])[\w-]+(?:[./][\w-]+)+(?![\w@/-]|\.\w|:\S)")
_TAGS = {
    "strong_open": "<strong>",
    "strong_close": "</strong>",
    "em_open": "<em>",
    "em_close": "</em>",
    "softbreak": "<br>",
    "hardbreak": "<br>",
    "bullet_list_open": "<ul>",
    "bullet_list_close": "</ul>",
    "ordered_list_close": "</ol>",
    "list_item_open": "<li>",
    "list_item_close": "</li>",
    "blockquote_open": "<blockquote>",
    "blockquote_close": "</blockquote>",
    "hr": "<hr>",
}
_HEADINGS = {"h1": "h4", "h2": "h5"}


def agents_words(text: str) -> Span:
    """The text in both forms; takes at most a fraction of a second for 10,000 characters, whatever they are."""
    source = without_terminal_codes(text).replace("\r\n", "\n").replace("\r", "\n")
    plain = lines(source, 2 * len(source) + 100)
    tokens = _PARSER.parse(source)
    if max((token.level for token in tokens), default=0) > _DEEPEST:
        return Span(plain, preformatted(plain).html)
    paragraphs = [token for token in tokens if token.level == 0 and token.nesting >= 0]
    alone = len(paragraphs) == 1 and paragraphs[0].type == "paragraph_open"
    return Span(plain, "".join(_blocks(tokens, source.split("\n"), alone=alone)))


def code_block(text: str) -> Span:
    """A text as a block of code, in both forms."""
    return Span(lines(text, 2 * len(text) + 100), _code_block(text))


def code_line(text: str, limit: int = 200) -> Span:
    """A text as code inside a line, in at most `limit` characters."""
    shown = " ".join(visible(text, limit).split())
    cut = shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
    return Span(lines(cut, 2 * limit), f"<code>{_shown(cut, risks(cut), 0, code=True)}</code>")


def _blocks(tokens: Sequence[Token], source: list[str], *, alone: bool) -> Iterator[str]:
    table = False
    for token in tokens:
        match token.type:
            case "paragraph_open":
                table = _is_table(token, source)
                yield "" if alone or token.hidden or table else "<p>"
            case "paragraph_close":
                yield "" if alone or token.hidden or table else "</p>"
                table = False
            case "heading_open" | "heading_close":
                yield f"<{'/' if token.nesting < 0 else ''}{_HEADINGS.get(token.tag, 'h6')}>"
            case "ordered_list_open":
                start = str(token.attrs.get("start", ""))
                yield f'<ol start="{start}">' if start.isdecimal() and start.isascii() else "<ol>"
            case "inline":
                yield _code_block(token.content) if table else _inline(token.children or ())
            case "fence" | "code_block":
                yield _code_block(token.content)
            case _:
                yield _TAGS.get(token.type, "")


def _is_table(token: Token, source: list[str]) -> bool:
    """Whether a paragraph is a table: those are shown as they were written, in columns, since few clients draw them."""
    first, last = token.map or (0, 0)
    return last - first > 1 and "|" in source[first + 1] and _TABLE.match(source[first + 1]) is not None


def _code_block(text: str) -> str:
    shown = "\n".join(visible(line, len(line) + 1).rstrip() for line in text.rstrip("\n").split("\n"))
    return f"<pre><code>{_shown(shown, risks(shown), 0, code=True)}</code></pre>"


@dataclass(frozen=True)
class _Piece:
    """A text inside a line, or a tag of ours."""

    text: str = ""
    tag: str = ""
    code: bool = False


def _inline(tokens: Sequence[Token]) -> str:
    """The pieces of a line. What makes an address is looked for in all of it, since tags hide nothing from clients."""
    pieces = list(_pieces(tokens))
    whole = "".join("\n" if piece.tag == "<br>" else piece.text for piece in pieces)
    found = risks(whole)
    spans = (name.span() for name in _NAME.finditer(whole))
    names = deque(span for span in spans if any(at in found.dots for at in range(*span)))
    shown: list[str] = []
    at = 0
    for piece in pieces:
        if piece.tag:
            shown.append(piece.tag)
            at += piece.tag == "<br>"
            continue
        after = at + len(piece.text)
        inside: list[tuple[int, int]] = []
        while names and names[0][0] < after:
            name = names.popleft()
            inside += [name] if name[1] <= after else []
        for start, end in [(at, after)] if piece.code else inside:
            shown.append(_shown(whole[at:start], found, at, code=False))
            shown.append(f"<code>{_shown(whole[start:end], found, start, code=True)}</code>")
            at = end
        shown.append(_shown(whole[at:after], found, at, code=False))
        at = after
    return "".join(shown)


def _pieces(tokens: Sequence[Token]) -> Iterator[_Piece]:
    targets: list[str] = []
    for token in tokens:
        if token.type == "link_open":
            targets.append(str(token.attrs.get("href", "")))
        elif token.type == "link_close":
            yield _text(f" ({targets.pop()})")
        elif token.type == "image":
            yield _text(f"{token.content or 'image'} ({token.attrs.get('src', '')})")
        elif token.type in _TAGS:
            yield _Piece(tag=_TAGS[token.type])
        else:
            yield _text(token.content, code=token.type == "code_inline")


def _text(text: str, *, code: bool = False) -> _Piece:
    return _Piece(visible(text, len(text) + 1), code=code)


def _shown(text: str, found: Risks, start: int, *, code: bool) -> str:
    """The text, which begins at `start` of that in which the risks were found, escaped and without them."""
    shown: list[str] = []
    for at, character in enumerate(text, start):
        inside = code and start < at < start + len(text) - 1
        if at in found.colons or (at in found.dots and not inside):
            shown.append(f"[{character}]")
        elif at in found.pings:
            shown.append(character + WORD_JOINER)
        else:
            shown.append(html.escape(character))
    return "".join(shown)
