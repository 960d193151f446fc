"""What a browser or a Matrix client shows of a message's HTML, as rows for a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from html.parser import HTMLParser


class Kind(Enum):
    """What a row is."""

    HEADING = auto()
    FACT = auto()
    CODE = auto()
    TEXT = auto()


@dataclass(frozen=True)
class Row:
    """One row; `label` is the first cell of a table's row, else empty. `text` can have several lines."""

    kind: Kind
    text: str
    label: str = ""


def rows_of(html: str) -> list[Row]:
    """The rows in their order; of what is folded up, only its summary.

    Only what ravebot and the stand-in write is understood; other tags count as text.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    reader.flush()
    return reader.rows


_ENDS = {"h3": Kind.HEADING, "p": Kind.TEXT, "li": Kind.TEXT, "pre": Kind.CODE}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[Row] = []
        self._text = ""
        self._cells: list[str] = []
        self._verbatim = False
        self._folded = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self._text += "\n"
        elif tag in {"table", "ul", "details", "summary", *_ENDS}:
            self.flush()
        if tag == "pre":
            self._verbatim = True
        if tag == "li":
            self._text = "· "
        if tag == "details":
            self._folded = True
        if tag == "summary":
            self._text = "▸ "
        if tag == "tr":
            self._cells = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "details":
            self._text = ""
            self._folded = False
        elif tag == "summary":
            self.rows.append(Row(Kind.TEXT, _tidy(self._text)))
            self._text = ""
        elif tag in {"td", "th"}:
            self._cells.append(_tidy(self._text))
            self._text = ""
        elif tag == "tr":
            self._end_of_row()
        elif tag == "pre":
            self._verbatim = False
            self._add(Row(Kind.CODE, self._text.strip("\n")))
            self._text = ""
        elif tag in _ENDS:
            self.flush(_ENDS[tag])

    def handle_data(self, data: str) -> None:
        # Line ends of the source are spaces to a browser, but for those of preformatted text.
        self._text += data if self._verbatim else re.sub(r"\s+", " ", data)

    def flush(self, kind: Kind = Kind.TEXT) -> None:
        """End the row under way, if there is any."""
        text = _tidy(self._text)
        self._text = ""
        if text:
            self._add(Row(kind, text))

    def _end_of_row(self) -> None:
        if any(self._cells):
            label, *rest = self._cells
            self._add(Row(Kind.FACT, "  ".join(rest), label))
        self._cells = []

    def _add(self, row: Row) -> None:
        if not self._folded:
            self.rows.append(row)


def _tidy(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().split("\n"))
