"""Pixels: cut out what matters, and write small PNG files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.pictures.programs import run

_COLOURS = "128"  # few enough for small files, and text stays as sharp as it was


@dataclass(frozen=True)
class Picture:
    """Rows of RGB bytes, from the top."""

    width: int
    rows: tuple[bytes, ...]

    @classmethod
    def read(cls, ppm: bytes) -> Picture:
        """Out of a binary PPM of 8 bits (https://netpbm.sourceforge.net/doc/ppm.html)."""
        head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", ppm)
        assert head, ppm[:40]
        width, height = int(head[1]), int(head[2])
        start, line = head.end(), width * 3
        return cls(width, tuple(ppm[start + line * y : start + line * (y + 1)] for y in range(height)))

    @property
    def height(self) -> int:
        return len(self.rows)

    def cut(self, left: int = 0, top: int = 0, right: int | None = None, bottom: int | None = None) -> Picture:
        """The part between these columns and rows; negative ones count from the other end, as in a slice."""
        columns = range(self.width)[left:right]
        return Picture(len(columns), tuple(row[columns.start * 3 : columns.stop * 3] for row in self.rows[top:bottom]))

    def without_blank_rows(self, margin: int = 8) -> Picture:
        """Without rows of the corner's colour at top and bottom, but for a margin."""
        blank = self.rows[0][:3] * self.width
        filled = [y for y, row in enumerate(self.rows) if row != blank]
        if not filled:
            return self
        return self.cut(top=max(0, filled[0] - margin), bottom=min(self.height, filled[-1] + 1 + margin))

    def from_first_gap(self, rows: int = 4) -> Picture:
        """Without what the top edge cuts in two: from the first so many blank rows on; all of it if there are none."""
        blank = self.rows[-1][:3] * self.width
        gaps = (y for y in range(self.height - rows + 1) if all(row == blank for row in self.rows[y : y + rows]))
        return self.cut(top=next(gaps, 0))

    def first_row_since(self, before: Picture) -> int:
        """Where new rows begin below the older picture's, which have moved up; 0 when none of those are left.

        One in ten of the older ones may look different: a client draws some again.
        """
        blank = before.rows[-1]
        filled = [y for y, row in enumerate(before.rows) if row != blank]
        end = filled[-1] + 1 if filled else 0
        for moved in range(end):
            kept = [y for y in filled if y >= moved]
            same = sum(before.rows[y] == self.rows[y - moved] for y in kept)
            if same * 10 >= len(kept) * 9:
                return end - moved
        return 0

    def coloured(self) -> list[tuple[int, int]]:
        """Every pixel (x, y) that is far from grey."""
        return [
            (x, y)
            for y, row in enumerate(self.rows)
            for x in range(self.width)
            if max(row[x * 3 : x * 3 + 3]) - min(row[x * 3 : x * 3 + 3]) > 60
        ]

    async def save(self, path: Path) -> None:
        """As a PNG with a palette."""
        ppm = b"P6\n%d %d\n255\n" % (self.width, self.height) + b"".join(self.rows)
        # White comes out of it a bit grey, and is mended.
        fewer = ("+dither", "-colors", _COLOURS, "-white-threshold", "99%")
        await run("convert", "ppm:-", *fewer, "-strip", f"PNG8:{path}", given=ppm)
