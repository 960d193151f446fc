"""Whether machines run under KVM is found by booting one."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from ravebot.providers.libvirt.probe import boot, boot_sector, probe_kvm

pytestmark = pytest.mark.integration


class TestTheProbe:
    async def test_it_boots_with_emulation_everywhere(self, tmp_path: Path) -> None:
        disk = tmp_path / "boot.img"
        disk.write_bytes(boot_sector())
        assert (await boot("qemu-system-x86_64", "tcg", disk)).works

    async def test_a_disk_that_does_not_boot_is_no_success(self, tmp_path: Path) -> None:
        disk = tmp_path / "boot.img"
        disk.write_bytes(secrets.token_bytes(8) * 64)
        assert not (await boot("qemu-system-x86_64", "tcg", disk)).works

    async def test_no_device_and_no_emulator_are_reasons(self, tmp_path: Path) -> None:
        missing = await probe_kvm("qemu-system-x86_64", tmp_path / "kvm")
        assert (missing.works, "can't be opened" in missing.reason) == (False, True)
        disk = tmp_path / "boot.img"
        disk.write_bytes(boot_sector())
        absent = await boot(str(tmp_path / "qemu"), "tcg", disk)
        assert (absent.works, "can't be started" in absent.reason) == (False, True)
