"""Markdown as GitLab shows it, near enough to judge a note by: tables, details, no script, no comments."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

# What may pass of HTML, without any attribute (GitLab's sanitiser lets more through).
_ALLOWED = re.compile(r"(</?(?:details|summary|br|kbd|sub|sup|b|i|strong|em|code)>)", re.IGNORECASE)
_EMOJI = {"tada": "🎉", "warning": "⚠️", "white_check_mark": "✅", "x": "❌", "eyes": "👀", "+1": "👍", "thumbsup": "👍",
          "rocket": "🚀", "hourglass": "⌛", "no_entry": "⛔", "question": "❓", "no_entry_sign": "🚫",
          "pause_button": "⏸️"}  # fmt: skip


def emoji(name: str) -> str:
    """The picture of a named emoji, or its name between colons."""
    return _EMOJI.get(name, f":{name}:")


class _Renderer(RendererHTML):
    """Escapes all HTML but a few plain tags; hidden comments vanish, as in GitLab."""

    def html_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return _sanitised(tokens[idx].content)

    def html_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return _sanitised(tokens[idx].content)

    def text(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        shown = re.sub(r":([a-z0-9_+]+):", lambda match: emoji(match[1]), tokens[idx].content)
        return html.escape(shown)


def _sanitised(source: str) -> str:
    without_comments = re.sub(r"<!--.*?(?:-->|$)", "", source, flags=re.DOTALL)
    parts = _ALLOWED.split(without_comments)
    return "".join(part.lower() if number % 2 else html.escape(part) for number, part in enumerate(parts))


_MARKDOWN = MarkdownIt("commonmark", renderer_cls=_Renderer).enable(["table", "strikethrough"])


def to_html(source: str) -> str:
    """The note's HTML; links are marked as not to be trusted."""
    rendered: str = _MARKDOWN.render(source)
    return rendered.replace("<a href=", '<a rel="nofollow noreferrer noopener" href=')
