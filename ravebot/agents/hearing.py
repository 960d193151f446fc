"""What is new of an agent's answer since an offset, for whoever asks again and again. Pure."""

from __future__ import annotations

from ravebot.agents.model import LONGEST_ANSWER


def piece(answer: str, cut: int, offset: int) -> tuple[str, int, int]:
    """What of an answer comes after `offset`, how much before that was left out, and the offset behind it.

    `answer` is what is kept: after its first half, `cut` characters are missing, which the offset counts.
    """
    end = len(answer) + cut
    if offset >= end or not cut:
        return answer[offset:] if offset < end else "", 0, max(offset, end)
    hole = LONGEST_ANSWER // 2
    behind = hole + cut
    if offset >= behind:
        return answer[offset - cut :], 0, end
    if offset >= hole:
        return answer[hole:], behind - offset, end
    return answer[offset:hole], 0, hole
