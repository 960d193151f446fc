"""A small assembler for classic BPF, the kernel's oldest packet filter language.

Its instructions: https://www.kernel.org/doc/Documentation/networking/filter.txt. A program is written as a list of
instructions and labels (plain strings). There is one register, into which parts of the frame are loaded; offsets count
from the frame's first byte (the receiver's MAC). A load past the frame's end ends the program with 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

# linux/filter.h
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _LOAD_LENGTH = 0x20, 0x28, 0x30, 0x80
_AND = 0x54
_JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT = 0x15, 0x35, 0x45
_RETURN = 0x06
_EXTENSIONS = 0xFFFFF000  # SKF_AD_OFF: metadata of the packet instead of its bytes
_MARK, _HAS_VLAN_TAG = _EXTENSIONS + 20, _EXTENSIONS + 48

_FARTHEST_JUMP = 255


@dataclass(frozen=True)
class Instruction:
    """One instruction. Jumps name labels; an empty label means the next instruction."""

    code: int
    value: int = 0
    then: str = ""
    otherwise: str = ""


@dataclass(frozen=True)
class Encoded:
    """One instruction in the kernel's form: a jump is the number of instructions to skip."""

    code: int
    skip_then: int
    skip_otherwise: int
    value: int

    def __str__(self) -> str:
        return f"{self.code} {self.skip_then} {self.skip_otherwise} {self.value}"


Program = tuple[Encoded, ...]


load_byte = partial(Instruction, _LOAD_BYTE)
load_half = partial(Instruction, _LOAD_HALF)  # two bytes
load_word = partial(Instruction, _LOAD_WORD)  # four bytes
load_length = partial(Instruction, _LOAD_LENGTH)
load_mark = partial(Instruction, _LOAD_WORD, _MARK)  # as nftables sets it
load_has_vlan_tag = partial(Instruction, _LOAD_WORD, _HAS_VLAN_TAG)  # the kernel has removed the tag from the bytes
keep_bits = partial(Instruction, _AND)
if_equal = partial(Instruction, _JUMP_EQUAL)
if_at_least = partial(Instruction, _JUMP_AT_LEAST)
if_any_bit = partial(Instruction, _JUMP_ANY_BIT)
end_with = partial(Instruction, _RETURN)


def assemble(*parts: Instruction | str) -> Program:
    """The program of these instructions and labels. Raises ValueError for a label used twice or a jump too far."""
    places: dict[str, int] = {}
    instructions: list[Instruction] = []
    for part in parts:
        if isinstance(part, Instruction):
            instructions.append(part)
        elif part in places:
            raise ValueError(f"the label {part} is defined twice")
        else:
            places[part] = len(instructions)

    def skip(label: str, here: int) -> int:
        if not label:
            return 0
        distance = places.get(label, -1) - here - 1
        if not 0 <= distance <= _FARTHEST_JUMP:
            raise ValueError(f"a jump from instruction {here} can't reach the label {label}")
        return distance

    return tuple(
        Encoded(one.code, skip(one.then, here), skip(one.otherwise, here), one.value)
        for here, one in enumerate(instructions)
    )


def bytecode(program: Program) -> str:
    """The form that tc(8) takes: the number of instructions, then each of them."""
    return ",".join([str(len(program)), *map(str, program)])
