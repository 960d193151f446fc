"""The command: `./dev pictures [--out FOLDER] [--docs] [--agents | --dashboards]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every picture was taken."""
    given = _parser().parse_args(arguments)
    # Only now: asking for help needs no package.
    from tests.support.pictures.needed import missing

    if packages := missing():
        return _sorry(f"install what is missing first: apt-get install {' '.join(packages)}")
    if os.geteuid() != 0:
        return _sorry("virtual machines, bridges and firewall rules need root: run it as ./dev pictures")
    from tests.support.pictures.programs import PictureError
    from tests.support.pictures.run import run

    folder = given.out or Path(tempfile.mkdtemp(prefix="ravebot-pictures-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        return _sorry(f"{folder} is not empty")
    print(f"The pictures go to {folder}", flush=True)
    try:
        return asyncio.run(run(folder, given.docs, given.agents, given.dashboards))
    except (PictureError, AssertionError) as error:
        return _sorry(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev pictures",
        description="Take pictures of a sandbox's life from a real run: the room in a desktop client, wide and narrow,"
        " a card's thread, every answer, and the merge request; with the room's text beside them.",
        epilog="It takes about ten minutes, and needs a client, a browser and a virtual screen: if some are missing, it"
        " says which Debian 12 packages to install.",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to; by default a new temporary folder")
    parser.add_argument(
        "--docs", action="store_true", help="write those of the documentation to docs/; skips the answers"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--agents", action="store_true", help="of a coding agent at work, on the Debian image, instead"
    )
    instead.add_argument(
        "--dashboards",
        action="store_true",
        help="of monitoring/grafana/, drawn from what a real Prometheus saw, instead",
    )
    return parser


def _sorry(message: str) -> int:
    print(f"pictures: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
