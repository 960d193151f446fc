"""Which files may be the base of a sandbox's disk."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ravebot.errors import ImageError
from ravebot.providers.libvirt.disks import Disks, check_base, image_size

GIB = 1024**3


def header(*, magic: bytes = b"QFI\xfb", backing: int = 0, size: int = GIB, features: int = 0) -> bytes:
    start = struct.pack(">4sIQIIQ", magic, 3, backing, 0, 16, size)
    return start.ljust(72, b"\0") + struct.pack(">Q", features) + bytes(24)


def test_the_size_of_an_image_is_its_virtual_size(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(header(size=7 * GIB))
    assert image_size(image) == 7 * GIB


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a qcow2 image"),
        (header()[:40], "not a qcow2 image"),
        (header(magic=b"\x7fELF"), "not a qcow2 image"),
        (header(backing=4096), "refers to another file"),
        (header(features=1 << 2), "refers to another file"),
    ],
)
def test_what_is_no_image_of_its_own_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        image_size(image)


def test_a_missing_image_and_a_folder_are_refused_by_the_config_key(tmp_path: Path) -> None:
    for image in (tmp_path / "missing", tmp_path):
        with pytest.raises(ImageError, match=r"provider\.image"):
            image_size(image)


def test_a_disk_smaller_than_its_image_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(header(size=2 * GIB))
    check_base(image, 2 * GIB)
    with pytest.raises(ImageError, match=r"sandbox\.disk"):
        check_base(image, GIB)


def test_a_disk_is_named_by_instance_and_machine() -> None:
    assert Disks("0011", Path("/disks")).volume_of("rave-main-aa") == "rave-0011-rave-main-aa.qcow2"
