"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_ON_LIBVIRTD = (_TESTS / "acceptance", _TESTS / "integration" / "test_provider_libvirt_qemu.py")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `./dev test` runs at the same time: a host has one libvirtd, and tests restart it, so that theirs go one
    after another; of the others each file, because its tests share a Synapse."""
    for item in items:
        on_libvirtd = any(item.path.is_relative_to(place) for place in _ON_LIBVIRTD)
        item.add_marker(pytest.mark.xdist_group("libvirtd" if on_libvirtd else item.path.name))
