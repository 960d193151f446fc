"""Processes that tests start to kill them, forked from one that has imported what they run.

There is one such server in a process of tests, and what it has imported is decided once. A test file that names only
its own modules would decide for all others: each of their processes would then import for itself, for seconds.
"""

from __future__ import annotations

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "tests.support.agent_room",
        "tests.support.agent_world",
        "tests.support.api_dying",
        "tests.support.elsewhere_dying",
        "tests.support.little_doors",
        "tests.support.run_world",
    ]
)
