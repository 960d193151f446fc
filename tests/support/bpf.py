"""Runs classic BPF over a frame as the kernel does, from the text that tc is given; knows nothing of the assembler."""

from __future__ import annotations

import struct

_ANCILLARY = 0xFFFFF000
_MARK, _VLAN_TAG_PRESENT = _ANCILLARY + 20, _ANCILLARY + 48


class OutOfBounds(Exception):
    """A load past the frame's end: the kernel ends the program with 0, which lets the frame pass."""


def verdict(text: str, frame: bytes, *, mark: int = 0, vlan: bool = False) -> int:
    """What the program of `N,code jt jf k,…` returns. Raises OutOfBounds, and ValueError for what it does not know."""
    count, *parts = text.split(",")
    program = [tuple(map(int, part.split())) for part in parts]
    assert len(program) == int(count)
    accumulator, at = 0, 0
    while True:
        code, then, otherwise, value = program[at]
        at += 1
        match code:
            case 0x20 if value == _MARK:
                accumulator = mark
            case 0x20 if value == _VLAN_TAG_PRESENT:
                accumulator = int(vlan)
            case 0x20 | 0x28 | 0x30:
                size, form = {0x20: (4, "!I"), 0x28: (2, "!H"), 0x30: (1, "!B")}[code]
                if value + size > len(frame):
                    raise OutOfBounds(f"instruction {at - 1} reads {size} bytes at {value} of {len(frame)}")
                (accumulator,) = struct.unpack_from(form, frame, value)
            case 0x80:
                accumulator = len(frame)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += then if accumulator == value else otherwise
            case 0x35:
                at += then if accumulator >= value else otherwise
            case 0x45:
                at += then if accumulator & value else otherwise
            case 0x06:
                return value
            case _:
                raise ValueError(f"unknown instruction {code}")
