"""The command: `./dev demo [--keep]`, and with a demo that was kept `./dev demo say|comment|push|open|…`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

_NEEDED = ("libvirt", "rich", "nio", "synapse", "aiohttp")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything that was told was also seen."""
    given = _parser().parse_args(arguments)
    missing = ", ".join(module for module in _NEEDED if find_spec(module) is None)
    if missing:
        return _sorry(f"these Python packages are missing: {missing}. Run it as ./dev demo, which installs them")
    if not given.command and os.geteuid() != 0:
        return _sorry("virtual machines, bridges and firewall rules need root: run it as ./dev demo, which asks sudo")
    # Only now: these import what was just looked for.
    from tests.support.demo import sample
    from tests.support.demo.play import work
    from tests.support.demo.run import Demo
    from tests.support.demo.story import SETTINGS
    from tests.support.demo.watch import DemoError
    from tests.support.stage import Guest, Stage

    if not given.command:
        guest = Guest.TINY if given.tiny else Guest.DEBIAN
        return asyncio.run(
            Demo(given.keep, Stage(SETTINGS, guest=guest, gitlab_port=given.port, files=sample.FILES)).run()
        )
    try:
        print(asyncio.run(work(given.command, getattr(given, "text", ""), given.who, given.ref)))
    except DemoError as error:
        return _sorry(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev demo",
        description="Show the whole bot at work: a throwaway Synapse, a GitLab stand-in, a real virtual machine.",
        epilog="Without a command, the demo runs. The first time it builds the machines' image, as"
        " `ravebot image build --preset web` does, with a small coding agent in it; .cache/debian-image keeps it."
        " The commands act on one that runs with --keep in another terminal.",
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running to play with, until Ctrl-C")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="boot the tests' tiny guest instead of a Debian image: sooner ready, without the agent",
    )
    parser.add_argument("--port", type=int, default=0, help="port of the GitLab stand-in on 127.0.0.1; free by default")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, text, purpose in (
        ("say", "TEXT", "say something in the room"),
        ("comment", "TEXT", "comment on the merge request"),
        ("push", "GREETING", "push a commit with another greeting to its branch"),
        ("open", "TITLE", "open another merge request"),
        ("close", "", "close the merge request"),
        ("merge", "", "merge it"),
        ("reopen", "", "reopen it"),
    ):
        command = commands.add_parser(name, help=purpose)
        command.add_argument("--as", dest="who", default="alice", help="who does it; default: alice")
        command.add_argument("--mr", dest="ref", default="!1", help="which merge request; default: !1")
        if text:
            command.add_argument("text", metavar=text)
    return parser


def _sorry(message: str) -> int:
    print(f"demo: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
