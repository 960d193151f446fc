"""What all tests share."""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support.libvirtd import with_libvirtd

# A shell's background jobs ignore SIGINT, and so would every process that a test starts, to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Others take the processor meanwhile: how long an example took says nothing.
settings.register_profile("ravebot", deadline=None)
settings.load_profile("ravebot")

_BUILDS_ONLY = "tests/acceptance/test_debian_image.py::test_two_who_want"  # takes minutes, and needs no libvirtd
_RESTARTS = (  # and what takes too long for who waits to restart libvirtd
    "tests/acceptance/test_agents",
    "tests/acceptance/test_outages",
    "tests/integration/test_provider_libvirt_qemu",
)
_BOOTS = ("tests/acceptance/", "tests/integration/test_provider_libvirt_", "tests/integration/test_image_check")
_ONE_BY_ONE = (  # files whose tests share nothing
    "tests/acceptance/test_demo",
    "tests/acceptance/test_quiet_rooms",
    "tests/acceptance/test_sandbox_life",
    "tests/integration/test_image_check",
)


def _need(nodeid: str) -> str:
    """What a test needs for itself: others that need the same do not run beside it."""
    if nodeid.startswith(_RESTARTS):
        return "libvirtd's restarts"
    if nodeid.startswith(_ONE_BY_ONE):
        return nodeid
    return nodeid.partition("::")[0]


class _ByNeed(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """What `./dev test` runs in one process, beside the others': the tests that restart libvirtd, and of the rest each
    file, because its tests may share a Synapse or a machine. Most of the time is waiting.

    Not by `--dist loadgroup`, which pytest 9.2 broke: https://github.com/pytest-dev/pytest-xdist/issues/1386
    """

    def _split_scope(self, nodeid: str) -> str:
        return _need(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ByNeed(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    boots = item.nodeid.startswith(_BOOTS) and not item.nodeid.startswith((*_RESTARTS, _BUILDS_ONLY))
    if not boots:
        return (yield)
    with with_libvirtd():
        return (yield)
