"""Reads JUnit reports, which come from guests: any bytes are answered with counts or one line, in bounded memory.

No tree is built, entities and document types are refused, and depth and the number of elements have limits. Texts are
masked before they are cut to what is kept: half a secret would not be known as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from ravebot.sandboxes.masking import masked
from ravebot.sandboxes.results import LONGEST_MESSAGE, LONGEST_NAME, MOST_CASES, CaseCounts, FailedCase

_DEEPEST = 50
_MOST_ELEMENTS = 200_000
_LONGEST_TIME = 10.0**7
_MOST_READ = 8_192  # characters of a text that are looked at for secrets
_FAILED = frozenset(("failure", "error"))


class _TooMuchError(Exception):
    """A report beyond the limits; its text says which."""


def read_report(content: bytes, mask: Callable[[str], str] = masked) -> CaseCounts:
    """What one report says. One that is wrong counts no test, and has one problem. May take a second: use a thread."""
    reader = _CaseReader(mask)
    parser = DefusedXMLParser(target=reader, forbid_dtd=True)
    try:
        parser.feed(content)
        parser.close()
    except DefusedXmlException:
        return _wrong("it declares a document type or entities, which a report does not need")
    except ParseError as error:
        line, column = error.position
        return _wrong(f"it is not XML that can be read (line {line}, column {column + 1})")
    except _TooMuchError as error:
        return _wrong(str(error))
    except (ValueError, LookupError):
        return _wrong("its encoding is not known: write it in UTF-8")
    if not reader.is_report:
        return _wrong("it is XML, but no JUnit report: its outermost element must be testsuites or testsuite")
    return reader.counts


def _wrong(why: str) -> CaseCounts:
    return CaseCounts(problems=(why,))


class _CaseReader:
    """Counts while the parser reads."""

    def __init__(self, mask: Callable[[str], str]) -> None:
        self._mask = mask
        self.is_report = False
        self._depth = 0
        self._elements = 0
        self._total = self._failed = self._skipped = 0
        self._seconds = 0.0
        self._failures: list[FailedCase] = []
        self._name: str | None = None  # of the test that is being read
        self._how = ""
        self._message = ""
        self._text: list[str] | None = None  # of the failure that is being read
        self._length = 0

    @property
    def counts(self) -> CaseCounts:
        return CaseCounts(self._total, self._failed, self._skipped, self._seconds, tuple(self._failures))

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > _DEEPEST:
            raise _TooMuchError(f"its elements are nested more than {_DEEPEST} deep")
        if self._elements > _MOST_ELEMENTS:
            raise _TooMuchError(f"it has more than {_MOST_ELEMENTS} elements")
        name = tag.rpartition("}")[2]
        if self._depth == 1:
            self.is_report = name in ("testsuites", "testsuite")
        if name == "testcase" and self._name is None:
            self._begin(attributes)
        elif self._name is not None and name in _FAILED and self._how != "failed":
            self._how = "failed"
            self._message = _beginning(attributes.get("message", ""))
            if not self._message.strip():
                self._text, self._length = [], 0
        elif self._name is not None and name == "skipped" and not self._how:
            self._how = "skipped"

    def data(self, text: str) -> None:
        if self._text is not None and self._length <= _MOST_READ:
            self._text.append(text[: _MOST_READ + 1])
            self._length += len(text)

    def end(self, tag: str) -> None:
        self._depth -= 1
        name = tag.rpartition("}")[2]
        if name in _FAILED and self._text is not None:
            self._message, self._text = _beginning("".join(self._text)).strip(), None
        if name == "testcase" and self._name is not None:
            self._finish(self._name)

    def close(self) -> None:
        """As the parser's interface wants."""

    def _begin(self, attributes: dict[str, str]) -> None:
        parts = [_beginning(attributes.get(part, "")) for part in ("classname", "name")]
        self._name = ".".join(part for part in parts if part) or "a test without a name"
        self._how = self._message = ""
        self._seconds += _seconds(attributes.get("time", ""))

    def _finish(self, name: str) -> None:
        self._total += 1
        self._skipped += self._how == "skipped"
        if self._how == "failed":
            self._failed += 1
            if len(self._failures) < MOST_CASES:
                shown = self._mask(name)[:LONGEST_NAME], self._mask(self._message)[:LONGEST_MESSAGE]
                self._failures.append(FailedCase(*shown))
        self._name, self._text = None, None


def _beginning(text: str) -> str:
    """As much as is looked at, without the word that the cut goes through."""
    if len(text) <= _MOST_READ:
        return text
    cut = text[:_MOST_READ]
    return cut[: -len(cut.split()[-1])] if cut.rstrip() == cut and len(cut.split(maxsplit=1)) == 2 else cut


def _seconds(text: str) -> float:
    try:
        seconds = float(text[:30].replace(",", ""))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and 0 <= seconds <= _LONGEST_TIME else 0.0
