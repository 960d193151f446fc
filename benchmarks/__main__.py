"""`python -m benchmarks [NAME…] [--json]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from benchmarks import (
    agents,
    api,
    card,
    coldstart,
    endurance,
    gateway,
    gitlabcalls,
    idle,
    images,
    pool,
    scrape,
    webhook,
)
from benchmarks.figures import Figure, Result, as_json, machine_facts, show
from tests.support.stage import Guest

BENCHMARKS: dict[str, tuple[str, Callable[[], Awaitable[tuple[Figure, ...]]]]] = {
    "webhook": ("POST to a committed 2xx, 100 a second", webhook.measure),
    "card": ("webhook to the card in a member's sync, compared with a plain message", card.measure),
    "coldstart": ("merge request opened to announced, without the machine's boot", coldstart.measure),
    "pool": ("one pass of the pool's loop with 10, 100 and 1,000 machines", pool.measure),
    "agents": (
        "a message to the agent's first byte, its word to the room; 50 conversations, 10,000 messages",
        agents.measure,
    ),
    "endurance": ("50 threads with 200 messages each, while the runner is killed at random", endurance.measure),
    "gateway": ("an agent's request to a model, compared with asking the service directly", gateway.measure),
    "api": ("calls of tools by MCP, and requests to the API, 100 a second", api.measure),
    "gitlab": ("calls to GitLab: a merge request, an idle hour, a burst of 500 webhooks", gitlabcalls.measure),
    "images": ("a 2 GB image from a pipeline: fetched, converted, and booted a second time", images.measure),
    "scrape": ("/metrics while 1,000 sandboxes run", scrape.measure),
    "idle": ("processor time with nothing to do", idle.measure),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks. Returns 0 even if an aim is missed: figures from a busy machine prove little."""
    chosen = _parser().parse_args(arguments)
    sys.setswitchinterval(0.0005)  # the GitLab stand-in shares this process: it must not delay what is timed
    facts = machine_facts()
    if not chosen.json:
        print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    results = []
    benchmarks = {name: measure for name, (_, measure) in BENCHMARKS.items()}
    benchmarks["coldstart"] = partial(coldstart.measure, chosen.guest)
    for name in chosen.names or BENCHMARKS:
        began, load = time.monotonic(), os.getloadavg()[0]
        print(f"{name}: {BENCHMARKS[name][0]} …", file=sys.stderr, flush=True)
        try:
            figures = asyncio.run(_until_told_to_stop(benchmarks[name]))
        except (KeyboardInterrupt, asyncio.CancelledError):
            print("stopped; everything that was created has been removed", file=sys.stderr)
            return 130
        result = Result(name, load, time.monotonic() - began, figures)
        results.append(result)
        if not chosen.json:
            show(result)
            sys.stdout.flush()
    if chosen.json:
        print(as_json(facts, results))
    return 0


async def _until_told_to_stop(measure: Callable[[], Awaitable[tuple[Figure, ...]]]) -> tuple[Figure, ...]:
    """Ctrl-C and SIGTERM once: clean up, then end."""
    task = asyncio.current_task()
    assert task
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    return await measure()


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<10} {what}" for name, (what, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description="Measure ravebot on throwaway parts: Synapse, the GitLab stand-in, libvirt. Needs root.",
        epilog=f"benchmarks (all of them unless named):\n{names}\n\n"
        "Figures never fail a build: other work on the machine moves them. Compare within one run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*BENCHMARKS, []], help="which ones")
    parser.add_argument(
        "--guest", nargs="+", type=Guest, choices=list(Guest), default=[Guest.TINY], help="of coldstart; default: tiny"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
