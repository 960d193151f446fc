"""Takes a picture of a web page with Chromium, which shows no window for that."""

from __future__ import annotations

import tempfile
from pathlib import Path

import aiohttp

from tests.support.pictures.picture import Picture
from tests.support.pictures.programs import run

_WIDTH, _HEIGHT = 1000, 4000
_TIMEOUT_SECONDS = 120


async def page(url: str, *, unfolded: bool = False, style: str = "") -> Picture:
    """The page from its top to the last thing on it; `unfolded` also shows what has to be clicked on to be seen, and
    `style` is more CSS."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    shown = text.replace("<details>", "<details open>") if unfolded else text
    return await photograph(shown.replace("</style>", f"{style}</style>"), _WIDTH)


async def photograph(html: str, width: int) -> Picture:
    """A page of that text, from its top to the last thing on it."""
    with tempfile.TemporaryDirectory(prefix="ravebot-page-", ignore_cleanup_errors=True) as folder:
        file, shot = Path(folder, "page.html"), Path(folder, "page.png")
        file.write_text(html)
        await run(
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--hide-scrollbars", f"--user-data-dir={folder}/profile", f"--window-size={width},{_HEIGHT}"),
            *(f"--screenshot={shot}", file.as_uri()),
            timeout=_TIMEOUT_SECONDS,
        )
        taken = Picture.read(await run("convert", str(shot), "-depth", "8", "ppm:-"))
    bottom = taken.rows[-1]
    last = max((y for y, row in enumerate(taken.rows) if row != bottom), default=0)
    return taken.cut(bottom=last + 25)
