"""Run the stand-in by itself: `python -m tests.support.gitlab --port 8929 --control 8930`; Ctrl-C ends it."""

from __future__ import annotations

import argparse
import asyncio
import signal

from aiohttp import web

from tests.support.gitlab.control import control_app
from tests.support.gitlab.server import GitLabServer


async def run(port: int, control: int) -> None:
    """Serve until told to stop; says where on standard output."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with GitLabServer(port) as gitlab:
        runner = web.AppRunner(control_app(gitlab), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", control).start()
            print(f"gitlab {gitlab.url} control http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
            await stop.wait()
        finally:
            await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="A GitLab stand-in on loopback, for tests and the demo.")
    parser.add_argument("--port", type=int, default=0, help="of the API and pages; 0 picks a free one")
    parser.add_argument("--control", type=int, default=0, help="port to work it by; 0 picks a free one")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.port, arguments.control))


if __name__ == "__main__":
    main()
