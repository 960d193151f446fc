"""What all tests share."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

_ON_LIBVIRTD = ("tests/acceptance/", "tests/integration/test_provider_libvirt_")


class _ByNeed(LoadScopeScheduling):
    """What `./dev test` runs in one process, beside the other's: a host has one libvirtd, and tests restart it, so that
    theirs go one after another; of the others each file, because its tests may share a Synapse.

    Not by `--dist loadgroup`, which pytest 9.2 broke: https://github.com/pytest-dev/pytest-xdist/issues/1386
    """

    def _split_scope(self, nodeid: str) -> str:
        return "libvirtd" if nodeid.startswith(_ON_LIBVIRTD) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ByNeed(config, log)
