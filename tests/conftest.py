"""What all tests share."""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support.libvirtd import with_libvirtd

# A shell's background jobs ignore SIGINT, and so would every process that a test starts, to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)

_BESIDE_RESTARTS = tuple(
    f"tests/acceptance/test_{name}" for name in ("cleanup", "commands", "demo", "hostile", "sandbox")
)
_OF_IMAGES = ("tests/acceptance/test_debian_image", "tests/integration/test_image_check")
_BUILDS_ONLY = "tests/acceptance/test_debian_image.py::test_two_who_want"  # takes minutes, and needs no libvirtd
_WITH_RESTARTS = ("tests/acceptance/", "tests/integration/test_provider_libvirt_")


def _need(nodeid: str) -> str:
    """What a test needs for itself: others that need the same do not run beside it."""
    if nodeid.startswith(_BESIDE_RESTARTS):
        return "machines"
    if nodeid.startswith(_WITH_RESTARTS) and not nodeid.startswith(_OF_IMAGES):
        return "machines and libvirtd's restarts"
    return nodeid.partition("::")[0]


class _ByNeed(LoadScopeScheduling):
    """What `./dev test` runs in one process, beside the others': two groups that boot machines, which take longest, and
    of the rest each file, because its tests may share a Synapse.

    Not by `--dist loadgroup`, which pytest 9.2 broke: https://github.com/pytest-dev/pytest-xdist/issues/1386
    """

    def _split_scope(self, nodeid: str) -> str:
        return _need(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ByNeed(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    boots = _need(item.nodeid) == "machines" or item.nodeid.startswith(_OF_IMAGES)
    if not boots or item.nodeid.startswith(_BUILDS_ONLY):
        return (yield)
    with with_libvirtd():
        return (yield)
